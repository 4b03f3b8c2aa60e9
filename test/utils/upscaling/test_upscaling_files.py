"""A file's picture stays what it is: colour space, depth, opacity, rotation, profile, EXIF.

The network of these tests repeats each pixel, so that every second sample must be that of the
source, to the bit.
"""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from picture_files import chunk, cmyk_profile, grey_profile, png, rgb_profile
from PIL import ExifTags, Image, ImageOps
from PIL.TiffImagePlugin import IFDRational
from torchvision.io import ImageReadMode, decode_png
from upscaling_helpers import CPU, Nearest

from utils.data import read_image
from utils.data.opening import upright_size
from utils.errors import UserError
from utils.upscaling import Upscaler
from utils.upscaling.file import plan_output, write_upscaled
from utils.upscaling.output import PNG, Canvas, new_picture, reason_against
from utils.upscaling.source import FIRST_ALONE, NOT_16_BITS, NOW_SRGB, read_source

# torchvision announces another package for what it does here.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torchvision")

PROFILE = rgb_profile(np.eye(3) / 3, 1.8)
NAME, CAMERA = "Émile".encode().decode("latin-1"), "camera"


def noise(*shape, largest=255):
    dtype = np.uint8 if largest == 255 else np.uint16
    return np.random.default_rng(0).integers(0, largest + 1, shape).astype(dtype)


def enlarged(tmp_path, data, ending=PNG, scale=2):
    """The file that becomes of these bytes: its path, what it holds and what is said of it."""
    source = tmp_path / f"source{ending}"
    source.write_bytes(data)
    maker = Upscaler(Nearest(3, scale), CPU, tile=5)
    target = tmp_path / "out" / f"result{ending}"
    picture = read_source(source)
    output = plan_output(picture, scale, target, target.with_suffix(PNG))
    write_upscaled(picture, maker, output)
    return output


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def samples_of(path):
    """The samples of an 8-bit file as they are stored, every second one."""
    image = Image.open(path)
    return image.mode, np.asarray(image)[::2, ::2]


def samples_of_16_bits(path):
    buffer = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
    return decode_png(buffer, ImageReadMode.UNCHANGED).permute(1, 2, 0).numpy()[::2, ::2]


# --- Modes ---


MODES_OF_KINDS = [(kind, mode) for kind in ("PNG", "TIFF") for mode in ("L", "LA", "RGB", "RGBA")]
MODES_OF_KINDS += [("BMP", "L"), ("BMP", "RGB"), ("WEBP", "RGB"), ("WEBP", "RGBA")]


@pytest.mark.parametrize(("kind", "mode"), MODES_OF_KINDS)
def test_modes_of_8_bits(tmp_path, kind, mode):
    channels = len(mode)
    image = Image.fromarray(noise(13, 11, channels).squeeze(), mode)
    if kind == "WEBP" and mode == "RGBA":
        image.putalpha(Image.fromarray(noise(13, 11) | 1))  # else the colour is lost
    options = {"lossless": True} if kind == "WEBP" else {}
    written = enlarged(tmp_path, saved(image, kind, **options), f".{kind.lower()}")
    assert written.remarks == [] and written.canvas.size == (26, 22)
    found_mode, found = samples_of(written.path)
    assert Image.open(written.path).format == kind and found_mode == mode
    pixels, unseen = np.asarray(image), None
    if mode in ("LA", "RGBA"):
        unseen = pixels[..., -1] == 0
        pixels = np.where(unseen[..., None], 0, pixels)  # what nobody sees is black
    assert np.array_equal(found, pixels)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_jpeg_is_jpeg(tmp_path, mode):
    y, x = np.mgrid[:40, :50]
    ramp = np.stack([3 * x, 4 * y, 2 * x + 2 * y], axis=-1).astype(np.uint8)
    image = Image.fromarray(ramp).convert(mode)
    written = enlarged(tmp_path, saved(image, "JPEG", quality=95), ".jpg")
    found_mode, found = samples_of(written.path)
    assert Image.open(written.path).format == "JPEG" and found_mode == mode
    assert np.abs(found.astype(int) - np.asarray(image)).mean() < 4


