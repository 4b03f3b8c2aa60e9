"""Whether the mirror image of a training image could be one too."""

import numpy as np
import torch
from torch import Tensor

from model.randomness import mix
from utils.data.image_set import ImageSet

MOST_PER_CLASS = 200  # images that are looked at
MOST_CLASSES = 20
FEWEST_PER_CLASS = 20  # with fewer, chance says too much

# Of the energy of the difference between an image and its mirror image, how much may be the same in
# all images of a class. (Shoes that all point one way, or digits, have a tenth to a half.)
LARGEST_SHARE = 0.02


def may_be_mirrored(images: ImageSet) -> bool:
    """Whether nothing tells the images from their mirror images: neither their looks, class by
    class, nor class names that are single characters, as digits and letters have.

    False where there are too few images to tell.
    """
    names = images.class_names
    if any(len(name.strip()) == 1 for name in names) or "left" in " ".join(names).lower():
        return False
    by_class = bool(names) and images.conditions is None
    for label in range(min(len(names), MOST_CLASSES)) if by_class else (None,):
        places = np.arange(len(images))
        if by_class:
            places = np.flatnonzero(images.labels.array == label)
        if len(places) < FEWEST_PER_CLASS:
            return False
        pixels = _pixels_of(images, places)
        if pixels is None or systematic_share(pixels) > LARGEST_SHARE:
            return False
    return True


def systematic_share(pixels: Tensor) -> float:
    """Images (N,C,H,W) -> how much of what tells them from their mirror images is the same in all
    of them, 0..1; about 0 where either way round is as likely.
    """
    differences = (pixels - pixels.flip(3)).flatten(1).double()
    energy = differences.square().sum(1).mean()
    if energy == 0:
        return 0.0
    count = len(pixels)
    common = differences.mean(0).square().sum()
    # Of independent differences a share 1 / N would remain by chance.
    return max(0.0, ((common / energy - 1 / count) * count / (count - 1)).item())


def _pixels_of(images: ImageSet, places: np.ndarray) -> Tensor | None:
    """Some of the images at these places, always the same ones; None where one cannot be read."""
    order = np.argsort([mix(int(images.checksums[place])) for place in places], kind="stable")
    items = [images[int(place)] for place in places[order[:MOST_PER_CLASS]]]
    if not all(isinstance(item, tuple) for item in items):
        return None
    return torch.stack([item[0] for item in items]).float()  # type: ignore[index]
