"""An image file as samples in its own colour space, with the profile and EXIF that go with them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, TiffImagePlugin

from utils.data import png
from utils.data.colour import to_srgb
from utils.data.decode import colour_and_alpha
from utils.data.opening import Picture, open_picture, read_grey_and_alpha, read_low_bytes
from utils.data.silence import quiet_pillow

FIRST_ALONE = "only the first of its pictures is enlarged"
NOT_16_BITS = "its 16 bits per sample become 8, since Pillow reads no more of this kind of file"
NOW_SRGB = "its colours, of a kind that few programs show, become sRGB"

# By EXIF orientation: a view of (H,W,C) that stands upright.
UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: stored.swapaxes(0, 1)[:, ::-1],
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: lambda stored: stored.swapaxes(0, 1)[::-1],
}

# In a TIFF file, EXIF and how the pixels are stored are one list of tags; these are no more than
# said of the picture: what it shows, with which camera and program, when, by whom, its resolution.
DESCRIPTIVE_TAGS = frozenset({270, 271, 272, 282, 283, 296, 305, 306, 315, 33432, 34665, 34853})


@dataclass
class Source:
    """What a file holds."""

    samples: np.ndarray  # (H,W,C) uint8 or uint16, upright; C: grey, grey + alpha, RGB, RGBA
    profile: bytes | None = None  # ICC; None: sRGB, or nothing is said
    exif: bytes | None = None  # without the orientation, from "Exif" on
    remarks: list[str] = field(default_factory=list)  # on what is not kept

    @property
    def size(self) -> tuple[int, int]:
        """(H, W), upright."""
        height, width, _ = self.samples.shape
        return height, width

    @property
    def channels(self) -> int:
        return self.samples.shape[2]

    @property
    def depth(self) -> int:
        """Bits per sample."""
        return self.samples.dtype.itemsize * 8


def read_source(path: Path) -> Source:
    """Read a file of any kind that training reads too.

    Its numbers stay as they are: no profile is applied, and 16 bits stay 16. Palettes become RGB,
    1 bit becomes 8, a transparent colour becomes opacity; CMYK and Lab become sRGB.

    Raises what `open_picture` raises.
    """
    with open(path, "rb") as file, quiet_pillow():
        picture = open_picture(file)
        remarks = [FIRST_ALONE] if _has_more_pictures(picture.image) else []
        exif = _kept_exif(picture)
        profile = picture.profile
        samples = _samples_of_16_bits(picture, file) if picture.depth > 8 else None
        if samples is None:
            if picture.depth > 8:
                remarks.append(NOT_16_BITS)
            if picture.image.mode in ("CMYK", "LAB"):
                remarks.append(NOW_SRGB)
                profile = None
            samples = _samples_of_8_bits(picture)
    upright = UPRIGHT.get(picture.orientation)
    if upright is not None:
        samples = upright(samples)
    return Source(samples, profile, exif, remarks)


# --- Samples ---


def _samples_of_8_bits(picture: Picture) -> np.ndarray:
    colour, alpha = colour_and_alpha(picture)
    if colour.mode in ("CMYK", "LAB"):
        colour = to_srgb(colour, picture.profile)
    return _joined(np.asarray(colour), alpha)


def _samples_of_16_bits(picture: Picture, file: BinaryIO) -> np.ndarray | None:
    """None where Pillow gives away no more than the first byte of each sample."""
    image = picture.image
    if image.mode == "I" or image.mode.startswith("I;16"):
        colour, alpha = colour_and_alpha(picture)
        return _joined(np.asarray(colour), alpha)
    pixels: BinaryIO = file
    if image.format == "PNG":
        facts = png.read_png(file)
        pixels = facts.file
        if not facts.has_colour:
            return read_grey_and_alpha(pixels)
    if image.mode not in ("RGB", "RGBA"):
        return None
    try:
        low = np.asarray(read_low_bytes(pixels))
    except Exception:  # stored in a way that is not known, or Pillow's plugins raise what they like
        return None
    samples = np.asarray(image).astype(np.uint16)
    samples <<= 8
    samples |= low
    alpha = colour_and_alpha(picture)[1] if picture.key else None
    return _joined(samples, alpha)


def _joined(colour: np.ndarray, alpha: Image.Image | None) -> np.ndarray:
    """(H,W) or (H,W,3), and 8 bits of opacity -> (H,W,C) of the colour's type."""
    samples = colour if colour.ndim == 3 else colour[..., None]
    if alpha is None:
        return samples
    opacity = np.asarray(alpha)[..., None].astype(samples.dtype)
    if samples.dtype == np.uint16:
        opacity = opacity * np.uint16(257)
    return np.concatenate([samples, opacity], axis=2)


# --- What is said of the picture ---


def _has_more_pictures(image: Image.Image) -> bool:
    if image.format == "MPO":  # a photo with its preview or depth
        return False
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # what follows may be damaged
        return False


def _kept_exif(picture: Picture) -> bytes | None:
    """The EXIF block without what no longer holds; None where nothing is left or it is damaged."""
    image = picture.image
    try:
        exif = image.getexif()
        if picture.exif:
            exif = Image.Exif()
            exif.load(b"Exif\0\0" + picture.exif)
        for tag in list(exif):
            if tag == ExifTags.Base.Orientation:
                del exif[tag]
            elif isinstance(image, TiffImagePlugin.TiffImageFile) and tag not in DESCRIPTIVE_TAGS:
                del exif[tag]
        of_the_camera = exif.get_ifd(ExifTags.IFD.Exif)
        for size in (ExifTags.Base.ExifImageWidth, ExifTags.Base.ExifImageHeight):
            of_the_camera.pop(size, None)
        return exif.tobytes() if len(exif) > 0 else None
    except Exception:  # a damaged EXIF block raises what it likes
        return None
