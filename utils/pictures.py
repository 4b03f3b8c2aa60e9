"""Pictures for people: grids with names, animations, and how they are written.

All pixels here are uint8; `model.codecs` makes them from what a network puts out.
"""

import io
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor, uint8

from utils.errors import UserError
from utils.fonts import readable
from utils.image_facts import CHANNELS, GREY_16, TRANSPARENT, USUAL_MODES, mode_of
from utils.pixel_planes import STEP_16, shown_pixels
from utils.text import on_one_line, printable
from utils.text_drawing import draw_text, shorten, text_width

WITH_16_BITS = (".png", ".tif", ".tiff")

TEXT_SIZE = 12  # pixels
GAP = 2  # pixels between two images
CAPTION_HEIGHT = 16  # pixels below each image
LEAST_IMAGE = 64  # smaller images are enlarged towards this many pixels
LEAST_IMAGE_WITH_CAPTION = 96
LEAST_CAPTION = 64  # pixels of width that a caption has, even where the images are narrow
WIDEST_ROW_NAME = 240  # pixels

FRAME_MILLISECONDS = 80
LAST_FRAME_MILLISECONDS = 2000
GAP_BETWEEN_GRIDS = 12  # pixels, in an animation
FILM_COLUMNS = 4  # of each of the two grids
LARGEST_FRAME = 2048  # pixels a side

WITH_EXIF = (".jpg", ".jpeg", ".jpe", ".jfif", ".webp")
LONGEST_EXIF = 65_000  # bytes; a segment of a JPEG has 65,533


# --- From pixels to pictures ---


