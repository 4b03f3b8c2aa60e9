"""What a file says of its numbers is read: expected values come from formulas."""

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from helpers import ROOT
from picture_files import (
    chunk,
    cmyk_profile,
    grey_profile,
    png,
    rgb_profile,
    tiff,
)
from PIL import Image, ImageCms, PngImagePlugin

from utils.data import read_image
from utils.data.decode import decode
from utils.data.jpeg import scans_of

RAMP = np.tile(np.array([0, 1, 36, 73, 128, 182, 254, 255]), (8, 1))
RED = np.tile(np.array([200, 50, 50], np.uint8), (8, 8))
# XYZ under D50 of the primaries (Bradford), as the profiles of Display P3 and Adobe RGB have them
P3 = np.array(
    [[0.51512, 0.2412, -0.00105], [0.29198, 0.69225, 0.04189], [0.1571, 0.06657, 0.78407]]
)
ADOBE = np.array(
    [[0.60974, 0.31111, 0.01947], [0.20528, 0.62567, 0.06087], [0.14919, 0.06322, 0.74457]]
)
SRGB = np.array(
    [[0.43607, 0.22249, 0.01392], [0.38515, 0.71687, 0.09708], [0.14307, 0.06061, 0.7141]]
)


def encode(light):
    """Light 0..1 -> sRGB 0..255."""
    light = np.clip(light, 0, 1)
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def shown(colour, columns, gamma):
    """What a viewer shows of an RGB colour 0..255 of a space, by its primaries."""
    light = (np.array(colour) / 255) ** gamma
    return encode(np.linalg.solve(SRGB.T, columns.T @ light))


def read_bytes(tmp_path, data, size=(8, 8), name="a"):
    (tmp_path / name).write_bytes(data)
    return read_image(tmp_path / name, size).astype(int)