def test_black_and_white_and_palettes(tmp_path):
    image = Image.fromarray(noise(9, 8) > 127)
    assert image.mode == "1"
    mode, found = samples_of(enlarged(tmp_path, saved(image, "PNG")).path)
    assert mode == "L" and np.array_equal(found, np.asarray(image) * np.uint8(255))

    palette = Image.fromarray(noise(9, 8) % 4, "P")
    colours = [10, 20, 30, 200, 100, 0, 0, 0, 0, 255, 255, 255]
    palette.putpalette(colours)
    mode, found = samples_of(enlarged(tmp_path, saved(palette, "PNG")).path)
    table = np.array(colours, np.uint8).reshape(-1, 3)
    assert mode == "RGB" and np.array_equal(found, table[np.asarray(palette)])

    written = enlarged(tmp_path, saved(palette, "GIF", transparency=1), ".gif")
    mode, found = samples_of(written.path)
    is_seen = np.asarray(palette) != 1
    assert written.path.suffix == PNG
    assert written.remarks == ["written as PNG: .gif cannot be written"]
    assert mode == "RGBA" and np.array_equal(found[..., 3], is_seen * np.uint8(255))
    assert np.array_equal(found[..., :3][is_seen], table[np.asarray(palette)][is_seen])


def test_a_transparent_colour(tmp_path):
    """tRNS of grey and RGB pictures, of 8 and 16 bits: one colour, to the last bit."""
    grey = noise(6, 8) % 3
    data = png(grey, 8, 0, chunk(b"tRNS", struct.pack(">H", 2)))
    mode, found = samples_of(enlarged(tmp_path, data).path)
    assert mode == "LA" and np.array_equal(found[..., 1], (grey != 2) * np.uint8(255))
    assert np.array_equal(found[..., 0], grey * (grey != 2))

    deep = np.full((4, 5, 3), 1000, ">u2")
    deep[1, 2] = (1000, 1000, 1001)  # differs in a low byte
    key = chunk(b"tRNS", struct.pack(">3H", 1000, 1000, 1000))
    written = enlarged(tmp_path, png(deep.view(np.uint8).reshape(4, -1), 16, 2, key))
    found = samples_of_16_bits(written.path)
    assert found.shape == (4, 5, 4) and (found[..., 3] > 0).sum() == 1
    assert found[1, 2].tolist() == [1000, 1000, 1001, 65535]


def test_opacity_multiplied_in(tmp_path):
    """A TIFF with associated alpha."""
    image = Image.new("RGBA", (6, 5), (200, 100, 50, 128))
    data = bytearray(saved(image, "TIFF", compression="raw"))
    data = data.replace(bytes([200, 100, 50, 128]), bytes([100, 50, 25, 128]))
    place = data.index(struct.pack("<HHI", 338, 3, 1)) + 8
    assert data[place] == 2
    data[place] = 1
    mode, found = samples_of(enlarged(tmp_path, bytes(data), ".tif").path)
    assert mode == "RGBA"
    assert np.abs(found.astype(int) - (200, 100, 50, 128)).max() <= 1


@pytest.mark.parametrize("profile", [None, cmyk_profile()])
def test_inks_become_srgb(tmp_path, profile):
    image = Image.new("CMYK", (8, 8), (40, 80, 120, 10))
    options = {"icc_profile": profile} if profile else {}
    data = saved(image, "TIFF", **options)
    written = enlarged(tmp_path, data, ".tif")
    mode, found = samples_of(written.path)
    assert written.remarks == [NOW_SRGB] and mode == "RGB"
    assert np.array_equal(found, read_image(tmp_path / "source.tif", (8, 8)))
    assert "icc_profile" not in Image.open(written.path).info


# --- 16 bits ---


@pytest.mark.parametrize(("channels", "colour_type"), [(1, 0), (2, 4), (3, 2), (4, 6)])
def test_png_of_16_bits(tmp_path, channels, colour_type):
    deep = noise(9, 7, channels, largest=65535)
    if channels in (2, 4):
        deep[..., -1] = 65535
    rows = deep.astype(">u2").view(np.uint8).reshape(9, -1)
    gamma = chunk(b"gAMA", struct.pack(">I", 45455))
    text = chunk(b"zTXt", b"Comment\0\0damaged")
    written = enlarged(tmp_path, png(rows, 16, colour_type, gamma, text))
    assert written.remarks == []
    found = samples_of_16_bits(written.path)
    assert found.dtype == np.uint16 and np.array_equal(found, deep)


def test_png_of_16_bits_with_half_opacity(tmp_path):
    deep = noise(9, 7, 4, largest=65535)
    deep[..., 3] = np.maximum(deep[..., 3], 20000)
    written = enlarged(tmp_path, png(deep.astype(">u2").view(np.uint8).reshape(9, -1), 16, 6))
    found = samples_of_16_bits(written.path).astype(int)
    assert np.abs(found - deep).max() <= 1


