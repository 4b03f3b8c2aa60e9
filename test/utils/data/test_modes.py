"""Opacity and 16 bits: read, kept, shown and written as they came in."""

import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from model.codecs import Grey16Codec, PixelCodec, build_codec
from utils.data import load_image_set
from utils.data.decode import decode
from utils.pictures import encoded_image, image_grid, save_image, to_picture
from utils.pixel_planes import shown_pixels

CHANCE = np.random.RandomState(0)


def transparent(side=16):
    pixels = CHANCE.randint(0, 256, (side, side, 4)).astype(np.uint8)
    pixels[: side // 2, :, 3] = 255
    pixels[-2:, :, 3] = 0
    return pixels


def grey_16(side=16):
    return CHANCE.randint(0, 65536, (side, side)).astype(np.uint16)


def value(planes):
    """(H,W,2) -> 0..65535."""
    return planes[..., 0].astype(int) * 256 + planes[..., 1]


# --- In and out again ---


def test_16_bits_beside_opacity_come_in_whole(tmp_path):
    """Pillow gives the high byte of such a PNG alone."""
    levels = grey_16()
    rows = b"".join(
        b"\0" + b"".join(int(level).to_bytes(2, "big") + b"\xff\xff" for level in row)
        for row in levels
    )

    def chunk(kind, data):
        return (
            len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")
        )

    header = (16).to_bytes(4, "big") * 2 + bytes([16, 4, 0, 0, 0])
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    file = tmp_path / "a.png"
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks))
    assert np.array_equal(value(decode(file, (16, 16), "I;16").pixels), levels)


def test_16_bits_come_out_as_they_came_in(tmp_path):
    levels = grey_16()
    Image.fromarray(levels).save(tmp_path / "a.png")
    planes = decode(tmp_path / "a.png", (16, 16), "I;16").pixels
    assert planes.shape == (16, 16, 2) and np.array_equal(value(planes), levels)
    pixels = torch.from_numpy(planes.transpose(2, 0, 1).copy())
    codec = Grey16Codec()
    x = codec.encode(pixels[None])
    assert x.shape == (1, 1, 16, 16) and x.abs().max() <= 1
    assert codec.shape((16, 16), 2) == (1, 16, 16)
    assert torch.equal(codec.decode(x)[0], pixels)
    save_image(to_picture(codec.decode(x)[0]), tmp_path / "b.png")
    with Image.open(tmp_path / "b.png") as back:
        assert back.mode == "I;16" and np.array_equal(np.asarray(back), levels)


