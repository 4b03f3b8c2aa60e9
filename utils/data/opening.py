"""An image file of any kind, opened: its pixels as they are stored, and what it says of them."""

import io
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, GifImagePlugin, Image, TiffImagePlugin
from PIL import __version__ as pillow_version

from utils.data import jpeg, png, tiff
from utils.data.formats import RAW, RAW_ENDINGS, ending, is_postscript, readable_formats
from utils.data.silence import quiet_pillow

TIFF_BITS, TIFF_SAMPLE_FORMAT = 258, 339
UNSIGNED = 1
TURNED = (5, 6, 7, 8)  # EXIF orientations in which a picture lies on its side
# Little and big endian, and this machine's own order.
OTHER_ORDER = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}

# Two kinds of TIFF that Pillow knows with black as zero or in the other byte order only.
TiffImagePlugin.OPEN_INFO.setdefault((b"MM", 0, (1,), 1, (16,), ()), ("I;16B", "I;16B"))
TiffImagePlugin.OPEN_INFO.setdefault((b"II", 0, (1,), 1, (12,), ()), ("I;16", "I;12"))


@dataclass
class Picture:
    """An opened file, and what it says of its colours."""

    image: Image.Image
    profile: bytes | None = None
    orientation: int = 1
    exif: bytes | None = None  # of a PNG, where Pillow does not see it
    depth: int = 8  # bits per sample in the file
    key: tuple[int, ...] | None = None  # of a PNG: the transparent samples, in the file's range
    low_bytes: Image.Image | None = None  # of an RGB PNG with 16 bits and a key
    grey_16: Image.Image | None = None  # of a PNG of grey and opacity with 16 bits: I;16
    frame: tuple[int, int, int, int] | None = None  # of a GIF that is larger: what it shows


def open_picture(file: BinaryIO) -> Picture:
    """Open and load the pixels; optional parts that are damaged are passed over.

    Raises what Pillow raises on damaged files, and ValueError with a sentence where the range of
    the numbers is unknown or the format is not decoded.
    """
    name = getattr(file, "name", "")
    if isinstance(name, str | os.PathLike) and ending(os.fspath(name)) in RAW_ENDINGS:
        raise ValueError(RAW)
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
    orientation = _orientation_of(image)
    return Picture(
        image, _profile_of(image), orientation, depth=_depth_of(image), frame=_frame_of(image)
    )


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


def _open_png(file: BinaryIO) -> Picture:
    facts = png.read_png(file)
    image = _pillow_open(facts.file)
    low_bytes = None
    if facts.key and facts.depth == 16 and image.mode == "RGB":
        low_bytes = read_low_bytes(facts.file)
    facts.file.seek(0)
    image.load()
    orientation = _orientation_of(image)
    if facts.exif:
        orientation = _orientation_in(facts.exif)
    grey_16 = None
    if facts.depth == 16 and not facts.has_colour and image.mode in ("LA", "RGBA"):
        samples = read_grey_and_alpha(facts.file)
        grey_16 = Image.fromarray(np.ascontiguousarray(samples[..., 0]))
    return Picture(
        image,
        facts.profile,
        orientation,
        facts.exif,
        facts.depth,
        facts.key,
        low_bytes,
        grey_16,
    )


def read_low_bytes(file: BinaryIO | io.BytesIO) -> Image.Image:
    """The second byte of each 16-bit sample of an RGB or RGBA picture; Pillow itself gives the
    first alone. ValueError where the samples are stored in another way.
    """
    file.seek(0)
    image = _pillow_open(io.BytesIO(file.read()))
    tiles = []
    for tile in image.tile:  # type: ignore[attr-defined]
        tiles.append(tile._replace(args=_in_the_other_order(tile.args)))
    image.tile = tiles  # type: ignore[attr-defined]
    image.load()
    return image


def read_grey_and_alpha(file: BinaryIO | io.BytesIO) -> np.ndarray:
    """The samples (H,W,2) uint16 of a PNG of grey and opacity with 16 bits; Pillow itself gives the
    first byte of each alone. Such a pixel has four bytes, as one of RGBA with 8 bits.
    """
    file.seek(0)
    image = _pillow_open(file)
    image._mode = "RGBA"  # type: ignore[attr-defined]
    image.tile = [tile._replace(args="RGBA") for tile in image.tile]  # type: ignore[attr-defined]
    image.load()
    return np.asarray(image).view(">u2").astype(np.uint16)


def _in_the_other_order(args: str | tuple) -> str | tuple:
    """The arguments of a decoder, with the order of the two bytes of a sample reversed."""
    if isinstance(args, tuple):
        return (_in_the_other_order(args[0]), *args[1:])
    layout, _, order = args.partition(";16")
    if layout not in ("RGB", "RGBA", "RGBX") or order not in OTHER_ORDER:
        raise ValueError(f"samples stored as {args}")
    return f"{layout};16{OTHER_ORDER[order]}"


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


def _frame_of(image: Image.Image) -> tuple[int, int, int, int] | None:
    """The part of a GIF without a transparent colour that its first frame covers, where that is not
    all: beside it there is nothing, which Pillow paints in some colour of the palette.
    """
    if not isinstance(image, GifImagePlugin.GifImageFile) or image.has_transparency_data:
        return None
    frame = image.dispose_extent
    return None if frame is None or frame == (0, 0, *image.size) else frame


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


def upright_size(path: Path) -> tuple[int, int]:
    """(H, W) of the picture in a file, from its head alone. Raises what Pillow raises."""
    try:
        return _size_by_pillow(path)
    except Exception:  # also of a PNG for a chunk beside its picture
        with open(path, "rb") as file:
            if not png.is_png(file.read(len(png.SIGNATURE))):
                raise
            file.seek(0)
            facts = png.read_png(file)
        with quiet_pillow(), Image.open(facts.file) as image:
            width, height = image.size
        orientation = 1 if facts.exif is None else _orientation_in(facts.exif)
        return (width, height) if orientation in TURNED else (height, width)


def _size_by_pillow(path: Path) -> tuple[int, int]:
    with quiet_pillow(), Image.open(path, formats=readable_formats()) as image:
        width, height = image.size
        if image.format == "TIFF":  # Pillow turns these itself
            return height, width
        try:
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        except Exception:  # a damaged EXIF block raises what it likes
            orientation = 1
    return (width, height) if orientation in TURNED else (height, width)
