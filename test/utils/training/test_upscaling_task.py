"""What an upscaler is trained on: crops that belong together, degradations, the loss."""

import pytest
import torch

from model.networks import build_network
from utils.training import upscaling_task
from utils.training.upscaling_task import TURNS, UpscalingTask, degraded, turned


def generators(count, seed=0):
    return [torch.Generator().manual_seed(seed + i) for i in range(count)]


def pairs(count, height, width, scale, channels=3):
    """Small images, and the same with each pixel as a block."""
    torch.manual_seed(1)
    small = torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8)
    large = small.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    return small, large, torch.arange(count)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_crops_of_a_pair_show_the_same_place_turned_alike(scale):
    batch = pairs(40, 9, 14, scale)
    draws = UpscalingTask(scale, crop=5).draw(batch, generators(40))
    assert draws["small"].shape == (40, 3, 5, 5)
    blocks = draws["small"].repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    assert torch.equal(blocks, draws["large"])


def test_every_place_and_every_turn_is_drawn():
    image = torch.arange(6 * 5, dtype=torch.uint8).view(1, 1, 6, 5).expand(2000, -1, -1, -1)
    large = image.repeat_interleave(2, 2).repeat_interleave(2, 3)
    draws = UpscalingTask(2, crop=3).draw((image, large, None), generators(2000))
    seen = {tuple(crop.flatten().tolist()) for crop in draws["small"]}
    wanted = {
        tuple(turned(image[0, :, top : top + 3, left : left + 3], turn).flatten().tolist())
        for top in range(4)
        for left in range(3)
        for turn in range(TURNS)
    }
    assert seen == wanted and len(wanted) == 4 * 3 * 8


def test_a_crop_is_never_larger_than_the_image():
    task = UpscalingTask(2, crop=32)
    draws = task.draw(pairs(2, 7, 12, 2), generators(2))
    assert draws["small"].shape[2:] == (7, 7) and draws["large"].shape[2:] == (14, 14)
    assert task.passes((7, 12)) == 12 / 7


def test_what_is_drawn_depends_on_the_image_s_generator_alone():
    batch = pairs(4, 12, 12, 2)
    task = UpscalingTask(2, crop=6, degrade=True)
    whole = task.draw(batch, generators(4))
    for i in range(4):
        part = tuple(item[i : i + 1] for item in batch)
        alone = task.draw(part, generators(4)[i : i + 1])
        assert torch.equal(alone["small"][0], whole["small"][i])
        assert torch.equal(alone["large"][0], whole["large"][i])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [4, 5, 16])
def test_degraded_images_are_blurred_noisy_and_compressed(channels, side):
    torch.manual_seed(0)
    image = torch.randint(0, 256, (channels, side, side), dtype=torch.uint8)
    out = [degraded(image, generator) for generator in generators(20)]
    assert all(each.shape == image.shape and each.dtype == torch.uint8 for each in out)
    assert all((each.int() - image.int()).abs().max() > 5 for each in out)
    flat = torch.full((channels, 32, 32), 128, dtype=torch.uint8)
    errors = [degraded(flat, g).double().std() for g in generators(200)]
    assert max(errors) < 12 and min(errors) < 1.5  # noise of 0 to 10 levels


def test_how_much_is_blurred():
    """An edge that is blurred by sigma rises by 1 / (sigma sqrt(2 pi)) a pixel in the middle."""
    edge = torch.zeros(1, 32, 32)
    edge[..., 16:] = 1
    image = (edge * 200 + 20).byte()
    sigmas = []
    for generator in generators(300):
        out = degraded(image, generator).double()[0]
        rise = (out[:, 16] - out[:, 15]).mean() / 200
        sigmas.append(1 / (float(rise) * (2 * torch.pi) ** 0.5))
    assert min(sigmas) < 0.45  # an edge that is not blurred counts as 0.4
    assert 1.2 < max(sigmas) < 1.7
    assert sum(sigma > 1 for sigma in sigmas) > 50


def test_how_much_is_compressed(monkeypatch):
    qualities = []

    def compressed(pixels, quality):
        qualities.append(quality)
        return pixels

    monkeypatch.setattr(upscaling_task, "compressed", compressed)
    image = torch.zeros(1, 8, 8, dtype=torch.uint8)
    for generator in generators(2000):
        degraded(image, generator)
    assert min(qualities) == 60 and max(qualities) == 95
    monkeypatch.undo()
    torch.manual_seed(0)
    noise = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    errors = [
        float((upscaling_task.compressed(noise, quality).double() - noise).abs().mean())
        for quality in (95, 60)
    ]
    assert 1 < errors[0] < errors[1]


def test_the_small_image_alone_is_degraded():
    batch = pairs(3, 12, 12, 2)
    plain = UpscalingTask(2, 8).draw(batch, generators(3))
    worse = UpscalingTask(2, 8, degrade=True).draw(batch, generators(3))
    assert torch.equal(plain["large"], worse["large"])
    assert not torch.equal(plain["small"], worse["small"])


def test_the_loss_is_the_mean_absolute_error():
    torch.manual_seed(0)
    network = build_network({"name": "rdn", "features": 8, "blocks": 1, "layers": 1, "growth": 4})
    batch = pairs(2, 8, 8, 2)
    task = UpscalingTask(2, 8)
    draws = task.draw(batch, generators(2))
    out = task.loss(network, batch, draws)
    small, large = (draws[name].double() / 127.5 - 1 for name in ("small", "large"))
    errors = network.double()(small) - large
    assert abs(out["loss"] - errors.abs().mean()) < 1e-6
    in_db = 10 * torch.log10(4 / errors.square().flatten(1).mean(1))
    assert abs(out["crop_psnr"][0] - in_db.sum()) < 1e-4 and out["crop_psnr"][1] == 2
