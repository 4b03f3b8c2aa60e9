"""The average covers parameters and buffers."""

import pytest
import torch

from model.ema import EMA, power_of


def test_buffers_are_averaged_and_counts_copied():
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.BatchNorm2d(2))
    ema = EMA(network, decay=0.9)
    expected = network[1].running_mean.clone()
    for step in range(30):
        network(torch.randn(8, 1, 4, 4) + 3)
        ema.update(network, step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * network[1].running_mean
    assert (ema.network[1].running_mean - expected).abs().max() < 1e-6
    assert expected.abs().min() > 1e-3
    assert ema.network[1].num_batches_tracked == 30


@pytest.mark.parametrize("length", [0.02, 0.1, 0.25, 0.28])
def test_the_average_grows_with_the_run(length):
    """The weights of the steps follow t^g, and their spread is the share that was asked for."""
    steps = 4000
    network = torch.nn.Linear(steps, 1, bias=False).double()
    ema = EMA(network, length=length)
    profile = torch.zeros(steps, dtype=torch.float64)
    for step in range(steps):
        decay = ema.decay_at(step)
        profile *= decay
        profile[step] = 1 - decay
    assert abs(profile.sum() - 1) < 1e-12
    t = torch.arange(1, steps + 1).double() / steps
    expected = t ** power_of(length)
    assert (profile - expected / expected.sum()).abs().max() < 2e-3 * profile.max() + 1e-5
    mean = (profile * t).sum()
    spread = (profile * (t - mean).square()).sum().sqrt()
    assert abs(spread / length - 1) < 0.01


def test_the_average_forgets_the_first_weights():
    network = torch.nn.Linear(1, 1, bias=False)
    ema = EMA(network)
    with torch.no_grad():
        network.weight.fill_(7.0)
    ema.update(network, 0)
    assert ema.network.weight.item() == 7.0


@pytest.mark.parametrize("length", [0, -1, 0.29, 1])
def test_an_impossible_length_is_refused(length):
    with pytest.raises(ValueError, match="length of an average"):
        EMA(torch.nn.Linear(1, 1), length=length)
