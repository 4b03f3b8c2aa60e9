"""How plain pictures are: drawings on an even ground, or photographs."""

import torch
from torch import Tensor

from utils.data.image_set import ImageSet
from utils.data.split import lowest_numbers

MOST_IMAGES = 500  # that are looked at


def flat_share(images: ImageSet) -> float:
    """The share of pixels, 0..1, that are equal to their neighbour on the right, in all channels:
    of garments or emoji on an even ground about a half, of photographs a few hundredths.

    Of the same images of a set each time, whatever their order. Those that cannot be read do not
    count; 0 where none can.
    """
    places = lowest_numbers(images.checksums, MOST_IMAGES)
    items = [images[int(place)] for place in places]
    shares = [_flat_share(item[0]) for item in items if isinstance(item, tuple)]
    return sum(shares) / len(shares) if shares else 0.0


def _flat_share(pixels: Tensor) -> float:
    """Of one image (C,H,W)."""
    if pixels.shape[2] < 2:
        return 0.0
    return torch.eq(pixels[..., 1:], pixels[..., :-1]).all(0).double().mean().item()
