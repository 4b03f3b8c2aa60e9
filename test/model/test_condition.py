"""Images that steer images: as channels, dropped, and in guidance."""

from dataclasses import replace

import pytest
import torch

from model.codecs import PixelCodec
from model.condition import (
    LabelCondition,
    PictureCondition,
    beside_latents,
    build_condition,
    without_condition,
)
from model.diffusion import GaussianDiffusion
from model.guidance import NO_LABEL
from model.networks import build_network
from model.samplers import SAMPLERS, build_sampler
from utils.training.diffusion_task import DiffusionTask

SIZE = (8, 8)


def generators(count, seed=0):
    return [torch.Generator().manual_seed(seed + i) for i in range(count)]


# --- As channels ---


def test_a_label_map_has_a_channel_for_each_label():
    condition = LabelCondition([0, 7, 255])
    pixels = torch.tensor([[0, 7], [255, 9]], dtype=torch.uint8).view(1, 1, 2, 2)
    channels = condition.encode(pixels)
    assert channels.shape == (1, condition.channels, 2, 2) == (1, 4, 2, 2)
    wanted = [[[1, 0], [0, 0]], [[0, 1], [0, 0]], [[0, 0], [1, 0]], [[1, 1], [1, 1]]]
    assert torch.equal(channels[0], torch.tensor(wanted, dtype=channels.dtype))


@pytest.mark.parametrize("planes", [1, 3])
def test_a_picture_is_numbers_as_an_image_is(planes):
    condition = PictureCondition(planes)
    pixels = torch.randint(256, (2, planes, *SIZE), dtype=torch.uint8)
    channels = condition.encode(pixels)
    assert torch.equal(channels[:, :-1], PixelCodec().encode(pixels))
    assert bool((channels[:, -1] == 1).all()) and condition.channels == planes + 1


def test_a_label_s_share_of_what_a_latent_stands_for():
    condition = beside_latents(LabelCondition([0, 7]), 4, 2)
    pixels = torch.tensor([[0, 7, 0, 0], [7, 7, 0, 9]], dtype=torch.uint8).view(1, 1, 2, 4)
    wanted = torch.tensor([[[0.25, 0.75]], [[0.75, 0.0]], [[1.0, 1.0]]])
    assert torch.equal(condition.encode(pixels)[0], wanted)
    assert torch.equal(condition.of_stored(condition.shares(pixels))[0], wanted)


@pytest.mark.parametrize(
    "condition",
    [
        LabelCondition([0, 3]),
        PictureCondition(3),
        beside_latents(LabelCondition([0, 3]), 4, 8),
        beside_latents(PictureCondition(3), 4, 8),
    ],
)
def test_from_its_config(condition):
    again = build_condition(condition.config)
    assert type(again) is type(condition) and again.config == condition.config


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"name": "sound"},
        {"name": "labels"},
        {"name": "labels", "values": []},
        {"name": "labels", "values": [1, 0]},
        {"name": "labels", "values": [0, 256]},
        {"name": "labels", "values": [0, 0]},
        {"name": "labels", "values": list(range(65))},
        {"name": "labels", "values": [0.5]},
        {"name": "picture", "planes": 2},
        {"name": "picture", "planes": 1, "more": 1},
        {"name": "latent picture", "planes": 3, "latent_channels": 0},
        {"name": "latent picture", "planes": 3, "latent_channels": True},
        {"name": "latent labels", "values": [0, 1], "factor": 0.5},
        {"name": "latent labels", "values": [0, 1]},
    ],
)
def test_a_wrong_config(config):
    with pytest.raises(ValueError):
        build_condition(config)


# --- In a training step ---


class Watching(torch.nn.Module):
    """Predicts zeros and remembers what it was given."""

    num_classes = None

    def forward(self, x, t, labels=None, augmentation=None):
        self.seen = x
        return torch.zeros_like(x[:, :1])


@pytest.mark.parametrize(
    "options", [{"flip": True}, {"augment": 1.0}, {"flip": True, "augment": 1}]
)
def test_what_moves_an_image_moves_its_condition(options):
    """The condition is the image itself, so that both channels must stay equal."""
    condition = PictureCondition(1)
    task = DiffusionTask(
        GaussianDiffusion(), PixelCodec(), False, condition=condition, condition_drop=0.0, **options
    )
    image = torch.randint(256, (16, 1, *SIZE), dtype=torch.uint8)
    batch = (torch.cat([image, image], dim=1), torch.zeros(16, dtype=torch.long), torch.arange(16))
    draws = task.draw(batch, generators(16))
    x0, channels = task.inputs(batch, draws)
    assert torch.equal(x0, channels[:, :1])
    assert torch.allclose(channels[:, 1:], torch.ones(1), atol=1e-5)
    moved = (x0 - PixelCodec().encode(image)).abs().flatten(1).amax(1) > 0
    assert 4 <= int(moved.sum()) <= 16


def test_conditions_are_dropped_image_by_image():
    task = DiffusionTask(GaussianDiffusion(), PixelCodec(), False, condition=LabelCondition([0, 1]))
    task.condition_drop = 0.5
    pixels = torch.randint(2, (40, 2, *SIZE), dtype=torch.uint8)
    batch = (pixels, torch.zeros(40, dtype=torch.long), torch.arange(40))
    draws = task.draw(batch, generators(40))
    network = Watching()
    task.loss(network, batch, draws)
    dropped = draws["condition_dropped"]
    assert 8 <= int(dropped.sum()) <= 32
    assert network.seen.shape == (40, 1 + 3, *SIZE)
    assert bool((network.seen[dropped, 1:] == 0).all())
    assert torch.equal(network.seen[~dropped, 1:], task.condition.encode(pixels[~dropped, 1:]))
    # what an image draws does not depend on those beside it
    alone = task.draw(tuple(part[7:8] for part in batch), generators(1, seed=7))
    for name in ("t", "noise", "condition_dropped"):
        assert torch.equal(alone[name][0], draws[name][7])


