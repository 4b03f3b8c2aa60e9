"""Pixels in, more pixels out: channels, depths, opacity, rounding, tiles."""

import pytest
import torch
from upscaling_helpers import CPU, Smoothing, tiny_network, upscaler, write_upscaler

from model.codecs import PixelCodec
from utils.errors import UserError
from utils.runs.checkpoint import Checkpoint
from utils.upscaling import Upscaler


def random_samples(*shape, dtype=torch.uint8):
    generator = torch.Generator().manual_seed(1)
    largest = 255 if dtype == torch.uint8 else 65535
    return torch.randint(0, largest + 1, shape, generator=generator).to(dtype)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_pixels_are_what_the_codec_makes(channels, scale):
    network, codec = tiny_network(channels, scale), PixelCodec()
    pixels = random_samples(3, channels, 9, 7)
    expected = codec.decode(network(codec.encode(pixels)))
    found = Upscaler(network, CPU).pixels(pixels)
    assert found.dtype == torch.uint8 and found.float().std() > 5
    assert torch.equal(found, expected)


def test_a_network_for_the_other_number_of_channels():
    grey, colour = random_samples(2, 1, 6, 5), random_samples(2, 3, 6, 5)
    codec = PixelCodec()

    network = tiny_network(3)
    output = network(codec.encode(grey).repeat(1, 3, 1, 1))
    mean = codec.decode(output.mean(dim=1, keepdim=True))
    assert torch.equal(Upscaler(network, CPU).pixels(grey), mean)

    network = tiny_network(1)
    alone = [codec.decode(network(codec.encode(colour[:, c : c + 1]))) for c in range(3)]
    assert torch.equal(Upscaler(network, CPU).pixels(colour), torch.cat(alone, dim=1))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
@pytest.mark.parametrize("tile", [None, 0, 5])
def test_tiles_batches_and_strips_change_nothing(channels, dtype, tile):
    pixels = random_samples(2, channels, 17, 13, dtype=dtype)
    maker = upscaler(3, tile=0)
    whole = torch.cat([maker.pixels(image[None]) for image in pixels]).int()
    maker = upscaler(3, tile=tile)
    found = maker.pixels(pixels)
    largest = 1 if dtype == torch.uint8 else 2  # a sum in another order may round otherwise
    assert found.dtype == dtype and found.shape == (2, channels, 34, 26)
    assert (found.int() - whole).abs().max() <= largest

    def read(rows, columns):
        return pixels[:1, :, rows, columns]

    strips = torch.cat(list(maker.strips(read, (17, 13))), dim=-2)
    assert (strips.int() - whole[:1]).abs().max() <= largest


def test_16_bits_are_16_bits():
    """Levels between those of 8 bits survive, and the ends of the range are reached."""
    ramp = torch.arange(0, 65536, 1009).to(torch.int32)
    pixels = ramp.to(torch.uint16).view(1, 1, 1, -1).expand(1, 3, 4, -1)
    found = Upscaler(Smoothing(), CPU).pixels(pixels).int()[0, 0, 2, 1::2]
    # a pixel's right half: twice itself and once its right neighbour
    expected = (2 * ramp[:-1] + ramp[1:]) / 3
    assert (found[:-1] - expected).abs().max() <= 0.51
    white = torch.full((1, 1, 3, 3), 65535).to(torch.uint16)
    assert (Upscaler(Smoothing(), CPU).pixels(white).int() == 65535).all()


def sprite(colour, unseen, size=24):
    """A hard-edged disc (1,4,H,W) of one colour; what is transparent has the colour `unseen`."""
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    inside = (y - size / 2) ** 2 + (x - size / 2) ** 2 < (size / 3) ** 2
    pixels = torch.empty(4, size, size, dtype=torch.uint8)
    for channel in range(3):
        pixels[channel] = torch.where(inside, colour[channel], unseen[channel])
    pixels[3] = torch.where(inside, 255, 0)
    return pixels[None]


