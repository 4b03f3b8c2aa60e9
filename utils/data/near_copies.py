"""Near copies within a set of images."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor

from model.metrics.copies import NEAR_COPY, CopySearch
from utils.console import Progress
from utils.data.image_set import ImageSet, stacked_pixels
from utils.data.split import Candidates, FindNearCopies
from utils.devices import one_thread
from utils.pixel_planes import shown_pixels

SEARCHED_AT_ONCE = 2**16  # images, of which a search keeps small copies
READ_AT_ONCE = 2**25  # bytes of pixels


def near_copy_finder(images: ImageSet, quiet: bool = False) -> FindNearCopies:
    """For `split_set`: finds the near copies of images of this set in it. Raises ReadError where an
    image cannot be read any more.
    """
    searches: dict[int, CopySearch] = {}  # the last one, by its first image

    def search_from(first: int) -> CopySearch:
        if first not in searches:
            searches.clear()
            some = np.arange(first, min(first + SEARCHED_AT_ONCE, len(images)))
            batches = (_shown(images, portion) for portion in _portions(images, some))
            searches[first] = CopySearch(batches)
        return searches[first]

    def find(places: np.ndarray, among: Candidates) -> Iterator[tuple[int, np.ndarray]]:
        parts = range(0, len(images), SEARCHED_AT_ONCE)
        progress = Progress(
            len(parts) * len(places),
            title="looking for near copies",
            unit="image",
            shown=not quiet,
            leave=False,
        )
        with progress, one_thread():
            for first in parts:
                search = search_from(first)
                for some in _portions(images, places):
                    wanted = partial(_wanted, some, among, slice(first, first + len(search)))
                    found = search.within_each(_shown(images, some), NEAR_COPY, wanted)
                    for place, near in zip(some.tolist(), found, strict=True):
                        yield place, near.numpy() + first
                        progress.update()

    return find


def _wanted(places: np.ndarray, among: Candidates, searched: slice, query: int) -> Tensor:
    """Of the images that are searched, those to compare the query with, one of these places."""
    return torch.from_numpy(among(int(places[query]))[searched])


def _portions(images: ImageSet, places: np.ndarray) -> Iterator[np.ndarray]:
    """As many of these places at a time as the memory should hold images of."""
    height, width = images.image_size
    at_once = max(1, READ_AT_ONCE // (images.channels * height * width))
    for start in range(0, len(places), at_once):
        yield places[start : start + at_once]


def _shown(images: ImageSet, places: np.ndarray) -> Tensor:
    """The images at these places as they are shown, (n,C,H,W) uint8."""
    return shown_pixels(stacked_pixels(images, places))