def test_every_level_of_16_bits_survives_the_codec():
    levels = torch.arange(65536).view(1, 1, 256, 256)
    pixels = torch.cat([levels // 256, levels % 256], dim=1).to(torch.uint8)
    codec = build_codec({"name": "grey16"})
    assert torch.equal(codec.decode(codec.encode(pixels)), pixels)
    clamped = codec.decode(torch.tensor([-3.0, 3.0]).view(1, 1, 1, 2))
    assert clamped.flatten().tolist() == [0, 255, 0, 255]


def test_opacity_comes_out_as_it_came_in(tmp_path):
    """What is hardly seen keeps as many levels of colour as can be seen of it."""
    rgba = transparent()
    Image.fromarray(rgba).save(tmp_path / "a.png")
    planes = decode(tmp_path / "a.png", (16, 16), "RGBA").pixels
    assert planes.shape == (16, 16, 4)
    assert np.array_equal(planes[..., 3], rgba[..., 3])
    assert (planes[..., :3] <= planes[..., 3:]).all()
    pixels = torch.from_numpy(planes.transpose(2, 0, 1).copy())
    codec = PixelCodec()
    assert torch.equal(codec.decode(codec.encode(pixels[None]))[0], pixels)
    save_image(to_picture(pixels), tmp_path / "b.png")
    with Image.open(tmp_path / "b.png") as back:
        assert back.mode == "RGBA"
        found = np.asarray(back).astype(int)
    assert np.array_equal(found[..., 3], rgba[..., 3])
    opacity = rgba[..., 3:].astype(float)
    allowed = np.where(opacity > 0, 0.75 * 255 / np.maximum(opacity, 1) + 0.5, 255)
    assert (np.abs(found[..., :3] - rgba[..., :3]) <= allowed).all()
    assert np.array_equal(found[:8], rgba[:8])  # opaque


def test_a_viewer_shows_the_same(tmp_path):
    """On white, as read_image shows the file, up to a level."""
    Image.fromarray(transparent()).save(tmp_path / "a.png")
    planes = decode(tmp_path / "a.png", (16, 16), "RGBA").pixels
    shown = shown_pixels(torch.from_numpy(planes.transpose(2, 0, 1).copy()))
    expected = decode(tmp_path / "a.png", (16, 16)).pixels.transpose(2, 0, 1)
    assert np.abs(shown.numpy().astype(int) - expected).max() <= 1
    Image.fromarray(grey_16()).save(tmp_path / "b.png")
    planes = decode(tmp_path / "b.png", (16, 16), "I;16").pixels
    shown = shown_pixels(torch.from_numpy(planes.transpose(2, 0, 1).copy()))
    expected = decode(tmp_path / "b.png", (16, 16)).pixels[..., 0]
    assert np.abs(shown[0].numpy().astype(int) - expected).max() <= 1


# --- What the files may be ---


def test_other_files_in_these_modes(tmp_path):
    grey = CHANCE.randint(0, 256, (8, 8)).astype(np.uint8)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    assert np.array_equal(
        value(decode(tmp_path / "grey.png", (8, 8), "I;16").pixels), grey.astype(int) * 257
    )
    opaque = decode(tmp_path / "grey.png", (8, 8), "RGBA").pixels
    assert (opaque[..., 3] == 255).all() and np.array_equal(opaque[..., 0], grey)
    colour = CHANCE.randint(0, 256, (8, 8, 3)).astype(np.uint8)
    Image.fromarray(colour).save(tmp_path / "colour.png")
    luma = np.asarray(Image.fromarray(colour).convert("L")).astype(int)
    found = value(decode(tmp_path / "colour.png", (8, 8), "I;16").pixels)
    assert np.array_equal(found, luma * 257)


def test_a_scaled_edge_has_no_halo(tmp_path):
    """Half red, half nothing (with green below it): scaled, no green comes out."""
    rgba = np.zeros((32, 32, 4), np.uint8)
    rgba[:, :16] = (255, 0, 0, 255)
    rgba[:, 16:] = (0, 255, 0, 0)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    planes = decode(tmp_path / "a.png", (12, 12), "RGBA").pixels
    assert planes[..., 1].max() == 0 and planes[..., 2].max() == 0
    picture = np.asarray(to_picture(torch.from_numpy(planes.transpose(2, 0, 1).copy())))
    seen = picture[picture[..., 3] > 0]
    assert (seen[:, 0] == 255).all() and (seen[:, 1] == 0).all()


def test_a_scaled_16_bit_image_keeps_its_levels(tmp_path):
    ramp = np.tile(np.linspace(1000, 60000, 64).astype(np.uint16), (64, 1))
    Image.fromarray(ramp).save(tmp_path / "a.png")
    found = value(decode(tmp_path / "a.png", (16, 16), "I;16").pixels)[8]
    expected = ramp[0].reshape(16, 4).mean(1)
    assert np.abs(found[2:-2] - expected[2:-2]).max() < 30
    assert len(set(found.tolist())) == 16


# --- The set ---


@pytest.mark.parametrize("cache", ["auto", "ram", "none"])
@pytest.mark.parametrize(("mode", "planes"), [("RGBA", 4), ("I;16", 2)])
def test_a_set_in_these_modes(tmp_path, mode, planes, cache):
    root = tmp_path / "images"
    root.mkdir()
    for i in range(3):
        pixels = transparent(8) if mode == "RGBA" else grey_16(8)
        Image.fromarray(pixels).save(root / f"{i}.png")
    for _ in range(2):  # the second time from the cache
        found = load_image_set(
            root, (8, 8), None, mode=mode, cache=cache, quiet=True, cache_folder=tmp_path / "cache"
        )
        assert found.mode == mode and found.channels == planes
        for i in range(3):
            pixels, _, _ = found[i]
            expected = decode(root / f"{i}.png", (8, 8), mode).pixels.transpose(2, 0, 1)
            assert np.array_equal(pixels.numpy(), expected)
    prints = {
        load_image_set(root, (8, 8), None, mode=each, cache="ram", quiet=True).fingerprint()
        for each in (mode, "RGB", "L")
    }
    assert len(prints) == 3


# --- Files of other formats, and grids ---


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
@pytest.mark.parametrize("planes", [2, 4])
def test_every_format_takes_them(suffix, planes):
    pixels = torch.randint(0, 256, (planes, 8, 8), dtype=torch.uint8)
    if planes == 4:
        pixels[:3] = torch.minimum(pixels[:3], pixels[3:])
    data = encoded_image(to_picture(pixels), suffix)
    assert len(data) > 50
    grid = image_grid(pixels[None].expand(3, -1, -1, -1), 2)
    assert grid.mode == ("L" if planes == 2 else "RGB")
