"""An image file of any kind -> the pixels that a colour-managed viewer shows, at one size."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin, features
from PIL import __version__ as pillow_version

from utils.data import jpeg, png, tiff
from utils.data.colour import to_srgb
from utils.data.formats import is_postscript, readable_formats
from utils.data.silence import quiet_pillow

# Raise the first number whenever a file can give other pixels than before: it is part of the key of
# the cache.
DECODER_VERSION = f"1, Pillow {pillow_version}, LittleCMS {features.version('littlecms2')}"

TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
TIFF_BITS, TIFF_PHOTOMETRIC, TIFF_SAMPLE_FORMAT = 258, 262, 339
WHITE_IS_ZERO = 0
UNSIGNED = 1

# Two kinds of TIFF that Pillow knows with black as zero or in the other byte order only.
TiffImagePlugin.OPEN_INFO.setdefault((b"MM", 0, (1,), 1, (16,), ()), ("I;16B", "I;16B"))
TiffImagePlugin.OPEN_INFO.setdefault((b"II", 0, (1,), 1, (12,), ()), ("I;16", "I;12"))


@dataclass
class Decoded:
    """Pixels and what the plan says of their file."""

    pixels: np.ndarray  # (H,W,3) uint8, sRGB
    own_size: tuple[int, int]  # (H, W) before it was fitted, upright
    has_16_bits: bool = False
    brightest: float = 1.0  # of a file with 16 bits: its largest sample, as a part of the range


@dataclass
class _Picture:
    """An opened file, and what it says of its colours."""

    image: Image.Image
    profile: bytes | None = None
    orientation: int = 1
    depth: int = 8  # bits per sample in the file
    key: tuple[int, ...] | None = None  # of a PNG: the transparent samples, in the file's range
    low_bytes: Image.Image | None = None  # of an RGB PNG with 16 bits and a key


def read_image(path: str | Path, size: tuple[int, int]) -> np.ndarray:
    """An image file -> (H,W,3) uint8 sRGB at `size` (H, W), as a colour-managed viewer shows it.

    Applied: ICC profiles (and in a PNG cICP, or gAMA and cHRM, as browsers do; a gamma within 5% of
    1/2.2 is sRGB), EXIF rotation, white-is-zero, bit depths, palettes. A damaged profile or EXIF
    block is ignored. Transparency is laid on white. The shape is kept: scaled (bicubic,
    antialiased) until it covers `size`, then cropped at the centre. Of an animation, the first
    frame.

    16 bits of colour are reduced by dropping the low byte (grey: rounded). Not read: the colour
    space that EXIF or a video codec's header names without a profile.

    Raises what Pillow raises on damaged files, and ValueError with a sentence where the range of
    the numbers is unknown (floats, signed or 32-bit integers) or the format is not decoded.
    """
    return decode(path, size).pixels


def decode(path: str | Path, size: tuple[int, int] | None) -> Decoded:
    """`read_image`, with facts for the plan. Without a size, the image keeps its own."""
    with open(path, "rb") as file, quiet_pillow():
        picture = _open(file)
        colour, alpha = _colour_and_alpha(picture)
        has_16_bits = picture.depth > 8
        brightest = _brightest(colour) if has_16_bits else 1.0
        shown = _on_white(to_srgb(colour, picture.profile), alpha)
        method = TRANSPOSE.get(picture.orientation)
        if method is not None:
            shown = shown.transpose(method)
        own_size = (shown.height, shown.width)
        if size is not None and size != own_size:
            shown = ImageOps.fit(shown, size[::-1], Image.Resampling.BICUBIC)
        return Decoded(np.asarray(shown), own_size, has_16_bits, brightest)


# --- Opening ---


def _open(file: BinaryIO) -> _Picture:
    """Open and load the pixels; optional parts that are damaged are passed over."""
    start = file.read(64)
    file.seek(0)
    if not start:
        raise ValueError("the file is empty")
    if is_postscript(start):
        raise ValueError(
            "PostScript is not read, since that would start Ghostscript; save it as PNG"
        )
    if png.is_png(start):
        return _open_png(file)
    image = _open_forgiving(file, start)
    _check_range(image)
    return _Picture(image, _profile_of(image), _orientation_of(image), _depth_of(image))


def _pillow_open(file: BinaryIO | io.BytesIO) -> Image.Image:
    try:
        return Image.open(file, formats=readable_formats())
    except Image.UnidentifiedImageError:
        version = f"Pillow {pillow_version}"
        file.seek(0)
        if file.read(4) in TiffImagePlugin.PREFIXES:
            raise ValueError(
                f"{version} does not decode this kind of TIFF (bits, sample format or damaged)"
            ) from None
        raise ValueError(f"cannot identify image file: no format that {version} decodes") from None


def _open_png(file: BinaryIO) -> _Picture:
    facts = png.read_png(file)
    image = _pillow_open(facts.file)
    low_bytes = None
    if facts.key and facts.depth == 16 and image.mode == "RGB":
        low_bytes = _low_bytes(facts.file)
    facts.file.seek(0)
    image.load()
    orientation = _orientation_of(image)
    if facts.exif:
        orientation = _orientation_in(facts.exif)
    return _Picture(image, facts.profile, orientation, facts.depth, facts.key, low_bytes)


def _low_bytes(file: io.BytesIO) -> Image.Image:
    """The second byte of each 16-bit sample of an RGB PNG; Pillow itself gives the first alone."""
    file.seek(0)
    image = _pillow_open(io.BytesIO(file.read()))
    tiles = []
    for tile in image.tile:  # type: ignore[attr-defined]
        tiles.append(tile._replace(args="RGB;16L"))  # the other byte order: the low byte first
    image.tile = tiles  # type: ignore[attr-defined]
    image.load()
    return image


def _open_forgiving(file: BinaryIO, start: bytes) -> Image.Image:
    """Open and load a picture; once more without its optional parts where that fails."""
    if jpeg.is_jpeg(start):
        reduce = jpeg.without_optional_parts
    elif start[:4] in TiffImagePlugin.PREFIXES:
        reduce = tiff.without_optional_parts
    else:
        return _loaded(file)
    try:
        return _loaded(file)
    except Exception as error:
        try:
            return _loaded(reduce(file))
        except Exception:
            raise error from None


def _loaded(file: BinaryIO | io.BytesIO) -> Image.Image:
    image = _pillow_open(file)
    image.load()
    return image


def _profile_of(image: Image.Image) -> bytes | None:
    profile = image.info.get("icc_profile")
    return profile if isinstance(profile, bytes) else None


def _orientation_of(image: Image.Image) -> int:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # a damaged EXIF block raises what it likes
        return 1


def _orientation_in(exif_data: bytes) -> int:
    exif = Image.Exif()
    try:
        exif.load(b"Exif\0\0" + exif_data)
        return exif.get(ExifTags.Base.Orientation, 1)
    except Exception:  # a damaged EXIF block raises what it likes
        return 1


def _depth_of(image: Image.Image) -> int:
    """Bits per sample in the file, 8 where they are not known to be more."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        bits = image.tag_v2.get(TIFF_BITS, (1,))
        return max(bits)
    if image.mode == "I":
        return 16 if image.format == "PPM" else 32  # of a PGM file, Pillow makes 0..65535
    return 16 if image.mode.startswith("I;16") else 8