def read_saved(tmp_path, image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return read_bytes(tmp_path, buffer.getvalue(), image.size[::-1])


# --- Profiles ---


@pytest.mark.parametrize("columns", [P3, ADOBE], ids=["P3", "Adobe RGB"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_profiles_of_rgb(tmp_path, columns, kind):
    gamma = 563 / 256
    colour = (60, 180, 90)
    options = {"icc_profile": rgb_profile(columns, gamma)}
    if kind in ("JPEG", "WEBP"):
        options |= {"quality": 100}
    image = Image.new("RGB", (16, 16), colour)
    pixels = read_saved(tmp_path, image, kind, **options)
    error = np.abs(pixels - shown(colour, columns, gamma))
    assert error.max() <= (1.01 if kind in ("PNG", "TIFF") else 4)
    assert np.abs(pixels - colour).max() > 10


def test_a_profile_of_srgb_changes_nothing(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = Image.fromarray(noise)
    assert np.array_equal(read_saved(tmp_path, image, icc_profile=profile), noise)


@pytest.mark.parametrize("gamma", [1.0, 1.8, 2.2])
@pytest.mark.parametrize("bits", [8, 16])
def test_profiles_of_grey(tmp_path, gamma, bits):
    levels = np.arange(256).reshape(16, 16)
    if bits == 16:
        image = Image.fromarray((levels * 257).astype(np.uint16))
    else:
        image = Image.fromarray(levels.astype(np.uint8))
    pixels = read_saved(tmp_path, image, icc_profile=grey_profile(gamma))
    exact_gamma = round(gamma * 256) / 256
    expected = encode((levels / 255) ** exact_gamma)
    assert np.abs(pixels - expected[..., None]).max() <= 1.01
    assert (pixels == pixels[..., :1]).all()  # stays grey


def test_16_bits_in_linear_light_keep_their_shadows(tmp_path):
    levels = np.arange(256).reshape(16, 16)  # the lowest of 65536
    image = Image.fromarray(levels.astype(np.uint16))
    pixels = read_saved(tmp_path, image, icc_profile=grey_profile(1.0))
    assert np.abs(pixels[..., 0] - encode(levels / 65535)).max() <= 1.01
    assert pixels.max() > 10


def test_grey_pixels_with_a_profile_of_a_screen(tmp_path):
    image = Image.fromarray(RAMP.astype(np.uint8))
    pixels = read_saved(tmp_path, image, "JPEG", quality=100, icc_profile=rgb_profile(P3, 1.0))
    assert np.abs(pixels[0, 3] - encode(73 / 255)).max() <= 3


def test_profiles_of_cmyk(tmp_path):
    inks = Image.new("CMYK", (8, 8), (200, 30, 90, 10))
    for kind in ("TIFF", "JPEG"):
        pixels = read_saved(tmp_path, inks, kind, icc_profile=cmyk_profile())
        target = ImageCms.createProfile("sRGB")
        source = io.BytesIO(cmyk_profile())
        expected = ImageCms.profileToProfile(inks, source, target, outputMode="RGB")
        assert np.abs(pixels - np.asarray(expected)).max() <= (0 if kind == "TIFF" else 4)
        assert np.abs(pixels - np.asarray(inks.convert("RGB"))).max() > 20


@pytest.mark.parametrize(
    "profile",
    [b"nonsense", rgb_profile(P3, 2.2)[:300], grey_profile(1.0), cmyk_profile()],
    ids=["nonsense", "cut off", "for grey", "for CMYK"],
)
def test_a_profile_that_cannot_be_used_is_ignored(tmp_path, profile):
    image = Image.new("RGB", (8, 8), (60, 180, 90))
    for kind in ("PNG", "TIFF"):
        pixels = read_saved(tmp_path, image, kind, icc_profile=profile)
        assert (pixels == (60, 180, 90)).all()


def test_lab_pixels(tmp_path):
    pixels = read_saved(tmp_path, Image.new("LAB", (8, 8), (138, 128, 128)), "TIFF")
    lightness = 138 / 2.55
    expected = encode(((lightness + 16) / 116) ** 3)
    assert np.abs(pixels - expected).max() <= 1.5


# --- Colours that a PNG describes by numbers ---


def test_gamma_and_primaries_of_a_png(tmp_path):
    linear = chunk(b"gAMA", (100_000).to_bytes(4, "big"))
    pixels = read_bytes(tmp_path, png(RED, 8, 2, linear))
    assert np.abs(pixels - encode(np.array([200, 50, 50]) / 255)).max() <= 1.5
    usual = chunk(b"gAMA", (45_455).to_bytes(4, "big"))
    assert (read_bytes(tmp_path, png(RED, 8, 2, usual))[0, 0] == (200, 50, 50)).all()
    is_srgb = chunk(b"sRGB", b"\0")
    assert (read_bytes(tmp_path, png(RED, 8, 2, linear, is_srgb))[0, 0] == (200, 50, 50)).all()
    xy = [31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000]
    primaries = chunk(b"cHRM", b"".join(number.to_bytes(4, "big") for number in xy))
    colour = np.tile(np.array([60, 180, 90], np.uint8), (8, 8))
    wide = read_bytes(tmp_path, png(colour, 8, 2, primaries))[0, 0]
    assert np.abs(wide - (0, 185, 77)).max() <= 2


def test_gamma_of_a_grey_png(tmp_path):
    linear = chunk(b"gAMA", (100_000).to_bytes(4, "big"))
    for bits, samples in ((8, RAMP), (16, RAMP), (16, RAMP * 257)):  # the second: deep shadows
        pixels = read_bytes(tmp_path, png(packed(samples, bits), bits, 0, linear))
        expected = encode(samples / (2**bits - 1))
        assert np.abs(pixels - expected[..., None]).max() <= 1.01
        assert (pixels == pixels[..., :1]).all()


def test_cicp_of_a_png(tmp_path):
    colour = np.tile(np.array([60, 180, 90], np.uint8), (8, 8))
    display_p3 = chunk(b"cICP", bytes([12, 13, 0, 1]))
    assert (
        np.abs(read_bytes(tmp_path, png(colour, 8, 2, display_p3))[0, 0] - (0, 185, 77)).max() <= 2
    )
    plain = chunk(b"cICP", bytes([1, 13, 0, 1]))
    assert (read_bytes(tmp_path, png(colour, 8, 2, plain))[0, 0] == (60, 180, 90)).all()
    with pytest.raises(ValueError, match="high-dynamic-range"):
        read_bytes(tmp_path, png(colour, 8, 2, chunk(b"cICP", bytes([9, 16, 0, 1]))))
    with pytest.raises(ValueError, match="high-dynamic-range"):  # primaries that nobody named
        read_bytes(tmp_path, png(colour, 8, 2, chunk(b"cICP", bytes([2, 18, 0, 1]))))


# --- Numbers ---


def packed(samples, bits):
    """(H,W) -> (H, bytes) of samples of 1, 2, 4, 8 or 16 bits."""
    if bits == 16:
        return samples.astype(">u2").view(np.uint8)
    planes = [(samples >> bit) & 1 for bit in reversed(range(bits))]
    return np.packbits(np.stack(planes, -1).reshape(len(samples), -1).astype(np.uint8), axis=1)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_png_bit_depths_and_their_transparent_key(tmp_path, bits):
    largest = 2**bits - 1
    samples = np.tile(np.linspace(0, largest, 8).round().astype(int), (8, 1))
    expected = (samples * 255 / largest).round()
    assert np.array_equal(
        read_bytes(tmp_path, png(packed(samples, bits), bits, 0))[..., 0], expected
    )
    key = int(samples[0, 2])
    for with_noise in (key, key | (0xFFFF ^ largest)):  # bits above the depth mean nothing
        transparent = chunk(b"tRNS", with_noise.to_bytes(2, "big"))
        pixels = read_bytes(tmp_path, png(packed(samples, bits), bits, 0, transparent))[..., 0]
        assert np.array_equal(pixels, np.where(samples == key, 255, expected))


def test_transparent_key_of_8_bit_rgb(tmp_path):
    samples = np.tile(np.array([255, 0, 7], np.uint8), (8, 8))
    samples[0, :3] = 254, 0, 7
    key = chunk(b"tRNS", bytes.fromhex("FFFF FF00 0007"))
    pixels = read_bytes(tmp_path, png(samples, 8, 2, key))
    assert (pixels[1:] == 255).all() and (pixels[0, 0] == (254, 0, 7)).all()


def test_transparent_key_of_16_bit_rgb(tmp_path):
    samples = np.zeros((8, 8, 3), int)
    samples[...] = 0x1234, 0x5678, 0x9ABC
    samples[0, 0] = 0x1235, 0x5678, 0x9ABC  # the same high bytes
    rows = samples.astype(">u2").view(np.uint8).reshape(8, -1)
    key = chunk(b"tRNS", bytes.fromhex("123456789ABC"))
    pixels = read_bytes(tmp_path, png(rows, 16, 2, key))
    assert (pixels[1:] == 255).all() and (pixels[0, 0] == (0x12, 0x56, 0x9A)).all()


def test_opacity_in_16_bits_and_in_palettes(tmp_path):
    samples = np.zeros((8, 8, 4), ">u2")
    samples[..., 0], samples[..., 3] = 65535, 0x8000
    pixels = read_bytes(tmp_path, png(samples.view(np.uint8).reshape(8, -1), 16, 6))
    assert np.abs(pixels[0, 0] - (255, 127, 127)).max() <= 1
    grey = np.zeros((8, 8, 2), ">u2")
    assert read_bytes(tmp_path, png(grey.view(np.uint8).reshape(8, -1), 16, 4)).min() == 255
    colours = chunk(b"PLTE", bytes([0, 0, 0, 200, 50, 50]))
    rows = np.array([[0b01010101]] * 8, np.uint8)
    pixels = read_bytes(tmp_path, png(rows, 1, 3, colours, chunk(b"tRNS", b"\0")))
    assert (pixels[0, 0] == 255).all() and (pixels[0, 1] == (200, 50, 50)).all()


@pytest.mark.parametrize("is_whole", [True, False])
def test_beside_the_frame_of_a_gif_there_is_nothing(tmp_path, is_whole):
    picture = Image.new("P", (4, 4), 1)
    picture.putpalette([255, 0, 0, 0, 0, 255])
    buffer = io.BytesIO()
    picture.save(buffer, "GIF", optimize=False)
    data = bytearray(buffer.getvalue())
    data[6:10] = struct.pack("<HH", 8, 8)  # the screen
    place = data.index(b"\x2c\0\0\0\0\4\0\4\0")
    data[place + 1 : place + 5] = struct.pack("<HH", 2, 3)
    if is_whole:
        data[6:10] = struct.pack("<HH", 4, 4)
        data[place + 1 : place + 5] = bytes(4)
    pixels = read_bytes(tmp_path, bytes(data), (4, 4) if is_whole else (8, 8))
    expected = np.full((8, 8, 3), 255)
    expected[3:7, 2:6] = 0, 0, 255
    assert np.array_equal(pixels, expected[3:7, 2:6] if is_whole else expected)


@pytest.mark.parametrize("opacity, shown", [(0, (172, 47, 117)), (255, (172, 47, 117))])
def test_an_opacity_of_nothing_is_none_where_files_have_none(tmp_path, opacity, shown):
    """Of TGA and BMP files the fourth byte of a pixel is often unused; of a PNG it is not."""
    picture = Image.new("RGBA", (8, 8), (172, 47, 117, opacity))
    head = struct.pack("<BBBHHBHHHHBB", 0, 0, 2, 0, 0, 0, 0, 0, 8, 8, 32, 0x20)
    pixels = read_bytes(tmp_path, head + picture.tobytes("raw", "BGRA"), name="a.tga")
    assert (pixels == shown).all()
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    about = struct.pack("<IiiHHIIiiII", 108, 8, -8, 1, 32, 3, 256, 2835, 2835, 0, 0)
    about += masks + b"BGRs" + bytes(48)
    file = struct.pack("<2sIHHI", b"BM", 14 + 108 + 256, 0, 0, 14 + 108)
    pixels = read_bytes(tmp_path, file + about + picture.tobytes("raw", "BGRA"), name="a.bmp")
    assert (pixels == shown).all()
    assert (read_saved(tmp_path, picture) == (shown if opacity else 255)).all()


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("bits", [1, 8, 16])
def test_white_is_zero(tmp_path, bits, order):
    samples = RAMP if bits > 1 else (RAMP > 99).astype(int)
    data = {
        1: packed(samples, 1),
        8: samples.astype("u1"),
        16: (samples * 257).astype(order + "u2"),
    }
    levels = samples * (255 if bits == 1 else 1)
    dark = read_bytes(tmp_path, tiff(data[bits].tobytes(), 8, bits, 1, order=order))
    assert np.array_equal(dark[..., 0], levels)
    inverted = read_bytes(tmp_path, tiff(data[bits].tobytes(), 8, bits, 0, order=order))
    assert np.array_equal(inverted[..., 0], 255 - levels)


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_white_is_zero_in_compressed_files(tmp_path, compression):
    options = {"compression": compression, "tiffinfo": {262: 0}}
    grey = Image.fromarray(RAMP.astype(np.uint8))
    pixels = read_saved(tmp_path, grey, "TIFF", **options)  # Pillow inverts when it writes 8 bits
    assert np.array_equal(pixels[..., 0], RAMP)
    grey = Image.fromarray((RAMP * 257).astype(np.uint16))
    pixels = read_saved(tmp_path, grey, "TIFF", **options)  # and not with 16
    assert np.array_equal(pixels[..., 0], 255 - RAMP)


def test_12_bits_fill_the_range(tmp_path):
    row = np.array([0, 4095, 2048, 1])
    pairs = [(a >> 4, (a & 15) << 4 | b >> 8, b & 255) for a, b in row.reshape(-1, 2)]
    data = bytes(value for pair in pairs for value in pair) * 2 * 8
    assert read_bytes(tmp_path, tiff(data, 8, 12))[0, :4, 0].tolist() == [0, 255, 128, 0]
    assert read_bytes(tmp_path, tiff(data, 8, 12, 0))[0, :4, 0].tolist() == [255, 0, 127, 255]


def test_pgm_of_10_bits(tmp_path):
    data = b"P5 8 1 1023 " + np.array([0, 1023, 512, 4, 0, 0, 0, 0], ">u2").tobytes()
    pixels = read_bytes(tmp_path, data, (1, 8))
    assert pixels[0, :4, 0].tolist() == [0, 255, 128, 1]


@pytest.mark.parametrize(
    ("bits", "sample_format", "dtype", "said"),
    [
        (8, 2, "i1", "signed integers"),
        (16, 2, "<i2", "signed integers"),
        (32, 1, "<u4", "32-bit integers"),
        (32, 2, "<i4", "32-bit integers"),
        (32, 3, "<f4", "floating-point"),
    ],
)
def test_numbers_without_a_known_range_are_refused(tmp_path, bits, sample_format, dtype, said):
    data = tiff(RAMP.astype(dtype).tobytes(), 8, bits, 1, sample_format)
    with pytest.raises(ValueError, match=f"{said}.*not defined; save it"):
        read_bytes(tmp_path, data)


def test_facts_of_16_bits(tmp_path):
    image = Image.fromarray((RAMP * 4).astype(np.uint16))
    image.save(tmp_path / "a.png")
    found = decode(tmp_path / "a.png", (8, 8))
    assert found.has_16_bits and found.brightest == pytest.approx(1020 / 65535)
    Image.fromarray(RAMP.astype(np.uint8)).save(tmp_path / "b.png")
    assert not decode(tmp_path / "b.png", (8, 8)).has_16_bits


def test_premultiplied_opacity(tmp_path):
    image = Image.new("RGBA", (8, 8), (200, 100, 50, 128)).convert("RGBa")
    buffer = io.BytesIO()
    Image.frombytes("RGBA", (8, 8), image.tobytes()).save(buffer, "TIFF")
    extra_samples = struct.pack("<HHI", 338, 3, 1)
    data = buffer.getvalue().replace(extra_samples + b"\2", extra_samples + b"\1")
    pixels = read_bytes(tmp_path, data)
    assert np.abs(pixels[0, 0] - (227, 177, 152)).max() <= 1


# --- Optional parts ---


def damaged(kind, data):
    whole = bytearray(chunk(kind, data))
    whole[-1] ^= 1
    return bytes(whole)


@pytest.mark.parametrize(
    "extra",
    [
        chunk(b"eXIf", b"\0\x08\0\2\1\x12\0\3"),
        chunk(b"eXIf", b"MM\0*\xff\xff\xff\xff"),
        chunk(b"tEXt", b"workflow\0" + b"a" * 3_000_000),
        chunk(b"zTXt", b"workflow\0\0" + zlib.compress(b"a" * 80_000_000)),
        chunk(b"zTXt", b"workflow\0\7nothing"),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0<broken"),
        chunk(b"iCCP", b"name\0\0" + b"not zlib"),
        chunk(b"iCCP", b"name\0\5" + b"unknown method"),
        chunk(b"sRGB", b""),
        chunk(b"gAMA", b"\0"),
        chunk(b"gAMA", bytes(4)),
        chunk(b"cHRM", bytes(32)),
        chunk(b"pHYs", b"\0"),
        chunk(b"acTL", b"\0"),
        chunk(b"tRNS", b"\0"),
        damaged(b"tEXt", b"key\0value"),
        damaged(b"iCCP", b"name\0\0"),
    ],
    ids=lambda extra: extra[4:8].decode(),
)
def test_optional_parts_of_a_png_may_fail(tmp_path, extra):
    assert (read_bytes(tmp_path, png(RED, 8, 2, extra))[0, 0] == (200, 50, 50)).all()
    if extra[4:8] != b"tRNS":
        assert (read_bytes(tmp_path, png(RED, 8, 2, after=extra))[0, 0] == (200, 50, 50)).all()


def test_a_damaged_exif_block_of_a_jpeg(tmp_path):
    for exif in (b"Exif\0\0nonsense", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"Exif\0\0II*\0"):
        image = Image.new("RGB", (8, 8), (200, 50, 50))
        pixels = read_saved(tmp_path, image, "JPEG", quality=95, exif=exif)
        assert np.abs(pixels - (200, 50, 50)).max() <= 3


def test_a_damaged_text_of_a_tiff(tmp_path):
    image = Image.new("RGB", (8, 8), (200, 50, 50))
    buffer = io.BytesIO()
    image.save(buffer, "TIFF", description="a description", tiffinfo={700: b"<xmp/>"})
    for tag in (270, 700):
        data = bytearray(buffer.getvalue())
        (start,) = struct.unpack_from("<I", data, 4)
        entry = data.index(struct.pack("<H", tag), start)
        for kind, count in ((3, 0), (2, 0), (5, 2), (1, 2**31), (255, 255)):
            struct.pack_into("<HI", data, entry + 2, kind, count)
            assert (read_bytes(tmp_path, bytes(data)) == (200, 50, 50)).all(), (tag, kind, count)


def scans(**options):
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def test_how_often_a_jpeg_goes_over_its_picture():
    """What looks like it in a profile, a thumbnail or behind the picture does not count."""
    assert scans_of(scans()) == 1
    assert 5 <= scans_of(scans(progressive=True)) <= 15
    misleading = b"\xff\xda" * 300
    assert scans_of(scans(icc_profile=misleading, comment=misleading)) == 1
    assert scans_of(scans() + misleading) == 1
    whole = scans(progressive=True)
    scan = b"\xff\xda\x00\x08\x01\x01\x00\x01\x05\x00"
    assert scans_of(whole[:-2] + scan * 200 + whole[-2:]) == scans_of(whole) + 200
    for end in range(0, len(whole), 7):
        scans_of(whole[:end])


def test_a_damaged_segment_of_a_jpeg(tmp_path):
    """Segments of other programs that are cut short inside."""
    image = Image.new("RGB", (8, 8), (200, 50, 50))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95)
    head, rest = buffer.getvalue()[:20], buffer.getvalue()[20:]
    for marker, content in [
        (0xED, b"Photoshop 3.0\0" + b"8BIM\x03\xed\0\0\0"),
        (0xE2, b"MPF\0MM\0*\0\0\0\x08\xff\xff"),
        (0xE2, b"ICC_PROFILE\0"),
        (0xE1, b"http://ns.adobe.com/xap/1.0/\0<x"),
        (0xE1, b"Exif\0\0MM\0*\xff\xff\xff\xff"),
        (0xFE, b""),
    ]:
        segment = bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content
        pixels = read_bytes(tmp_path, head + segment + rest)
        assert np.abs(pixels - (200, 50, 50)).max() <= 3, content


@pytest.mark.parametrize("orientation", range(1, 9))
def test_rotation(tmp_path, orientation):
    noise = np.random.default_rng(0).integers(0, 256, (6, 10, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = {
        1: noise,
        2: noise[:, ::-1],
        3: noise[::-1, ::-1],
        4: noise[::-1],
        5: noise.transpose(1, 0, 2),
        6: np.rot90(noise, -1),
        7: noise[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(noise),
    }[orientation]
    for kind in ("PNG", "TIFF"):
        buffer = io.BytesIO()
        Image.fromarray(noise).save(buffer, kind, exif=exif)
        pixels = read_bytes(tmp_path, buffer.getvalue(), turned.shape[:2])
        assert np.array_equal(pixels, turned)


def test_rotation_at_the_end_of_a_png(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3
    block = chunk(b"eXIf", exif.tobytes()[6:])
    rows = RED.copy()
    rows[0, :3] = 0
    assert (read_bytes(tmp_path, png(rows, 8, 2, after=block))[-1, -1] == 0).all()


@pytest.mark.parametrize("kind", [b"tEXt", b"zTXt"])
def test_rotation_in_a_text_of_a_png(tmp_path, kind):
    """As ImageMagick writes it: packed where that is shorter."""
    exif = Image.Exif()
    exif[0x0112] = 3
    data = exif.tobytes()
    text = f"\nexif\n{len(data):8}\n{data.hex()}\n".encode()
    if kind == b"zTXt":
        text = b"\0" + zlib.compress(text)
    rows = RED.copy()
    rows[0, :3] = 0
    block = chunk(kind, b"Raw profile type exif\0" + text)
    assert (read_bytes(tmp_path, png(rows, 8, 2, block))[-1, -1] == 0).all()


# --- What stays refused, and silence ---


def test_cut_off_pixels_and_bombs_are_refused(tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    for kind in ("PNG", "JPEG", "TIFF", "WEBP"):
        buffer = io.BytesIO()
        noise.save(buffer, kind, **({"compression": "tiff_lzw"} if kind == "TIFF" else {}))
        with pytest.raises(Exception, match="."):
            read_bytes(tmp_path, buffer.getvalue()[: len(buffer.getvalue()) // 2])
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")
    with pytest.raises(Image.DecompressionBombError):
        read_image(tmp_path / "bomb.png", (8, 8))
    with pytest.raises(ValueError, match="the file is empty"):
        read_bytes(tmp_path, b"")


def test_postscript_starts_no_program(tmp_path, monkeypatch):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.eps")
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a program was started"))
    for name in ("a.eps", "b.png"):
        (tmp_path / name).write_bytes((tmp_path / "a.eps").read_bytes())
        with pytest.raises(ValueError, match="PostScript is not read"):
            read_image(tmp_path / name, (8, 8))


def test_nothing_is_printed(tmp_path):
    """Warnings of Pillow, of its log and of LibTIFF."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    for name, compression in (("a.tif", "tiff_lzw"), ("b.tif", "tiff_adobe_deflate")):
        buffer = io.BytesIO()
        noise.save(buffer, "TIFF", compression=compression)
        data = bytearray(buffer.getvalue())
        data[300:400] = bytes(100)
        (tmp_path / name).write_bytes(data)
    Image.new("1", (10_000, 10_000)).save(tmp_path / "large.png")
    image = Image.fromarray(np.zeros((8, 8), np.uint8)).convert("P")
    image.save(tmp_path / "palette.png", transparency=b"\1\2\3")
    code = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
from utils.data import read_image
for name in ("a.tif", "b.tif", "large.png", "palette.png"):
    try:
        read_image({str(tmp_path)!r} + "/" + name, (8, 8))
    except Exception:
        pass
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_text_limits_of_pillow_stay_as_they_are():
    assert PngImagePlugin.MAX_TEXT_CHUNK == 1024 * 1024
