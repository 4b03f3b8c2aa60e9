"""Rows of several labels and numbers, in the network and on the way through a sampler."""

import math

import pytest
import torch

from model.diffusion import GaussianDiffusion
from model.networks import build_network
from model.samplers import build_sampler

NAN = math.nan


def network(**options):
    torch.manual_seed(0)
    built = build_network(
        {
            "name": "unet",
            "in_channels": 1,
            "channels": 8,
            "channel_mult": [1, 2],
            "norm_groups": 4,
            "head_channels": 8,
            **options,
        }
    )
    for parameter in built.parameters():  # some begin at zero
        torch.nn.init.normal_(parameter, std=0.1)
    return built.eval().requires_grad_(False)


X = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
T = torch.tensor([5, 700])


def test_a_row_of_one_label_is_that_label():
    net = network(num_classes=3)
    rows = torch.tensor([[1.0, NAN], [NAN, 2.0]])
    assert torch.equal(net(X, T, rows), net(X, T, torch.tensor([1, 2])))


def test_several_labels_add_up_and_none_is_the_null_label():
    net = network(num_classes=3)
    table = net.condition.label.weight
    several = net.condition(T, torch.tensor([[0.0, 2.0], [NAN, NAN]]))
    without = net.condition(T, torch.tensor([3, 3])) - table[3]
    assert (several[0] - without[0] - table[0] - table[2]).abs().max() < 1e-6
    assert (several[1] - without[1] - table[3]).abs().max() < 1e-6
    assert torch.equal(net(X, T, torch.full((2, 2), NAN)), net(X, T))
    one, other = (torch.tensor([labels] * 2) for labels in ([0.0, 2.0], [2.0, 0.0]))
    assert torch.equal(net(X, T, one), net(X, T, other))


def test_numbers_matter_and_may_be_unknown():
    net = network(num_classes=3, numbers=2)
    rows = torch.tensor([[0.5, NAN, 1.0], [0.5, 2.0, 1.0]])
    out = net(X, T, rows)
    other = net(X, T, torch.tensor([[0.7, NAN, 1.0], [0.5, 2.5, 1.0]]))
    assert (out[0] - other[0]).abs().max() > 1e-6 and (out[1] - other[1]).abs().max() > 1e-6
    # a label alone, or nothing at all, leaves them unknown; 0 is a number
    unknown = net(X, T, torch.tensor([[NAN, NAN, 1.0]] * 2))
    assert torch.equal(net(X, T, torch.tensor([1, 1])), unknown)
    assert torch.equal(net(X, T), net(X, T, torch.full((2, 3), NAN)))
    assert not torch.equal(unknown, net(X, T, torch.tensor([[0.0, 0.0, 1.0]] * 2)))


def test_a_network_of_numbers_alone():
    net = network(numbers=1)
    assert not torch.equal(net(X, T, torch.tensor([[1.0], [2.0]])), net(X, T))
    with pytest.raises(ValueError, match="begin with 1 numbers"):
        net(X, T, torch.zeros(2, 0))


def test_dropped_rows_are_empty():
    seen = []

    class Net:
        num_classes = 3

        def __call__(self, x, t, labels=None):
            seen.append(labels)
            return torch.zeros_like(x)

    diffusion = GaussianDiffusion()
    draws = {"t": T, "noise": X, "dropped": torch.tensor([True, False])}
    rows = torch.tensor([[0.5, 1.0], [0.5, 2.0]])
    diffusion.losses_of(Net(), X, rows, draws)
    assert seen[0][0].isnan().all() and torch.equal(seen[0][1], rows[1])


@pytest.mark.parametrize("rows", [[(0.3, 1.0, 2.0), (NAN, 0.0)], [(0.3,), (1.5,)]])
def test_guided_images_with_rows(rows):
    """Guidance needs a row without anything; one image a call gives the same."""
    net = network(num_classes=3, numbers=1)
    sampler = build_sampler("ddim", {"prediction": "v"}, sample_steps=4)
    together = sampler.sample(net, 2, (8, 8), 1, labels=rows, cfg_scale=2.0, seeds=[1, 2])
    for place, row in enumerate(rows):
        options = {"labels": [row], "cfg_scale": 2.0, "seeds": [1 + place]}
        alone = sampler.sample(net, 1, (8, 8), 1, **options)
        assert (alone[0] - together[place]).abs().max() < 1e-5
    plain = sampler.sample(net, 2, (8, 8), 1, labels=rows, seeds=[1, 2])
    assert (plain - together).abs().max() > 1e-4
    width = max(map(len, rows))
    tensor = torch.tensor([[*row, *[NAN] * (width - len(row))] for row in rows])
    again = sampler.sample(net, 2, (8, 8), 1, labels=tensor, cfg_scale=2.0, seeds=[1, 2])
    assert torch.equal(again, together)


def test_labels_and_rows_share_a_batch():
    net = network(num_classes=3)
    sampler = build_sampler("ddim", {"prediction": "v"}, sample_steps=3)
    parts = [
        sampler.start(1, (8, 8), 1, [2], 2.0, seeds=[1], null_label=3),
        sampler.start(1, (8, 8), 1, [(0.0, 1.0)], 2.0, seeds=[2], null_label=3),
        sampler.start(1, (8, 8), 1, None, 1.0, seeds=[3], null_label=3),
    ]
    both = type(parts[0]).cat(parts)
    while not both.all_done:
        both, _ = sampler.update(both, net(*sampler.rows(both)))
    for place, part in enumerate(parts):
        while not part.all_done:
            part, _ = sampler.update(part, net(*sampler.rows(part)))
        assert (part.x[0] - both.x[place]).abs().max() < 1e-5


@pytest.mark.parametrize("labels", [torch.tensor([0, 1]), torch.tensor([[0.5, 1.0], [0.5, 2.0]])])
def test_labels_for_a_network_that_learned_a_number_alone(labels):
    with pytest.raises(ValueError, match="takes rows of 1 numbers"):
        network(num_classes=None, numbers=1)(X, T, labels)