@pytest.mark.parametrize("unseen", [(0, 255, 0), (0, 0, 0), (255, 255, 255)])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_sprite_has_no_fringe(unseen, channels):
    """Wherever anything is seen of the result, it has the sprite's own colour."""
    colour = (200, 40, 90)
    found = Upscaler(Smoothing(channels), CPU).pixels(sprite(colour, unseen))[0].int()
    seen = found[3] > 0
    partly = seen & (found[3] < 255)
    assert partly.sum() > 50 and (found[3] == 255).sum() > 400
    for channel in range(3):
        assert (found[channel][seen] - colour[channel]).abs().max() <= 1
        assert (found[channel][~seen] == 0).all()


def test_what_is_opaque_is_as_without_opacity():
    """With any network: to the bit where only opaque pixels are within sight."""
    maker = upscaler(3)
    colours = random_samples(1, 3, 30, 30)
    alpha = torch.full((1, 1, 30, 30), 255, dtype=torch.uint8)
    alpha[..., :6] = random_samples(1, 1, 30, 6)
    found = maker.pixels(torch.cat([colours, alpha], dim=1))
    without = maker.pixels(colours)
    far = (6 + maker.radius) * 2
    assert far < 40
    assert torch.equal(found[:, :3, :, far:], without[..., far:])
    assert (found[:, 3, :, 7 * 2 :] == 255).all()  # one pixel from the edge on
    assert (found[:, 3, :, : 5 * 2] < 255).any()

    opaque = torch.full_like(alpha, 255)
    found = maker.pixels(torch.cat([colours, opaque], dim=1))
    assert torch.equal(found[:, :3], without) and (found[:, 3] == 255).all()
    found = maker.pixels(torch.cat([colours, 0 * opaque], dim=1))
    assert (found == 0).all()


def test_opacity_of_one_value_stays():
    alpha = torch.full((1, 1, 8, 8), 77, dtype=torch.uint8)
    found = upscaler(3).pixels(torch.cat([random_samples(1, 1, 8, 8), alpha], dim=1))
    assert found.shape == (1, 2, 16, 16) and (found[:, 1] == 77).all()


def test_one_pixel():
    for channels in (1, 2, 3, 4):
        assert upscaler(3).pixels(random_samples(1, channels, 1, 1)).shape == (1, channels, 2, 2)


def test_a_network_in_training_stays_in_training():
    network = tiny_network().train()
    Upscaler(network, CPU).pixels(random_samples(1, 3, 4, 4))
    assert network.training and all(module.training for module in network.modules())


# --- From a checkpoint ---


@pytest.mark.parametrize("channels", [1, 3])
def test_from_a_checkpoint(tmp_path, channels):
    checkpoint = Checkpoint.read(write_upscaler(tmp_path / "u.pt", channels, 3))
    maker = Upscaler.from_checkpoint(checkpoint, CPU)
    pixels = random_samples(1, channels, 5, 5)
    assert maker.scale == 3
    assert torch.equal(maker.pixels(pixels), upscaler(channels, 3).pixels(pixels))
    with pytest.raises(UserError, match="holds no raw weights"):
        Upscaler.from_checkpoint(checkpoint, CPU, use_ema=False)


def test_what_is_no_upscaler_is_refused(tmp_path):
    for kind, sentence in (
        ("diffusion", "of kind diffusion, but upscaler is needed; it is for tools/generate.py"),
        ("upscaler", "describes no upscaler: its network is 'unet', known are rdn, edsr"),
    ):
        checkpoint = Checkpoint({"network": {"name": "unet"}}, kind=kind, ema={}, source="x.pt")
        with pytest.raises(UserError, match=sentence):
            Upscaler.from_checkpoint(checkpoint, CPU)
    checkpoint = Checkpoint.read(write_upscaler(tmp_path / "u.pt"))
    checkpoint.config["network"]["scale"] = 7
    with pytest.raises(UserError, match="scale is 2, 3 or 4, not 7"):
        Upscaler.from_checkpoint(checkpoint, CPU)
