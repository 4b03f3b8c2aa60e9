"""EMAs of any length, from snapshots of two."""

import numpy as np
import pytest
import torch
from torch import nn

from model.ema import EMA, PowerAverages, power_of, weights_of_snapshots

STEPS = 4000
SNAPSHOTS = [round(STEPS * number / 8) for number in range(1, 9)]


def drifting(step):
    """A weight that settles, with some noise."""
    chance = np.random.RandomState(step)
    return 1 - np.exp(-step / 900) + 0.3 * chance.randn()


def trained():
    """The snapshots of a run of one weight, as {(step, length): value}."""
    network = nn.Linear(1, 1, bias=False).double()
    averages = PowerAverages(network)
    found = {}
    for step in range(STEPS):
        with torch.no_grad():
            network.weight.fill_(drifting(step))
        averages.update(network, step)
        if step + 1 in SNAPSHOTS:
            for length, weights in averages.state_dict().items():
                found[step + 1, float(length)] = weights["weight"].item()
    return found


@pytest.mark.parametrize("length", [0.03, 0.05, 0.08, 0.1, 0.15, 0.2])
def test_an_average_of_another_length(length):
    found = trained()
    shares = weights_of_snapshots(list(found), length, STEPS)
    assert sum(shares) == pytest.approx(1)
    rebuilt = sum(share * value for share, value in zip(shares, found.values(), strict=True))
    # the one that training would have kept
    network = nn.Linear(1, 1, bias=False).double()
    ema = EMA(network, length=length)
    for step in range(STEPS):
        with torch.no_grad():
            network.weight.fill_(drifting(step))
        ema.update(network, step)
    exact = ema.network.weight.item()
    plain = found[STEPS, 0.1]
    assert abs(rebuilt - exact) < 0.006
    if length != 0.1:
        assert abs(rebuilt - exact) < abs(plain - exact)


def test_a_length_that_was_kept_comes_back():
    keys = [(step, length) for step in SNAPSHOTS for length in PowerAverages.LENGTHS]
    shares = weights_of_snapshots(keys, 0.05, STEPS)
    expected = [1.0 if key == (STEPS, 0.05) else 0.0 for key in keys]
    assert np.abs(np.array(shares) - expected).max() < 1e-6


def test_the_exponent_has_that_width():
    """Of the profile t^g, in the mean square: by numbers, not by the formula."""
    for length in (0.01, 0.05, 0.1, 0.25):
        t = (np.arange(1_000_000) + 0.5) / 1_000_000
        weight = t ** power_of(length)
        weight /= weight.sum()
        mean = (weight * t).sum()
        assert ((weight * (t - mean) ** 2).sum()) ** 0.5 == pytest.approx(length, rel=1e-3)
