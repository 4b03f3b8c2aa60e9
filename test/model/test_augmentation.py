"""The augmentation that does not leak."""

import copy
import math

import numpy as np
import pytest
import torch

from model.augmentation import (
    COSINE,
    MIRRORED,
    NUMBERS,
    SCALED,
    SHIFT_X,
    SHIFT_Y,
    SINE,
    STRETCH_X,
    STRETCH_Y,
    UPSIDE_DOWN,
    augment,
    draw_augmentations,
)
from model.diffusion import GaussianDiffusion
from model.networks import build_network


def numbers(**changes):
    found = torch.zeros(1, NUMBERS)
    for place, value in changes.items():
        found[0, globals()[place]] = value
    return found


def blob(x, y, side=32, width=None):
    """A soft spot at (x, y), in halves of the sides from the centre."""
    width = width or side
    rows = (torch.arange(side) + 0.5) / side * 2 - 1
    columns = (torch.arange(width) + 0.5) / width * 2 - 1
    squared = (columns[None] - x) ** 2 * (width / side) ** 2 + (rows[:, None] - y) ** 2
    return (2 * torch.exp(-squared / 0.02) - 1).view(1, 1, side, width)


def place_of(image, near):
    """The centre of the spot near a place, in halves of the sides; the edges show mirrored ones."""
    weight = (image[0, 0] + 1).clamp(min=0)
    rows = (torch.arange(weight.shape[0]) + 0.5) / weight.shape[0] * 2 - 1
    columns = (torch.arange(weight.shape[1]) + 0.5) / weight.shape[1] * 2 - 1
    is_near = ((columns[None] - near[0]).abs() < 0.25) & ((rows[:, None] - near[1]).abs() < 0.25)
    weight = torch.where((weight > 0.5) & is_near, weight, 0.0)
    total = weight.sum()
    return (
        (weight * columns[None]).sum().item() / total.item(),
        (weight * rows[:, None]).sum().item() / total.item(),
    )


def stretched(x, y, aspect, along_x, along_y):
    """A place stretched along a direction and squeezed across it, in units of half the height."""
    amount = math.hypot(along_x, along_y)
    direction = np.array([along_x, along_y]) / amount
    across = np.array([-direction[1], direction[0]])
    place = np.array([x * aspect, y])
    found = 2 ** (0.2 * amount) * (place @ direction) * direction
    found = found + 2 ** (-0.2 * amount) * (place @ across) * across
    return found[0] / aspect, found[1]


# --- What each number does, to a spot whose place is known ---


@pytest.mark.parametrize("width", [32, 64])
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"MIRRORED": 1}, lambda x, y, a: (-x, y)),
        ({"UPSIDE_DOWN": 1}, lambda x, y, a: (x, -y)),
        ({"SCALED": 2.0}, lambda x, y, a: (x * 2**0.4, y * 2**0.4)),
        ({"SHIFT_X": 1.0}, lambda x, y, a: (x + 0.25, y)),
        ({"SHIFT_Y": -1.0}, lambda x, y, a: (x, y - 0.25)),
        ({"COSINE": -1.0, "SINE": 1.0}, lambda x, y, a: (-y / a, x * a)),
        ({"STRETCH_X": 2.0}, lambda x, y, a: (x * 2**0.4, y * 2**-0.4)),
        ({"STRETCH_Y": 2.0}, lambda x, y, a: (x * 2**-0.4, y * 2**0.4)),
        ({"STRETCH_X": 1.0, "STRETCH_Y": 1.0}, lambda x, y, a: stretched(x, y, a, 1.0, 1.0)),
        ({"STRETCH_X": 1.0, "STRETCH_Y": -1.0}, lambda x, y, a: stretched(x, y, a, 1.0, -1.0)),
        (  # stretched first, then turned by a quarter
            {"STRETCH_X": 2.0, "COSINE": -1.0, "SINE": 1.0},
            lambda x, y, a: (-y * 2**-0.4 / a, x * 2**0.4 * a),
        ),
        (
            {"SCALED": -1.0, "COSINE": math.sqrt(0.75) - 1, "SINE": 0.5, "SHIFT_X": 0.5},
            lambda x, y, a: (
                2**-0.2 * (math.sqrt(0.75) * x - 0.5 * y / a) + 0.125,
                2**-0.2 * (math.sqrt(0.75) * y + 0.5 * x * a),
            ),
        ),
    ],
)
def test_a_spot_goes_where_the_numbers_say(changes, expected, width):
    x, y = 0.2, -0.3
    moved = augment(blob(x, y, width=width), numbers(**changes))
    wanted = expected(x, y, width / 32)
    found = place_of(moved, wanted)
    assert abs(found[0] - wanted[0]) < 0.02 and abs(found[1] - wanted[1]) < 0.02, (found, wanted)


def test_between_two_pixels_there_is_what_lies_between():
    """Moved by half a pixel, a ramp goes on as a ramp."""
    side = 32
    ramp = torch.linspace(-0.5, 0.5, side).expand(1, 1, side, side)
    moved = augment(ramp, numbers(SHIFT_X=8 * 0.5 / side))
    expected = ramp - 0.5 / (side - 1)
    assert (moved - expected)[..., 4:-4].abs().max() < 1e-4


def test_what_is_not_changed_stays_to_the_bit():
    images = torch.rand(4, 3, 16, 16) * 2 - 1
    some = torch.zeros(4, NUMBERS)
    some[1, MIRRORED] = 1
    some[2, UPSIDE_DOWN] = 1
    some[3, SCALED] = 0.5
    found = augment(images, some)
    assert torch.equal(found[0], images[0])
    assert torch.equal(found[1], images[1].flip(2))
    assert torch.equal(found[2], images[2].flip(1))
    assert not torch.equal(found[3], images[3])
    assert found.abs().max() <= 1