def deep_tiff(samples, order, packed, alpha=None):
    """A TIFF of (H,W,3 or 4) uint16, uncompressed or packed by zlib."""
    height, width, channels = samples.shape
    data = samples.astype(f"{order}u2").tobytes()
    data = zlib.compress(data) if packed else data
    numbers = [(256, 4, width), (257, 4, height), (258, 3, None), (259, 3, 8 if packed else 1)]
    numbers += [(262, 3, 2), (273, 4, 8), (277, 3, channels), (278, 4, height)]
    numbers += [(279, 4, len(data))] + ([(338, 3, alpha)] if alpha is not None else [])
    table = struct.pack(f"{order}H", len(numbers))
    after = 8 + len(data) + 2 + 12 * len(numbers) + 4
    for tag, kind, value in numbers:
        count = channels if value is None else 1
        table += struct.pack(f"{order}HHI", tag, kind, count)
        if value is None:
            table += struct.pack(f"{order}I", after)
        else:
            table += struct.pack(f"{order}" + ("HH" if kind == 3 else "I"), *[value, 0][: 5 - kind])
    table += bytes(4) + struct.pack(f"{order}{channels}H", *[16] * channels)
    mark = b"II*\0" if order == "<" else b"MM\0*"
    return mark + struct.pack(f"{order}I", 8 + len(data)) + data + table


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("channels", [3, 4])
def test_tiff_of_16_bits_becomes_png(tmp_path, order, packed, channels):
    deep = noise(8, 9, channels, largest=65535)
    if channels == 4:
        deep[..., 3] = 65535
    data = deep_tiff(deep, order, packed, alpha=2 if channels == 4 else None)
    written = enlarged(tmp_path, data, ".tif")
    assert written.path.name == "result.png"
    assert len(written.remarks) == 1 and "of 16 bits" in written.remarks[0]
    assert np.array_equal(samples_of_16_bits(written.path), deep)


def test_tiff_of_16_bits_that_is_read_as_8(tmp_path):
    """With associated alpha Pillow divides by the opacity, in 8 bits: that is said."""
    deep = noise(8, 9, 4, largest=65535)
    deep[..., 3] = 65535
    written = enlarged(tmp_path, deep_tiff(deep, "<", False, alpha=1), ".tif")
    assert written.remarks == [NOT_16_BITS] and written.path.suffix == ".tif"
    assert np.array_equal(samples_of(written.path)[1], deep >> 8)


@pytest.mark.parametrize("ending", [".png", ".tif", ".pgm"])
def test_grey_of_16_bits(tmp_path, ending):
    deep = noise(8, 9, largest=65535)
    kind = {".png": "PNG", ".tif": "TIFF", ".pgm": "PPM"}[ending]
    written = enlarged(tmp_path, saved(Image.fromarray(deep), kind), ending)
    image = Image.open(written.path)
    assert written.path.suffix == (".tif" if ending == ".tif" else PNG)
    assert image.mode == "I;16" and np.array_equal(np.asarray(image)[::2, ::2], deep)


# --- Rotation, profile, EXIF ---


def exif_block(orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    exif[ExifTags.Base.Model] = CAMERA
    exif.get_ifd(ExifTags.IFD.Exif).update({0xA002: 7, 0xA003: 9, 0x829A: IFDRational(1, 50)})
    return exif


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_upright(tmp_path, orientation, kind):
    image = Image.fromarray(noise(9, 7, 3))
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95, "subsampling": 0}}.get(kind, {})
    data = saved(image, kind, exif=exif_block(orientation).tobytes(), **options)
    written = enlarged(tmp_path, data, f".{kind.lower()}")
    found = Image.open(written.path)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert found.size == (upright.width * 2, upright.height * 2)
    assert upright_size(tmp_path / f"source.{kind.lower()}") == (upright.height, upright.width)
    difference = np.asarray(found)[::2, ::2].astype(int) - np.asarray(upright)
    assert np.abs(difference).max() <= (60 if kind == "JPEG" else 0)
    exif = found.getexif()
    assert exif[ExifTags.Base.Model] == CAMERA
    assert ExifTags.Base.Orientation not in exif
    inner = exif.get_ifd(ExifTags.IFD.Exif)
    assert set(inner) == {0x829A} and float(inner[0x829A]) == 0.02


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG", "BMP"])
def test_the_profile_is_kept_and_not_applied(tmp_path, kind):
    image = Image.new("RGB", (8, 8), (60, 180, 90))
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95, "subsampling": 0}}.get(kind, {})
    data = saved(image, kind, icc_profile=PROFILE, **options)
    written = enlarged(tmp_path, data, f".{kind.lower()}")
    found = Image.open(written.path)
    assert found.info.get("icc_profile") == (None if kind == "BMP" else PROFILE)
    assert np.abs(np.asarray(found).astype(int) - (60, 180, 90)).max() <= (
        2 if kind == "JPEG" else 0
    )


