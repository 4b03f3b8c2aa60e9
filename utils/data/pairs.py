"""Pairs of one picture at two sizes, to learn to enlarge from."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from utils.data.image_set import ImageSet, load_image_set
from utils.data.opening import upright_size
from utils.errors import ReadError, UserError

MOST_LOOKED_AT = 500  # files whose own sizes are read


@dataclass
class PairSet:
    """Item i is (small (C,h,w) uint8, large (C,sh,sw) uint8, i), or a ReadError.

    The small image is what training a diffusion model at that size would see; the large one is the
    same file at `scale` times the size.
    """

    small: ImageSet
    large: ImageSet

    def __post_init__(self) -> None:
        if list(self.small.files) != list(self.large.files):
            raise UserError(
                f"{self.small.root} has changed while it was read: the same files must be readable "
                "at both sizes"
            )

    @property
    def checksums(self) -> np.ndarray:
        """(N,) of the large images, which say more."""
        return self.large.checksums

    def __len__(self) -> int:
        return len(self.small)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor, int] | ReadError:
        small: Any = self.small[i]
        large: Any = self.large[i]
        for item in (small, large):
            if isinstance(item, ReadError):
                return item
        return small[0], large[0], i

    def subset(self, places: np.ndarray) -> "PairSet":
        """The pairs at these places, in their order."""
        return PairSet(self.small.subset(places), self.large.subset(places))


class CropSet:
    """The parts of pairs that random crops are cut from, so that an epoch shows each place of each
    image about once, whatever the size of the images.

    Item i is (small (C,r,q), large (C,sr,sq), i) uint8, with sides of twice the crop, or all where
    the image is smaller; or a ReadError. The parts overlap by one crop, so that every crop lies in
    one of them.
    """

    def __init__(self, pairs: PairSet, crop: int):
        self.pairs = pairs
        height, width = pairs.small.image_size
        self.rows = starts(height, crop)
        self.columns = starts(width, crop)
        self.sides = (min(2 * crop, height), min(2 * crop, width))
        self.scale = pairs.large.image_size[0] // height

    @property
    def is_decoded(self) -> bool:
        return self.pairs.small.is_decoded and self.pairs.large.is_decoded

    @property
    def per_image(self) -> int:
        return len(self.rows) * len(self.columns)

    def __len__(self) -> int:
        return len(self.pairs) * self.per_image

    def name(self, i: int) -> str:
        return self.pairs.small.name(i // self.per_image)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor, int] | ReadError:
        place, part = divmod(i, self.per_image)
        pair = self.pairs[place]
        if isinstance(pair, ReadError):
            return pair
        top = self.rows[part // len(self.columns)]
        left = self.columns[part % len(self.columns)]
        small = self._part(pair[0], top, left, 1)
        large = self._part(pair[1], top, left, self.scale)
        return small, large, i

    def _part(self, image: Tensor, top: int, left: int, scale: int) -> Tensor:
        height, width = self.sides
        rows = slice(scale * top, scale * (top + height))
        columns = slice(scale * left, scale * (left + width))
        return image[:, rows, columns].contiguous()


def starts(side: int, crop: int) -> list[int]:
    """Where the parts of an image begin along a side: from its one end to the other, at most a crop
    apart.
    """
    last = side - min(2 * crop, side)
    count = math.ceil(last / crop) + 1
    return [round(i * last / max(1, count - 1)) for i in range(count)]


def load_pairs(
    root: Path,
    image_size: tuple[int, int],
    scale: int,
    mode: str = "auto",
    cache: str = "auto",
    quiet: bool = False,
) -> PairSet:
    """The images below `root` at `image_size` (H, W) and at `scale` times that.

    `mode` and `cache` as in `load_image_set`; auto: grey where all large images are. Raises
    UserError without any readable image.
    """
    height, width = image_size
    size = (scale * height, scale * width)
    large = load_image_set(root, size, False, mode=mode, cache=cache, quiet=quiet)
    small = load_image_set(root, image_size, False, mode=large.mode, cache=cache, quiet=quiet)
    return PairSet(small, large)


def enlarged_originals_remark(images: ImageSet) -> str:
    """What to say where files are smaller than the images of a set, which then are no originals but
    enlarged themselves; "" where none is. Looks at some of the files.
    """
    height, width = images.image_size
    step = max(1, len(images) // MOST_LOOKED_AT)
    looked_at = [images.name(i) for i in range(0, len(images), step)]
    too_small = [name for name in looked_at if not covers(images.root / name, height, width)]
    if not too_small:
        return ""
    return (
        f"{len(too_small):,} of {len(looked_at):,} images have fewer pixels than {height},{width}, "
        f"such as {too_small[0]}: they were enlarged to that, and the network learns their blur; a "
        "smaller --image_size avoids it"
    )


def covers(path: Path, height: int, width: int) -> bool:
    """Whether a picture, upright, has these sides or more. True where its size cannot be told."""
    try:
        own_height, own_width = upright_size(path)
    except Exception:  # Pillow's plugins raise what they like
        return True
    return own_height >= height and own_width >= width
