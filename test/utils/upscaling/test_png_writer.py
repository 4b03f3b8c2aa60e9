"""What is written strip by strip comes back to the bit, in two other libraries."""

import io

import numpy as np
import pytest
import torch
from picture_files import rgb_profile
from PIL import ExifTags, Image
from torchvision.io import ImageReadMode, decode_png

from utils.upscaling.png_writer import PngWriter

# torchvision announces another package for what it does here.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torchvision")

MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


def samples(height, width, channels, depth):
    """A picture with noise, flat parts and ramps, so that each filter is chosen somewhere."""
    noise = np.random.default_rng(0).integers(0, 2**depth, (height, width, channels))
    y, x = np.mgrid[:height, :width]
    ramp = (x * 5 + y * 3)[..., None] * (1 + np.arange(channels)) * (1 if depth == 8 else 257)
    rows = np.arange(height)[:, None, None] % 3
    picture = np.where(rows == 0, noise, np.where(rows == 1, ramp, 77)) % 2**depth
    return picture.astype(np.uint8 if depth == 8 else np.uint16)


def written(picture, strip, **about):
    height, width, channels = picture.shape
    file = io.BytesIO()
    writer = PngWriter(file, (height, width), channels, picture.dtype.itemsize * 8, **about)
    for start in range(0, height, strip):
        writer.write(picture[start : start + strip])
    writer.finish()
    return file.getvalue()


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (37, 23), (64, 70)])
@pytest.mark.parametrize("strip", [1, 5, 1000])
def test_to_the_bit(channels, depth, size, strip):
    picture = samples(*size, channels, depth)
    data = written(picture, strip)
    buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    read = decode_png(buffer, ImageReadMode.UNCHANGED).permute(1, 2, 0).numpy()
    assert read.dtype == picture.dtype and np.array_equal(read, picture)
    image = Image.open(io.BytesIO(data))
    image.load()
    assert image.size == size[::-1]
    if depth == 8:
        assert image.mode == MODES[channels]
        assert np.array_equal(np.asarray(image).reshape(picture.shape), picture)
    if depth == 16 and channels == 1:
        assert image.mode == "I;16" and np.array_equal(np.asarray(image), picture[..., 0])


def test_large_rows_and_views(monkeypatch):
    """Rows wider than what is filtered at once, and arrays that are not contiguous."""
    monkeypatch.setattr("utils.upscaling.png_writer.BYTES_FILTERED_AT_ONCE", 100)
    picture = samples(20, 70, 3, 16)
    mirrored = picture[::-1, ::-1]
    assert written(mirrored, 7) == written(np.ascontiguousarray(mirrored), 20)


def test_filters_make_it_smaller():
    """A smooth picture takes about as much as Pillow's, which has all filters of libpng."""
    y, x = np.mgrid[:200, :300]
    waves = [np.sin(x / 40 + c) * np.cos(y / 30 - c) for c in range(3)]
    picture = (127 + 100 * np.stack(waves, axis=-1)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    assert len(written(picture, 32)) < 1.1 * len(buffer.getvalue())


def test_profile_and_exif():
    profile = rgb_profile(np.eye(3), 1.8)
    exif = Image.Exif()
    exif[ExifTags.Base.Artist] = "somebody"
    data = written(samples(4, 4, 3, 8), 4, profile=profile, exif=exif.tobytes()[6:])
    image = Image.open(io.BytesIO(data))
    assert image.info["icc_profile"] == profile
    assert image.getexif()[ExifTags.Base.Artist] == "somebody"


def test_rows_that_do_not_fit():
    writer = PngWriter(io.BytesIO(), (3, 4), 3, 8)
    with pytest.raises(ValueError, match="bytes for"):
        writer.write(np.zeros((1, 5, 3), np.uint8))
    writer.write(np.zeros((2, 4, 3), np.uint8))
    with pytest.raises(ValueError, match="1 rows are missing"):
        writer.finish()
    with pytest.raises(ValueError, match="bytes for"):
        writer.write(np.zeros((2, 4, 3), np.uint8))