def test_a_grey_profile_and_one_made_of_numbers(tmp_path):
    grey = Image.fromarray(noise(8, 8))
    written = enlarged(tmp_path, saved(grey, "PNG", icc_profile=grey_profile(1.4)))
    assert Image.open(written.path).info["icc_profile"] == grey_profile(1.4)
    # gAMA alone: a viewer shows the same colours before and after
    rows = np.tile(np.array([0, 60, 120, 180, 240], np.uint8), (5, 1))
    written = enlarged(tmp_path, png(rows, 8, 0, chunk(b"gAMA", struct.pack(">I", 100_000))))
    before = read_image(tmp_path / "source.png", (5, 5)).astype(int)
    after = read_image(written.path, (10, 10)).astype(int)
    assert np.abs(before - rows[..., None]).max() > 10
    assert np.abs(after[::2, ::2] - before).max() <= 1


def test_damaged_exif_is_left_out(tmp_path):
    image = Image.fromarray(noise(8, 8, 3))
    written = enlarged(tmp_path, saved(image, "JPEG", exif=b"Exif\0\0II*\0" + b"\xff" * 40), ".jpg")
    assert len(Image.open(written.path).getexif()) == 0


def test_an_animation_gives_its_first_picture(tmp_path):
    frames = [Image.fromarray(noise(8, 8, 3)), Image.new("RGB", (8, 8), "red")]
    data = saved(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    written = enlarged(tmp_path, data, ".webp")
    assert written.remarks == [FIRST_ALONE]
    assert np.array_equal(samples_of(written.path)[1], np.asarray(frames[0]))


# --- What a format can hold, and half files ---


@pytest.mark.parametrize(
    ("ending", "canvas", "reason"),
    [
        (".png", Canvas((10**6, 10**6), 4, 16), ""),
        (".jpg", Canvas((100, 100), 3, 8, b"profile"), ""),
        (".jpg", Canvas((100, 100), 4, 8), ".jpg cannot hold colour with opacity of 8 bits"),
        (".jpeg", Canvas((100, 100), 3, 16), ".jpeg cannot hold colour of 16 bits"),
        (".jpg", Canvas((65_501, 100), 3, 8), ".jpg cannot hold sides above 65,500 pixels"),
        (".jpg", Canvas((10_001, 10_000), 1, 8), ".jpg is written for up to 100 million pixels"),
        (".webp", Canvas((100, 16_384), 3, 8), ".webp cannot hold sides above 16,383 pixels"),
        (".webp", Canvas((100, 100), 1, 8), ".webp cannot hold grey of 8 bits"),
        (".bmp", Canvas((100, 100), 3, 8), ""),
        (".bmp", Canvas((100, 100), 3, 8, b"profile"), ".bmp cannot hold a colour profile"),
        (".tiff", Canvas((100, 100), 1, 16), ""),
        (".tif", Canvas((100, 100), 3, 16), ".tif cannot hold colour of 16 bits"),
        ("", Canvas((100, 100), 3, 8), "files without an ending cannot be written"),
    ],
)
def test_what_a_format_can_hold(ending, canvas, reason):
    assert reason_against(ending, canvas) == reason


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_after_an_error_there_is_no_file(tmp_path, name, error):
    (tmp_path / name).write_bytes(b"before")
    with pytest.raises(error), new_picture(tmp_path / name, Canvas((4, 4), 3, 8)) as writer:
        writer.write(np.zeros((2, 4, 3), np.uint8))
        raise error
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"before"]


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif"])
def test_a_full_disk_is_one_sentence(tmp_path, name, monkeypatch):
    class FullDisk(io.BytesIO):
        def write(self, data):
            raise OSError(28, "No space left on device")

    def open_full(path, mode):
        path.touch()
        return FullDisk()

    monkeypatch.setattr("utils.upscaling.output.open", open_full, raising=False)
    with pytest.raises(UserError, match=f"cannot write .*{name}: No space left on device"):
        with new_picture(tmp_path / name, Canvas((2, 4), 3, 8)) as writer:
            writer.write(np.zeros((2, 4, 3), np.uint8))
    assert list(tmp_path.iterdir()) == []