def reduced(pixels: Tensor, factor: int) -> Tensor:
    """(C,H,W) uint8 -> a copy with 1/factor of each side, of means of areas; factor 1: as it is."""
    if factor <= 1:
        return pixels.clone()
    size = [max(1, side // factor) for side in pixels.shape[-2:]]
    return F.interpolate(pixels[None].float(), size, mode="area")[0].round().byte()


def to_picture(pixels: Tensor) -> Image.Image:
    """(C,H,W) uint8 -> a picture of the mode that has C planes (`image_facts.CHANNELS`): L, RGB,
    RGBA with colours that are no longer multiplied by the opacity, or I;16. ValueError for anything
    else.
    """
    _check_pixels(pixels, dimensions=3)
    channels_last = pixels.permute(1, 2, 0).contiguous().cpu().numpy()
    mode = mode_of(len(pixels))
    if mode == GREY_16:
        high, low = channels_last[..., 0].astype(np.uint16), channels_last[..., 1]
        return Image.fromarray((high << 8) | low)
    if mode == TRANSPARENT:
        return Image.fromarray(_unmultiplied(channels_last))
    return Image.fromarray(channels_last[..., 0] if mode == "L" else channels_last)


def _unmultiplied(pixels: np.ndarray) -> np.ndarray:
    """(H,W,4) uint8, colours multiplied by the opacity -> as files have them; black where the
    opacity is 0.
    """
    opacity = pixels[..., 3:].astype(np.float32)
    colour = pixels[..., :3] * (255 / np.maximum(opacity, 1))
    colour = np.where(opacity > 0, colour.round().clip(0, 255), 0)
    return np.concatenate([colour, opacity], axis=2).astype(np.uint8)


def image_grid(
    pixels: Tensor,
    columns: int,
    row_names: Sequence[str] = (),
    captions: Sequence[str] = (),
    *,
    fallbacks: Sequence[str] = (),
    caption_ends: Sequence[str] = (),
) -> Image.Image:
    """(N,C,H,W) uint8 -> one picture of N images, row by row.

    Images are shown as a viewer shows them, transparency on white. Small ones are enlarged by a
    whole factor, pixel for pixel. row_names stand to the left of the rows, captions below the
    images; what does not fit is shortened with an ellipsis. caption_ends follow the captions and
    are not shortened, such as the seed after a class name. fallbacks, such as "class 3", stand in
    for those names or captions (whichever are given) for which no font on this machine has the
    characters.

    Raises ValueError where the pixels are not of this kind, or the numbers of texts do not fit.
    """
    _check_pixels(pixels, dimensions=4)
    pixels = shown_pixels(pixels)
    count = len(pixels)
    rows = math.ceil(count / columns)
    has_captions = bool(captions or caption_ends)
    _check_texts(count, rows, row_names, captions, fallbacks, caption_ends)

    names = _readable_or(row_names, fallbacks if row_names else ())
    names = [shorten(name, WIDEST_ROW_NAME, TEXT_SIZE) for name in names]
    below = _readable_or(captions, () if row_names else fallbacks) or [""] * count
    ends = list(caption_ends) or [""] * count

    grid = _plan_grid(pixels, names, has_captions)
    mode = mode_of(pixels.shape[1])
    size = (grid.margin + columns * grid.step_x, rows * grid.step_y)
    canvas = Image.new(mode, size, "white")
    for place, image in enumerate(pixels):
        row, column = divmod(place, columns)
        x = grid.margin + column * grid.step_x
        y = row * grid.step_y
        picture = to_picture(image).resize((grid.width, grid.height), Image.Resampling.NEAREST)
        room = grid.step_x - GAP
        canvas.paste(picture, (x + (room - grid.width) // 2, y))
        if has_captions:
            text = shorten(below[place], room, TEXT_SIZE, ends[place])
            middle = y + grid.height + CAPTION_HEIGHT // 2
            draw_text(canvas, (x + room // 2, middle), text, TEXT_SIZE, anchor="mm")
    for row, name in enumerate(names):
        middle = row * grid.step_y + grid.height // 2
        draw_text(canvas, (4, middle), name, TEXT_SIZE, anchor="lm")
    return canvas


@dataclass(frozen=True)
class _Grid:
    """Sizes in pixels: of an image, of the column of names, and from an image to the next."""

    width: int
    height: int
    margin: int
    step_x: int
    step_y: int


def _plan_grid(pixels: Tensor, names: Sequence[str], has_captions: bool) -> _Grid:
    height, width = pixels.shape[-2:]
    wanted = LEAST_IMAGE_WITH_CAPTION if has_captions else LEAST_IMAGE
    scale = max(1, wanted // max(height, width))
    width, height = width * scale, height * scale
    margin = max((int(text_width(name, TEXT_SIZE)) + 10 for name in names), default=0)
    step_x, step_y = width + GAP, height + GAP
    if has_captions:
        step_x = max(step_x, LEAST_CAPTION + GAP)
        step_y += CAPTION_HEIGHT
    if names:
        step_y = max(step_y, CAPTION_HEIGHT)
    return _Grid(width, height, margin, step_x, step_y)


def _readable_or(texts: Sequence[str], fallbacks: Sequence[str]) -> list[str]:
    """The texts, and the fallback of each that no font can draw."""
    if not fallbacks:
        return list(texts)
    return [
        text if readable(text) else fallback
        for text, fallback in zip(texts, fallbacks, strict=True)
    ]


def _check_pixels(pixels: Tensor, dimensions: int) -> None:
    channels = pixels.shape[-3] if pixels.ndim == dimensions else 0
    if pixels.dtype != uint8 or channels not in CHANNELS.values():
        shape = "(N,C,H,W)" if dimensions == 4 else "(C,H,W)"
        raise ValueError(
            f"pixels are {shape} uint8 with 1 to 4 planes, not {tuple(pixels.shape)} "
            f"{str(pixels.dtype).removeprefix('torch.')}"
        )


def _check_texts(
    count: int,
    rows: int,
    row_names: Sequence[str],
    captions: Sequence[str],
    fallbacks: Sequence[str],
    caption_ends: Sequence[str],
) -> None:
    """ValueError unless there is a name for each row, a caption for each image, and so on."""
    if fallbacks and row_names and captions:
        raise ValueError("fallbacks stand for row_names or for captions, not for both")
    expected = {
        "row_names": (row_names, rows),
        "captions": (captions, count),
        "caption_ends": (caption_ends, count),
        "fallbacks": (fallbacks, rows if row_names else count),
    }
    for name, (texts, number) in expected.items():
        if texts and len(texts) != number:
            raise ValueError(f"{len(texts)} {name} for {number} places")


# --- From pictures to files ---


def save_image(
    image: Image.Image, path: Path, settings: Mapping[str, object] | None = None
) -> None:
    """Write in the format of the path's ending. In a PNG, `settings` become text entries; in a JPEG
    or a WebP, lines of the description in its EXIF block.

    UserError where the disk refuses it, or the image is too large for the format.
    """
    _write(image, path, _options(path.suffix, settings))


def encoded_image(
    image: Image.Image, suffix: str, settings: Mapping[str, object] | None = None
) -> bytes:
    """The same as the bytes of a file with this ending. ValueError for images too large for it."""
    buffer = io.BytesIO()
    image = for_format(image, suffix)
    image.save(buffer, Image.registered_extensions()[suffix], **_options(suffix, settings))
    return buffer.getvalue()


def for_format(image: Image.Image, suffix: str) -> Image.Image:
    """The picture as files with that ending can hold it: 16 bits only in PNG and TIFF, and
    transparency in these and WebP; elsewhere it lies on white.
    """
    suffix = suffix.lower()
    if suffix in WITH_16_BITS or image.mode in USUAL_MODES:
        return image
    if image.mode == GREY_16:
        levels = np.asarray(image).astype(np.float32) / STEP_16
        return Image.fromarray(levels.round().astype(np.uint8))
    if image.mode == TRANSPARENT and suffix != ".webp":
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image


def _options(suffix: str, settings: Mapping[str, object] | None) -> dict[str, Any]:
    options = format_options(suffix)
    if suffix.lower() == ".png" and settings:
        options["pnginfo"] = _text_entries(settings)
    elif suffix.lower() in WITH_EXIF and settings:
        options["exif"] = _exif_block(settings)
    return options


def format_options(suffix: str) -> dict[str, Any]:
    """What Pillow is told of a format, by the ending of its files: JPEG with hardly any loss and
    the colours at full size, all others without loss.
    """
    suffix = suffix.lower()
    if suffix in (".jpg", ".jpeg", ".jpe", ".jfif"):
        return {"quality": 95, "subsampling": 0}
    if suffix == ".webp":
        return {"lossless": True}
    return {}


def frame_factor(count: int, size: tuple[int, int]) -> int:
    """By how much `count` images of that size (H, W) are reduced for `save_animation`."""
    columns = min(FILM_COLUMNS, count)
    rows = math.ceil(count / columns)
    longest = max(2 * columns * size[1], rows * size[0])
    return math.ceil(longest / LARGEST_FRAME)


def save_animation(frames: Sequence[tuple[Tensor, Tensor]], file: Path) -> None:
    """Pairs (x_t, estimate of x0), each (N,C,H,W) uint8, side by side, as a film: a WebP or GIF.

    The last pair stays for two seconds. UserError where it cannot be written; ValueError where
    there are no frames.
    """
    if not frames:
        raise ValueError("an animation needs at least one frame")
    columns = min(FILM_COLUMNS, len(frames[0][0]))
    pictures = [_side_by_side(image_grid(x, columns), image_grid(x0, columns)) for x, x0 in frames]
    durations = [FRAME_MILLISECONDS] * (len(pictures) - 1) + [LAST_FRAME_MILLISECONDS]
    options = {
        "save_all": True,
        "append_images": pictures[1:],
        "duration": durations,
        "loop": 0,
    }
    if file.suffix.lower() == ".webp":
        options["lossless"] = True
    _write(pictures[0], file, options)


def save_film(pixels: Sequence[Tensor], file: Path) -> None:
    """Images (C,H,W) uint8 one after the other, there and back, as a film: a WebP or GIF.

    UserError where it cannot be written; ValueError where there are no images.
    """
    if not pixels:
        raise ValueError("a film needs at least one image")
    there = [image_grid(image[None], 1) for image in pixels]
    pictures = [*there, *there[-2:0:-1]]
    options = {
        "save_all": True,
        "append_images": pictures[1:],
        "duration": FRAME_MILLISECONDS,
        "loop": 0,
    }
    if file.suffix.lower() == ".webp":
        options["lossless"] = True
    _write(pictures[0], file, options)


def _side_by_side(left: Image.Image, right: Image.Image) -> Image.Image:
    width = left.width + GAP_BETWEEN_GRIDS + right.width
    canvas = Image.new(left.mode, (width, left.height), "white")
    canvas.paste(left, (0, 0))
    canvas.paste(right, (left.width + GAP_BETWEEN_GRIDS, 0))
    return canvas


def _exif_block(settings: Mapping[str, object]) -> bytes:
    """Without settings where they are longer than a JPEG takes."""
    lines = [on_one_line(f"{key}: {value}") for key, value in settings.items()]
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = "\n".join(lines).encode()
    block = exif.tobytes()
    return block if len(block) <= LONGEST_EXIF else b""


def _text_entries(settings: Mapping[str, object]) -> PngInfo:
    entries = PngInfo()
    for key, value in settings.items():
        entries.add_itxt(printable(key), printable(str(value)))
    return entries


def _write(image: Image.Image, path: Path, options: Mapping[str, Any]) -> None:
    """In memory first, then under another name: whoever sees the file sees all of it."""
    formats = Image.registered_extensions()
    suffix = path.suffix.lower()
    if suffix not in formats:
        raise UserError(f"cannot write {path}: no image format has the ending {suffix!r}")
    try:
        buffer = io.BytesIO()
        for_format(image, suffix).save(buffer, formats[suffix], **options)
        half = path.with_name(f".{path.name}.tmp")
        half.write_bytes(buffer.getvalue())
        os.replace(half, path)
    except (OSError, ValueError, RuntimeError) as error:  # the last two: too large for the format
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot write {path}: {reason}") from None