def _check_range(image: Image.Image) -> None:
    """ValueError where it is not known which numbers are black and white."""
    advice = (
        "which values are black and which are white is not defined; save it with 8 or 16 bits, "
        "unsigned"
    )
    if image.mode == "F":
        raise ValueError(f"floating-point pixels: {advice}")
    if image.mode == "I" and _depth_of(image) > 16:
        raise ValueError(f"32-bit integers as pixels: {advice}")
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        formats = image.tag_v2.get(TIFF_SAMPLE_FORMAT, (UNSIGNED,))
        if image.mode in ("1", "L", "I", "I;16", "I;16B") and UNSIGNED not in formats:
            raise ValueError(f"signed integers as pixels: {advice}")
    if image.format == "FITS" and image.mode != "L":
        raise ValueError(f"measured values as pixels: {advice}")


# --- From the file's numbers to sRGB ---


def _on_white(colour: Image.Image, alpha: Image.Image | None) -> Image.Image:
    """L or RGB, and the opacity (L) if there is any -> RGB."""
    if colour.mode != "RGB":
        colour = colour.convert("RGB")
    if alpha is None:
        return colour
    layer = colour.convert("RGBA")
    layer.putalpha(alpha)
    white = Image.new("RGBA", layer.size, "white")
    return Image.alpha_composite(white, layer).convert("RGB")


def _colour_and_alpha(picture: _Picture) -> tuple[Image.Image, Image.Image | None]:
    """The colours (L, I;16 of 0..65535, RGB, CMYK or LAB) and the opacity (L), if there is any."""
    image = picture.image
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _grey_16_bits(picture)
    if picture.key and image.mode in ("1", "L", "RGB"):
        alpha = _alpha_from_key(picture)
        return image.convert("L" if picture.image.mode in ("1", "L") else "RGB"), alpha
    if image.mode in ("La", "RGBa"):  # multiplied by the opacity
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    if image.mode == "LA":
        return image.getchannel("L"), image.getchannel("A")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return image.convert("RGB"), image.getchannel("A")
    if image.mode == "1":
        return image.convert("L"), None
    if image.mode in ("L", "CMYK", "LAB"):
        return image, None
    return image.convert("RGB"), None


def _grey_16_bits(picture: _Picture) -> tuple[Image.Image, Image.Image | None]:
    samples = np.asarray(picture.image).astype(np.int64)
    alpha = None
    if picture.key:
        alpha = _mask(samples != picture.key[0])
    if picture.depth == 12:  # Pillow leaves them as 0..4095
        samples = (samples * 65535 + 2047) // 4095
    samples = samples.clip(0, 65535)
    if isinstance(picture.image, TiffImagePlugin.TiffImageFile):
        if picture.image.tag_v2.get(TIFF_PHOTOMETRIC) == WHITE_IS_ZERO:
            samples = 65535 - samples
    return Image.fromarray(samples.astype(np.uint16)), alpha


def _alpha_from_key(picture: _Picture) -> Image.Image:
    """Opaque but where all samples are those of the key."""
    image, key = picture.image, np.array(picture.key)
    if image.mode in ("1", "L"):
        largest = 2**picture.depth - 1
        samples = np.asarray(image.convert("L"))[..., None]
        return _mask((samples != key * 255 // largest).any(axis=-1))
    samples = np.asarray(image.convert("RGB")).astype(np.int64)
    if picture.low_bytes is not None:
        samples = samples * 256 + np.asarray(picture.low_bytes)
    return _mask((samples != key).any(axis=-1))


def _mask(is_opaque: np.ndarray) -> Image.Image:
    return Image.fromarray(np.where(is_opaque, 255, 0).astype(np.uint8))


def _brightest(colour: Image.Image) -> float:
    if colour.mode in ("CMYK", "LAB"):
        return 1.0
    largest = 65535 if colour.mode == "I;16" else 255
    return float(np.asarray(colour).max()) / largest
