"""A picture of some images of a folder."""

import io
import os
from pathlib import Path

import numpy as np
import torch

from utils.data import read_image
from utils.data.index import scan_folder
from utils.errors import UserError
from utils.pictures import image_grid

THUMBNAIL = 96  # pixels
COLUMNS = 8
MOST_TRIES = 3  # times as many images as are shown, where some cannot be read


def grid_of(folder: Path, count: int) -> bytes:
    """A PNG of `count` images, or as many as there are, spread over the folder's classes.

    Raises UserError where none can be read. Links out of the folder's parent are not followed.
    """
    index = scan_folder(folder, conditional=False)
    pixels: list[np.ndarray] = []
    for place in _spread(len(index), count * MOST_TRIES):
        if len(pixels) == count:
            break
        picture = _thumbnail(folder, index.names[place])
        if picture is not None:
            pixels.append(picture)
    if not pixels:
        raise UserError(f"{folder.name} holds no images that can be read")
    stacked = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
    stream = io.BytesIO()
    image_grid(stacked, min(COLUMNS, len(pixels))).save(stream, "PNG")
    return stream.getvalue()


def _spread(total: int, count: int) -> list[int]:
    """So many places of `total`, first those that are far apart."""
    count = min(count, total)
    places = [number * total // count for number in range(count)]
    return places[::MOST_TRIES] + [place for i, place in enumerate(places) if i % MOST_TRIES]


def _thumbnail(folder: Path, name: str) -> np.ndarray | None:
    """(H,W,3) uint8; None for an image that cannot be read, or lies elsewhere."""
    file = folder / name
    if not os.path.realpath(file).startswith(f"{folder.parent}{os.sep}"):
        return None
    try:
        return read_image(file, (THUMBNAIL, THUMBNAIL))
    except Exception:  # a damaged file can fail anywhere in a decoder
        return None
