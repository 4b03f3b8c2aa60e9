"""An image file of any kind -> the pixels that a colour-managed viewer shows, at one size."""

import contextlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin, features
from PIL import __version__ as pillow_version

from utils.data.colour import to_srgb
from utils.data.opening import Picture, open_picture
from utils.data.silence import quiet_pillow
from utils.image_facts import GREY_16, LABEL_MAP, TRANSPARENT

# Raise the first number whenever a file can give other pixels than before: it is part of the key of
# the cache.
DECODER_VERSION = f"3, Pillow {pillow_version}, LittleCMS {features.version('littlecms2')}"

TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
WHITE_16 = 65535
TIFF_PHOTOMETRIC = 262
WHITE_IS_ZERO = 0
# Formats in which the fourth sample of a pixel is often nothing, and then 0 everywhere.
UNSURE_OF_ALPHA = frozenset({"BMP", "DIB", "TGA"})


class NotALabelMap(ValueError):
    """A picture that is read well, but whose pixels are no labels."""


@dataclass
class Decoded:
    """Pixels and what the plan says of their file."""

    pixels: np.ndarray  # (H,W,3) uint8, sRGB; or the planes of another mode
    own_size: tuple[int, int]  # (H, W) before it was fitted, upright
    has_16_bits: bool = False
    brightest: float = 1.0  # of a file with 16 bits: its largest sample, as a part of the range


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


def decode(
    source: str | Path | io.BytesIO, size: tuple[int, int] | None, mode: str = "RGB"
) -> Decoded:
    """`read_image`, with facts for the plan, from a file or what is in one. Without a size, the
    image keeps its own.

    `mode` "RGBA": (H,W,4), colours multiplied by the opacity and the opacity. "I;16": (H,W,2), the
    high and the low byte of grey as the file has it, without its profile; 8 bits are spread over
    the 16, colours become luma, transparency lies on white. "P": (H,W,1), the numbers in a palette
    file or a grey one of 8 bits, without its profile, fitted by the nearest neighbour. Any other
    mode: (H,W,3) sRGB.
    """
    with _opened(source) as file, quiet_pillow():
        picture = open_picture(file)
        if mode == LABEL_MAP:
            return _label_map(picture, size)
        colour, alpha = colour_and_alpha(picture)
        if mode == GREY_16 and picture.grey_16 is not None:
            colour = picture.grey_16
        has_16_bits = picture.depth > 8
        brightest = _brightest(colour) if has_16_bits else 1.0
        shown = _in_mode(colour, alpha, picture.profile, mode)
        shown, own_size = _fitted(shown, picture.orientation, size, Image.Resampling.BICUBIC)
        return Decoded(_planes(shown), own_size, has_16_bits, brightest)


def _opened(source: str | Path | io.BytesIO) -> contextlib.AbstractContextManager[BinaryIO]:
    return contextlib.nullcontext(source) if isinstance(source, io.BytesIO) else open(source, "rb")


def _fitted(
    image: Image.Image, orientation: int, size: tuple[int, int] | None, method: Image.Resampling
) -> tuple[Image.Image, tuple[int, int]]:
    """The picture upright and at `size` (H, W), and the size that it had upright."""
    turn = TRANSPOSE.get(orientation)
    if turn is not None:
        image = image.transpose(turn)
    own_size = (image.height, image.width)
    if size is not None and size != own_size:
        image = ImageOps.fit(image, size[::-1], method)
    return image, own_size


def _label_map(picture: Picture, size: tuple[int, int] | None) -> Decoded:
    image = picture.image
    if image.mode == "1":
        image = image.convert("L")
    if image.mode not in ("P", "L"):
        raise NotALabelMap(
            f"pixels of mode {image.mode} are no label map: the numbers of a palette file, or of a "
            "grey one of 8 bits, are labels"
        )
    numbers = Image.fromarray(np.asarray(image))  # of a palette, the numbers themselves
    numbers, own_size = _fitted(numbers, picture.orientation, size, Image.Resampling.NEAREST)
    return Decoded(np.array(numbers)[..., None], own_size)


def _in_mode(
    colour: Image.Image, alpha: Image.Image | None, profile: bytes | None, mode: str
) -> Image.Image:
    """RGB; for "RGBA" RGBa, Pillow's word for multiplied colours; for "I;16" F, of 0..65535, which
    Pillow can scale.
    """
    if mode == GREY_16:
        return _grey_on_white(colour, alpha, profile)
    shown = to_srgb(colour, profile)
    if mode != TRANSPARENT:
        return _on_white(shown, alpha)
    layer = shown.convert("RGB").convert("RGBA")
    if alpha is not None:
        layer.putalpha(alpha)
    return layer.convert("RGBa")


def _grey_on_white(
    colour: Image.Image, alpha: Image.Image | None, profile: bytes | None
) -> Image.Image:
    if colour.mode not in (GREY_16, "L"):
        colour = to_srgb(colour, profile).convert("L")
    levels = np.asarray(colour).astype(np.float64)
    if colour.mode == "L":
        levels = levels * (WHITE_16 / 255)
    if alpha is not None:
        opacity = np.asarray(alpha) / 255
        levels = levels * opacity + WHITE_16 * (1 - opacity)
    return Image.fromarray(levels.astype(np.float32))


def _planes(shown: Image.Image) -> np.ndarray:
    """The picture as (H,W,planes) uint8."""
    pixels = np.asarray(shown)
    if shown.mode == "F":
        levels = pixels.round().clip(0, WHITE_16).astype(np.uint16)
        return np.stack([levels >> 8, levels & 255], axis=2).astype(np.uint8)
    if shown.mode == "RGBa":  # sharpened edges may go beyond what the opacity allows
        return np.concatenate([np.minimum(pixels[..., :3], pixels[..., 3:]), pixels[..., 3:]], 2)
    return pixels


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


def colour_and_alpha(picture: Picture) -> tuple[Image.Image, Image.Image | None]:
    """The colours (L, I;16 of 0..65535, RGB, CMYK or LAB) and the opacity (L), if there is any."""
    image = picture.image
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _grey_16_bits(picture)
    if picture.key and image.mode in ("1", "L", "RGB"):
        alpha = _alpha_from_key(picture)
        return image.convert("L" if picture.image.mode in ("1", "L") else "RGB"), alpha
    if picture.frame is not None:
        alpha = Image.new("L", image.size, 0)
        alpha.paste(255, picture.frame)
        return image.convert("RGB"), alpha
    if image.mode in ("La", "RGBa"):  # multiplied by the opacity
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    if image.mode == "LA":
        return image.getchannel("L"), image.getchannel("A")
    if image.has_transparency_data:
        is_unsure = image.format in UNSURE_OF_ALPHA
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
        if is_unsure and alpha.getextrema() == (0, 0):
            return image.convert("RGB"), None
        return image.convert("RGB"), alpha
    if image.mode == "1":
        return image.convert("L"), None
    if image.mode in ("L", "CMYK", "LAB"):
        return image, None
    return image.convert("RGB"), None


def _grey_16_bits(picture: Picture) -> tuple[Image.Image, Image.Image | None]:
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


def _alpha_from_key(picture: Picture) -> Image.Image:
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
