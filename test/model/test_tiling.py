"""Tiles leave no seams: the result is that of one call, everywhere."""

import pytest
import torch

from model.networks import UPSCALERS, build_network
from model.tiling import fitting_tile, spans, upscaled, upscaled_strips

TINY = {
    "rdn": {"name": "rdn", "features": 8, "blocks": 1, "layers": 1, "growth": 4},
    "edsr": {"name": "edsr", "features": 8, "blocks": 1},
}


def tiny(name, scale, channels=3):
    """A network with large weights in which all of its parts count."""
    torch.manual_seed(0)
    network = build_network({**TINY[name], "scale": scale, "in_channels": channels})
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    return network.eval().requires_grad_(False)


def in_tiles(network, x, tile):
    return upscaled(network, x, network.scale, network.receptive_radius, tile)


@pytest.mark.parametrize("name", UPSCALERS)
@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize(
    ("size", "tile"),
    [
        ((40, 33), 16),  # a side that does not divide
        ((23, 40), 8),
        ((29, 31), 3),  # smaller than the halo
        ((17, 19), 1),
        ((32, 32), 16),
        ((9, 50), 16),  # lower than a tile
        ((5, 7), 16),  # smaller than a tile
        ((1, 1), 8),
        ((1, 37), 8),
        ((37, 1), 8),
        ((30, 20), 0),
    ],
)
def test_tiles_give_what_one_call_gives(name, scale, size, tile):
    network = tiny(name, scale)
    x = torch.randn(2, 3, *size)
    expected = network(x)
    found = in_tiles(network, x, tile)
    assert found.shape == expected.shape == (2, 3, size[0] * scale, size[1] * scale)
    assert expected.std() > 0.1
    assert (found - expected).abs().max() < 1e-5


def test_a_halo_that_is_one_pixel_too_narrow_shows():
    """So the test above can fail: the radius is needed in full."""
    network = tiny("rdn", 2)
    x = torch.randn(1, 3, 40, 40)
    found = upscaled(network, x, 2, network.receptive_radius - 1, 8)
    assert (found - network(x)).abs().max() > 1e-5


@pytest.mark.parametrize("length", [1, 2, 7, 16, 17, 31, 100])
@pytest.mark.parametrize("tile", [0, 1, 3, 16, 200])
@pytest.mark.parametrize("radius", [0, 2, 9, 40])
def test_spans_cover_the_side_once(length, tile, radius):
    found = spans(length, tile, radius)
    made = [place for span in found for place in range(span.start, span.stop)]
    assert made == list(range(length))
    assert len({span.window_stop - span.window_start for span in found}) == 1
    for span in found:
        assert tile == 0 or span.stop - span.start <= tile
        assert 0 <= span.window_start and span.window_stop <= length
        assert span.window_start == 0 or span.window_start <= span.start - radius
        assert span.window_stop == length or span.window_stop >= span.stop + radius


def test_no_more_is_read_than_a_window():
    network = tiny("rdn", 2)
    image = torch.randn(1, 3, 50, 60)
    largest = 0

    def read(rows, columns):
        nonlocal largest
        window = image[..., rows, columns]
        largest = max(largest, window.shape[2] * window.shape[3])
        return window

    radius = network.receptive_radius
    strips = list(upscaled_strips(network, read, (50, 60), 2, radius, 10))
    assert [strip.shape for strip in strips] == [(1, 3, 20, 120)] * 5
    assert largest == (10 + 2 * radius) ** 2


def test_whole_numbers_pass_through():
    """A network that takes and gives pixels, as files have them."""
    image = torch.arange(35, dtype=torch.uint8).view(1, 1, 5, 7)
    found = upscaled(torch.nn.Upsample(scale_factor=2), image, 2, 0, 3)
    assert found.dtype == torch.uint8
    assert torch.equal(found, image.repeat_interleave(2, -1).repeat_interleave(2, -2))


def test_a_tile_that_fits():
    assert fitting_tile((256, 256), 22, 256**2) == 0
    assert fitting_tile((64, 1000), 22, 256**2) == 0
    assert fitting_tile((4000, 6000), 22, 256**2) == 256 - 44
    assert fitting_tile((4000, 6000), 132, 256**2) == 132
    assert fitting_tile((4000, 6000), 0, 1) == 1


def test_sides_that_are_none():
    with pytest.raises(ValueError, match="cannot cut 0 pixels"):
        spans(0, 8, 2)
