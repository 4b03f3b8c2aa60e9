"""The images that steer those of generate.py."""

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from model.condition import Condition
from utils.condition_pictures import behind_conditions
from utils.console import Progress
from utils.data.conditions import condition_files, read_condition
from utils.data.flat import readable
from utils.data.overviews import MASKS, OVERVIEWS

# What generate.py writes beside images.
RESERVED = {*OVERVIEWS, MASKS, "nearest"}
MOST_KEPT = 2**28  # bytes of conditions
LONGEST_PART = 200  # bytes of a name; a temporary file's is longer


class Steering:
    """Conditions in their order: image i has condition i, and after the last one the first.

    Each is read at once, so that what cannot be used is found before any work; where they are many,
    they are read again when they are needed.
    """

    def __init__(
        self,
        path: Path,
        condition: Condition,
        size: tuple[int, int],
        count: int,
        quiet: bool = False,
    ):
        """For so many images, from a file or those of a folder. Raises UserError for what cannot be
        used.
        """
        every = condition_files(path)
        root = path if path.is_dir() else path.parent
        self.condition = condition
        self.stems = []  # the files, below the folder and without endings
        self.is_whole = path.is_dir() and len(every) == count  # a folder's, one for each image
        self._files = every[:count]
        self._size = size
        self._kept: dict[int, Tensor] = {}  # by place
        self._kept_bytes = 0
        progress = Progress(
            len(self._files), title="conditions", unit="image", leave=False, shown=not quiet
        )
        with progress:
            for place, file in enumerate(self._files):
                self.stems.append(str(file.relative_to(root).with_suffix("")))
                self._pixels(place)
                progress.update()

    def _pixels(self, place: int) -> Tensor:
        """A condition, (P,H,W) uint8."""
        if place in self._kept:
            return self._kept[place]
        file = self._files[place]
        pixels = read_condition(file, str(file), self.condition, self._size)
        if self._kept_bytes + pixels.nbytes <= MOST_KEPT:
            self._kept[place] = pixels
            self._kept_bytes += pixels.nbytes
        return pixels

    def gives_names(self, image_format: str) -> bool:
        """Whether the images are called like their conditions: each has one of its own, and all of
        these names can stand beside each other and what else is written.
        """
        return self.is_whole and can_stand_together(self.stems, image_format)

    def name(self, place: int) -> str:
        """Of the condition of an image, for its text."""
        return readable(self.stems[place % len(self.stems)])

    def pixels_of(self, places: Sequence[int]) -> Tensor:
        """The conditions of the images at these places, (B,P,H,W) uint8."""
        return torch.stack([self._pixels(place % len(self._files)) for place in places])

    def before(self, images: Tensor) -> Tensor:
        """A condition, its image, the next condition: (2B,3,H,W) uint8."""
        conditions = self.pixels_of(range(len(images)))
        return behind_conditions(self.condition, conditions, images)


def can_stand_together(stems: Sequence[str], image_format: str) -> bool:
    """Whether files of these names, with the ending of a format, can be written into one folder, on
    any file system.
    """
    files = [f"{stem}.{image_format}".casefold() for stem in stems]
    folders = {str(parent) for file in files for parent in Path(file).parents}
    parts = [part for file in files for part in Path(file).parts]
    taken = {Path(file).parts[0].partition(".")[0] for file in files} & RESERVED
    is_short = all(len(os.fsencode(part)) <= LONGEST_PART for part in parts)
    return len(set(files)) == len(files) and not folders & set(files) and not taken and is_short
