"""Near copies within a set of images."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from model.metrics.copies import NEAR_COPY, CopySearch
from utils.console import Progress
from utils.data.image_set import ImageSet
from utils.data.split import FindNearCopies
from utils.devices import one_thread
from utils.errors import ReadError

SEARCHED_AT_ONCE = 4096  # images


def near_copy_finder(images: ImageSet, quiet: bool = False) -> FindNearCopies:
    """For `split_set`: finds the near copies of images of this set in it. Raises ReadError where an
    image cannot be read any more.
    """

    def find(places: np.ndarray) -> Sequence[np.ndarray]:
        found: list[list[np.ndarray]] = [[] for _ in places]
        if len(places) == 0:
            return []
        queries = _pixels(images, places)
        progress = Progress(
            len(images), title="looking for near copies", unit="image", shown=not quiet, leave=False
        )
        with progress, one_thread():
            for first, chunk in _chunks(images):
                for i, near in enumerate(CopySearch(chunk).within(queries, NEAR_COPY)):
                    found[i].append(near.numpy() + first)
                progress.update(len(chunk))
        near_copies = [np.concatenate(parts) for parts in found]
        return [near[near != place] for near, place in zip(near_copies, places, strict=True)]

    return find


def _chunks(images: ImageSet) -> Iterator[tuple[int, Tensor]]:
    """The set in parts: the place of the first image of each, and their pixels."""
    for first in range(0, len(images), SEARCHED_AT_ONCE):
        places = np.arange(first, min(first + SEARCHED_AT_ONCE, len(images)))
        yield first, _pixels(images, places)


def _pixels(images: ImageSet, places: np.ndarray) -> Tensor:
    """(n,C,H,W) uint8."""
    pixels = []
    for place in places:
        item = images[int(place)]
        if isinstance(item, ReadError):
            raise item
        pixels.append(item[0])
    return torch.stack(pixels)
