"""Near copies within a set of images."""

from collections.abc import Iterator, Sequence

import numpy as np
from torch import Tensor

from model.metrics.copies import NEAR_COPY, CopySearch
from utils.console import Progress
from utils.data.image_set import ImageSet, stacked_pixels
from utils.data.split import FindNearCopies
from utils.devices import one_thread
from utils.pixel_planes import shown_pixels

SEARCHED_AT_ONCE = 2**16  # images, of which a search keeps small copies
READ_AT_ONCE = 2**25  # bytes of pixels


def near_copy_finder(images: ImageSet, quiet: bool = False) -> FindNearCopies:
    """For `split_set`: finds the near copies of images of this set in it. Raises ReadError where an
    image cannot be read any more.
    """

    def find(places: np.ndarray) -> Sequence[np.ndarray]:
        found: list[list[np.ndarray]] = [[] for _ in places]
        progress = Progress(
            len(images), title="looking for near copies", unit="image", shown=not quiet, leave=False
        )
        with progress, one_thread():
            for first in range(0, len(images), SEARCHED_AT_ONCE):
                some = np.arange(first, min(first + SEARCHED_AT_ONCE, len(images)))
                search = CopySearch(_batches(images, some))
                i = 0
                for queries in _batches(images, places):
                    for near in search.within(queries, NEAR_COPY):
                        found[i].append(near.numpy() + first)
                        i += 1
                progress.update(len(some))
        near_copies = [np.concatenate(parts) for parts in found]
        return [near[near != place] for near, place in zip(near_copies, places, strict=True)]

    return find


def _batches(images: ImageSet, places: np.ndarray) -> Iterator[Tensor]:
    """The images at these places as they are shown, (n,C,H,W) uint8, as many at a time as the
    memory should hold.
    """
    height, width = images.image_size
    at_once = max(1, READ_AT_ONCE // (images.channels * height * width))
    for start in range(0, len(places), at_once):
        yield shown_pixels(stacked_pixels(images, places[start : start + at_once]))
