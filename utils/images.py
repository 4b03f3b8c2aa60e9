"""Pixels: from files to uint8 arrays, between uint8 and [-1, 1], and from tensors to files, grids
and animations.
"""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from utils.errors import UserError

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


def read_image(path: Path, size: tuple[int, int]) -> np.ndarray:
    """An image file of any mode -> (H,W,3) uint8 at `size` (H, W).

    EXIF rotation applied, transparency laid on white, 16 bits reduced to 8; the shape is kept:
    scaled (antialiased) until it covers `size`, then cropped at the centre. Of an animation, the
    first frame. Raises what Pillow does.
    """
    with Image.open(path) as file:
        image = ImageOps.exif_transpose(file)
        image.load()
    if image.mode.startswith("I;16") or image.mode == "I":
        image = Image.fromarray(
            (np.asarray(image).astype(np.float64) / 257).round().clip(0, 255).astype(np.uint8)
        )
    elif image.mode == "F":
        raise ValueError("floating-point pixels have no defined range; save it with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    image = image.convert("RGB")
    if image.size != size[::-1]:
        image = ImageOps.fit(image, size[::-1], Image.Resampling.BICUBIC)
    return np.asarray(image)


def to_unit(pixels: Tensor) -> Tensor:
    """uint8 0..255 -> float in [-1, 1]."""
    return pixels.to(torch.get_default_dtype()) / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """Float in [-1, 1] -> uint8 0..255: clamped, then rounded, so that nothing wraps around."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def save_image(image: Image.Image, path: Path, settings: dict | None = None) -> None:
    """Write by the path's suffix. In a PNG, `settings` become text entries."""
    options = {}
    if path.suffix == ".png" and settings:
        options["pnginfo"] = info = PngInfo()
        for key, value in settings.items():
            info.add_itxt(key, str(value))
    elif path.suffix in (".jpg", ".jpeg"):
        options = {"quality": 95, "subsampling": 0}
    elif path.suffix == ".webp":
        options = {"lossless": True}
    try:
        buffer = io.BytesIO()
        image.save(buffer, Image.registered_extensions()[path.suffix], **options)
        path.write_bytes(buffer.getvalue())
    except (OSError, ValueError) as error:  # ValueError: too large for the format
        raise UserError(
            f"cannot write {path}: {getattr(error, 'strerror', None) or error}"
        ) from None


def image_grid(
    images: Tensor, columns: int, row_names: Sequence[str] = (), captions: Sequence[str] = ()
) -> Image.Image:
    """(N,C,H,W) float in [-1, 1] -> one picture of N images, row by row. `row_names` stand to the
    left of the rows, `captions` below the images; small images are enlarged by a whole factor,
    pixel for pixel.
    """
    rows = -(-len(images) // columns)
    scale = max(1, (96 if captions else 64) // max(images.shape[-2:]))  # room for the captions
    cells = to_uint8(images).repeat_interleave(scale, 2).repeat_interleave(scale, 3).cpu().numpy()
    cells = cells.transpose(0, 2, 3, 1) if cells.shape[1] == 3 else cells[:, 0]
    height, width, gap = cells.shape[1], cells.shape[2], 2
    font = ImageFont.load_default(size=12)
    margin = max((int(font.getlength(name)) + 10 for name in row_names), default=0)
    step_x, step_y = width + gap, height + gap + (16 if captions else 0)
    canvas = Image.new(
        "L" if cells.ndim == 3 else "RGB", (margin + columns * step_x, rows * step_y), "white"
    )
    pen = ImageDraw.Draw(canvas)
    for i, cell in enumerate(cells):
        x, y = margin + i % columns * step_x, i // columns * step_y
        canvas.paste(Image.fromarray(cell), (x, y))
        if captions:
            pen.text(
                (x + width // 2, y + height + 8), captions[i], fill="black", font=font, anchor="mm"
            )
    for row, name in enumerate(row_names):
        pen.text((4, row * step_y + height // 2), name, fill="black", font=font, anchor="lm")
    return canvas