@pytest.mark.parametrize(("drop", "both"), [(0.1, 0.5), (0.0, 0.0)])
def test_half_of_those_without_a_label_are_without_a_condition(drop, both):
    """Otherwise guidance would begin at what the network hardly knows."""
    count = 4000
    task = DiffusionTask(
        GaussianDiffusion(),
        PixelCodec(),
        True,
        label_drop=0.5,
        condition=PictureCondition(1),
        condition_drop=drop,
    )
    batch = (torch.zeros(count, 2, 1, 1, dtype=torch.uint8), torch.zeros(count).long(), None)
    draws = task.draw(batch, torch.Generator().manual_seed(0))
    label, condition = draws["dropped"], draws["condition_dropped"]
    assert abs(float(condition[label].float().mean()) - both) <= 0.05
    assert abs(float(condition[~label].float().mean()) - drop) <= 0.03


def test_without_a_condition_nothing_else_is_drawn():
    batch = (torch.zeros(3, 1, *SIZE, dtype=torch.uint8), torch.zeros(3).long(), torch.arange(3))
    plain = DiffusionTask(GaussianDiffusion(), PixelCodec(), False)
    told = DiffusionTask(GaussianDiffusion(), PixelCodec(), False, condition=PictureCondition(1))
    both = (batch[0].expand(-1, 2, -1, -1), *batch[1:])
    one, two = plain.draw(batch, generators(3)), told.draw(both, generators(3))
    assert set(two) - set(one) == {"condition_dropped"}
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_without_condition():
    condition = torch.ones(3, 2, 4, 4)
    kept = without_condition(condition, torch.tensor([True, False, True]))
    assert kept.flatten(1).sum(1).tolist() == [0, 32, 0]


# --- In sampling ---


def network():
    torch.manual_seed(0)
    built = build_network(
        {
            "in_channels": 1 + 3,
            "out_channels": 1,
            "num_classes": 2,
            "channels": 8,
            "channel_mult": [1, 2],
            "blocks_per_level": 1,
            "head_channels": 8,
        }
    ).eval()
    for weight in built.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    return built


CONDITION = LabelCondition([0, 1]).encode(
    torch.randint(2, (3, 1, *SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("labels", [None, [0, 1, 1]])
def test_guidance_leads_from_no_condition_and_no_label(name, labels):
    """Each step is the one of null + s (told - null), put together by hand."""
    sampler = build_sampler(name, {}, sample_steps=4, eta=1.0)
    built, scales = network(), [3.0, 1.0, 0.0]
    null_label = NO_LABEL if labels is None else 2
    ours = sampler.start(
        3, SIZE, 1, labels, scales, range(3), null_label=null_label, condition=CONDITION
    )
    by_hand = replace(ours, scales=(1.0,) * 3)  # one row an image, guided already
    own = None if labels is None else torch.tensor(labels)
    scale = torch.tensor(scales).view(-1, 1, 1, 1)
    with torch.no_grad():
        while not ours.all_done:
            ours, _ = sampler.update(ours, built(*sampler.rows(ours)))
            x, t = by_hand.x, torch.tensor([t for t, _, _ in by_hand.calls])
            told = built(torch.cat([x, CONDITION], dim=1), t, own)
            null = built(torch.cat([x, torch.zeros_like(CONDITION)], dim=1), t, None)
            assert (told - null).abs().max() > 0.01
            by_hand, _ = sampler.update(by_hand, null + scale * (told - null))
            assert (ours.x - by_hand.x).abs().max() <= 1e-4


def test_an_image_s_condition_goes_with_it():
    """In whatever batch it is, and past those that are finished."""
    sampler = build_sampler("ddim", {}, sample_steps=4)
    built = network()
    together = sampler.sample(built, 3, SIZE, 1, [0, 1, 1], 2.0, range(3), condition=CONDITION)
    for i in (0, 2):
        alone = sampler.sample(
            built, 1, SIZE, 1, [[0, 1, 1][i]], 2.0, [i], condition=CONDITION[i : i + 1]
        )
        assert (alone[0] - together[i]).abs().max() <= 1e-5
    start = sampler.start(3, SIZE, 1, None, 2.0, range(3), condition=CONDITION)
    turned = start.select([2, 0])
    assert torch.equal(turned.condition, CONDITION[[2, 0]])
    joined = turned.cat([turned, start.select([1])])
    assert torch.equal(joined.condition, CONDITION[[2, 0, 1]])
    plain = sampler.start(1, SIZE, 1, None, 2.0, [1])
    with pytest.raises(ValueError, match="kind of condition"):
        start.cat([start, plain])


@pytest.mark.parametrize("shape", [(2, 3, *SIZE), (3, 3, 4, 8)])
def test_conditions_of_another_count_or_size(shape):
    sampler = build_sampler("ddim", {}, sample_steps=4)
    with pytest.raises(ValueError, match="3 conditions"):
        sampler.start(3, SIZE, 1, seeds=range(3), condition=torch.zeros(shape))