def test_autocast_does_not_move_pixels():
    images = torch.rand(2, 1, 32, 32) * 2 - 1
    some = draw_augmentations(2, 1.0, torch.Generator().manual_seed(1))
    plain = augment(images, some)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(augment(images, some), plain)


# --- What is drawn ---


def test_each_change_has_its_probability():
    found = draw_augmentations(20_000, 0.12, torch.Generator().manual_seed(0))
    shares = (found != 0).float().mean(0)
    expected = {MIRRORED: 0.5, UPSIDE_DOWN: 0.06, SCALED: 0.12, COSINE: 0.12, SINE: 0.12}
    expected |= {STRETCH_X: 0.12, SHIFT_X: 0.12, SHIFT_Y: 0.12}
    for place, share in expected.items():
        assert abs(shares[place].item() - share) < 0.015, place
    assert (found[:, SHIFT_X] != 0).equal(found[:, SHIFT_Y] != 0)
    lengths = torch.hypot(found[:, COSINE] + 1, found[:, SINE])
    assert (lengths - 1).abs().max() < 1e-5
    assert abs(found[found[:, SCALED] != 0, SCALED].std().item() - 1) < 0.1
    amounts = found[:, [SHIFT_X, SHIFT_Y]][found[:, SHIFT_X] != 0]
    assert (amounts.std(0) - 1).abs().max() < 0.1 and amounts.mean(0).abs().max() < 0.1
    turns = found[found[:, SINE] != 0]
    directions = torch.stack([turns[:, COSINE] + 1, turns[:, SINE]], 1)
    assert directions.mean(0).abs().max() < 0.06  # all the way round
    stretches = found[:, [STRETCH_X, STRETCH_Y]][found[:, STRETCH_X] != 0]
    spread = stretches.T @ stretches / len(stretches)
    assert (spread - torch.eye(2) / 2).abs().max() < 0.06
    only_mirrored = draw_augmentations(1000, 0.0, torch.Generator().manual_seed(0))
    assert only_mirrored[:, 1:].abs().max() == 0 and only_mirrored[:, 0].max() == 1


def test_an_image_s_draws_are_its_own():
    one = [torch.Generator().manual_seed(seed) for seed in (1, 2, 3)]
    two = [torch.Generator().manual_seed(seed) for seed in (3, 1)]
    together, apart = draw_augmentations(3, 0.5, one), draw_augmentations(2, 0.5, two)
    assert torch.equal(together[2], apart[0]) and torch.equal(together[0], apart[1])


# --- The network is told, and samples show nothing of it ---


@pytest.fixture
def network():
    torch.manual_seed(0)
    built = build_network(
        {
            "name": "unet",
            "in_channels": 1,
            "channels": 8,
            "channel_mult": [1, 2],
            "norm_groups": 4,
            "head_channels": 8,
            "augmentation": NUMBERS,
        }
    )
    for parameter in built.parameters():  # some begin at zero
        torch.nn.init.normal_(parameter, std=0.1)
    return built.eval()


def test_no_augmentation_is_nine_zeros(network):
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([3, 900])
    with torch.no_grad():
        plain = network(x, t)
        assert torch.equal(network(x, t, None, torch.zeros(2, NUMBERS)), plain)
        assert not torch.equal(network(x, t, None, torch.ones(2, NUMBERS)), plain)


def test_a_network_without_is_told_so():
    plain = build_network(
        {"name": "unet", "in_channels": 1, "channels": 8, "channel_mult": [1], "head_channels": 8}
    )
    with pytest.raises(ValueError, match="without augmentations"):
        plain(torch.randn(1, 1, 8, 8), torch.tensor([1]), None, torch.zeros(1, NUMBERS))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_network_in_another_number_format_is_told_too(network, dtype):
    other = copy.deepcopy(network).to(dtype)
    some = draw_augmentations(2, 1.0, torch.Generator().manual_seed(1))
    x = torch.randn(2, 1, 8, 8, dtype=dtype)
    assert other(x, torch.tensor([3, 5]), augmentation=some).dtype == dtype


def test_the_loss_tells_the_network():
    told = []

    def network(x, t, labels=None, augmentation=None):
        told.append(augmentation)
        return torch.zeros_like(x)

    diffusion = GaussianDiffusion()
    draws = diffusion.draw((2, 1, 4, 4), False, torch.Generator().manual_seed(0), 0.1)
    x0 = torch.rand(2, 1, 4, 4)
    diffusion.losses_of(network, x0, None, draws)
    some = torch.randn(2, NUMBERS)
    diffusion.losses_of(network, x0, None, {**draws, "augmentation": some})
    assert told[0] is None and torch.equal(told[1], some)


def test_nothing_leaks():
    """A regression (random features) from the numbers to changed images: asked for nine zeros, it
    gives the upright image; one that is not told gives the blur of all changes.
    """
    generator = torch.Generator().manual_seed(0)
    images = blob(0.4, 0.0, side=16).repeat(4096, 1, 1, 1)
    changes = draw_augmentations(4096, 1.0, generator)
    changes[:, [UPSIDE_DOWN, SCALED, COSINE, SINE, STRETCH_X, STRETCH_X + 1]] = 0
    targets = augment(images, changes).flatten(1)
    weights = torch.randn(NUMBERS, 500, generator=generator)
    phases = 6.3 * torch.rand(500, generator=generator)

    def features(numbers):
        return torch.cos(numbers @ weights + phases)

    told = torch.linalg.lstsq(features(changes), targets).solution
    upright = features(torch.zeros(1, NUMBERS)) @ told
    exact = images[0].flatten()
    blur = targets.mean(0)
    assert (upright - exact).square().mean() < 0.1 * (blur - exact).square().mean()
