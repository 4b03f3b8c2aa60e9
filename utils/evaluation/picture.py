"""The picture of a comparison: real beside generated, worst and best matches, a row each."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from utils.evaluation.distribution import Chosen
from utils.evaluation.extract import Reader
from utils.evaluation.image_folder import ImageFolder
from utils.evaluation.paired import PairedReport
from utils.pictures import image_grid

COLUMNS = 8
LARGEST_SHOWN = 128  # pixels of a side: larger images are shown smaller
TILE = 1024  # features a side whose distances are computed at once


@dataclass(frozen=True)
class PictureRow:
    """Images of one folder, with a name for the row."""

    name: str
    folder: ImageFolder
    places: Sequence[int]


@dataclass(frozen=True)
class Matches:
    """The generated images that were compared, by the distance to their nearest real image."""

    generated: np.ndarray  # (n,) places in GENERATED, nearest first
    real: np.ndarray  # (n,) places in REAL of the nearest real image of each


def find_matches(chosen: Chosen) -> Matches:
    """The nearest real image of each generated one, by Euclidean distance of the features."""
    distances, rows = nearest(chosen.generated.features(), chosen.real.features())
    order = distances.argsort(stable=True).numpy()
    generated = chosen.generated.found.places[chosen.generated.rows]
    real = chosen.real.found.places[chosen.real.rows]
    return Matches(generated[order], real[rows.numpy()[order]])


def nearest(queries: Tensor, references: Tensor) -> tuple[Tensor, Tensor]:
    """(N,D), (M,D) -> the distance of each query to its nearest reference, (N,), and its row."""
    distances = []
    rows = []
    for part in queries.split(TILE):
        best = torch.full((len(part),), torch.inf, device=part.device)
        best_rows = torch.zeros(len(part), dtype=torch.long, device=part.device)
        for number, tile in enumerate(references.split(TILE)):
            found, place = torch.cdist(part, tile).min(dim=1)
            is_nearer = found < best
            best = torch.where(is_nearer, found, best)
            best_rows = torch.where(is_nearer, place + number * TILE, best_rows)
        distances.append(best.cpu())
        rows.append(best_rows.cpu())
    return torch.cat(distances), torch.cat(rows)


def sample_rows(real: ImageFolder, generated: ImageFolder) -> list[PictureRow]:
    """Some images of each folder, with the classes in their proportions."""
    return [
        PictureRow("real", real, real.order()[:COLUMNS].tolist()),
        PictureRow("generated", generated, generated.order()[:COLUMNS].tolist()),
    ]


def match_rows(real: ImageFolder, generated: ImageFolder, matches: Matches) -> list[PictureRow]:
    """The generated images farthest from and nearest to real ones, each above its nearest."""
    farthest = np.arange(len(matches.generated))[::-1][:COLUMNS]
    closest = np.arange(len(matches.generated))[:COLUMNS]
    rows = []
    for name, which in (("farthest from real", farthest), ("nearest to real", closest)):
        rows.append(PictureRow(name, generated, matches.generated[which].tolist()))
        rows.append(PictureRow("its nearest real", real, matches.real[which].tolist()))
    return rows


def pair_rows(real: ImageFolder, generated: ImageFolder, report: PairedReport) -> list[PictureRow]:
    """The worst and the best pairs by PSNR."""
    order = report.worst_first()
    rows = []
    for name, pairs in (("worst PSNR", order[:COLUMNS]), ("best PSNR", order[::-1][:COLUMNS])):
        rows.append(PictureRow(name, generated, [pair.generated for pair in pairs]))
        rows.append(PictureRow("its real image", real, [pair.real for pair in pairs]))
    return rows


def draw(rows: Sequence[PictureRow], reader: Reader) -> Image.Image:
    """One picture, COLUMNS images a row. All are shown at one size: the reader's, else that of the
    first image, within 128 pixels; others are fitted to it.
    """
    size = _shown_size(rows, reader)
    shown = Reader(size, reader.mode)
    pixels = []
    for row in rows:
        images = [_pixels(row.folder, place, shown) for place in row.places]
        blank = np.full((*size, 3), 255, np.uint8)
        images += [blank] * (COLUMNS - len(images))
        pixels += images
    stacked = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
    return image_grid(stacked, COLUMNS, row_names=[row.name for row in rows])


def _shown_size(rows: Sequence[PictureRow], reader: Reader) -> tuple[int, int]:
    size = reader.image_size
    if size is None:
        size = (LARGEST_SHOWN, LARGEST_SHOWN)
        first = rows[0]
        for place in first.places:
            image = reader.read(first.folder.path(place))
            if not isinstance(image, Exception):
                size = image.own_size
                break
    shrink = min(1.0, LARGEST_SHOWN / max(size))
    return max(1, round(size[0] * shrink)), max(1, round(size[1] * shrink))


def _pixels(folder: ImageFolder, place: int, reader: Reader) -> np.ndarray:
    """(H,W,3) uint8; grey for an image that cannot be read."""
    image = reader.read(folder.path(place))
    if isinstance(image, Exception):
        return np.full((*(reader.image_size or (1, 1)), 3), 128, np.uint8)
    return image.pixels
