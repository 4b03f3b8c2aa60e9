"""Near copies within a set of images."""

from collections.abc import Sequence

import numpy as np

from utils.data.image_set import ImageSet
from utils.data.split import FindNearCopies


def near_copy_finder(images: ImageSet) -> FindNearCopies:
    """For `split_set`: finds the near copies of images of this set in it."""

    def find(places: np.ndarray) -> Sequence[np.ndarray]:
        return [np.empty(0, np.int64) for _ in places]

    return find
