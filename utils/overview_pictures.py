"""What shows the images of generate.py together: a grid, a film, an animation of the denoising."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from utils.class_names import Label
from utils.console import say
from utils.pictures import image_grid, reduced, save_animation, save_film, save_image
from utils.ranks import Ranks

if TYPE_CHECKING:
    from utils.steering import Steering

MOST_IN_GRID = 256  # images that are shown together
MOST_IN_FILM = 256  # images of an interpolation that are shown one after the other
LARGEST_GRID = 8192  # pixels a side; a WebP ends at 16,383

WIDE_GRID = (64, 16)  # from so many images on, so many columns
MOST_COLUMNS = 8  # of smaller grids
WIDER_THAN_HIGH = 1.2


class Overviews:
    """The first images for a grid, those of an interpolation for a film, and the states of some
    images while they are denoised.
    """

    def __init__(self, count: int, steering: Steering | None, is_film: bool):
        self.steering = steering
        self.in_grid = range(min(count, MOST_IN_GRID))  # places
        self.in_film = evenly(count, MOST_IN_FILM) if is_film else []
        self.frames: list[tuple[Tensor, Tensor]] = []  # (x_t, estimate of x0), each (N,C,H,W) uint8
        self._columns = columns_of(len(self.in_grid)) * (1 if steering is None else 2)
        self._grid: dict[int, Tensor] = {}  # by place, and so the next one
        self._film: dict[int, Tensor] = {}

    def add(self, place: int, pixels: Tensor) -> None:
        """(C,H,W) uint8. Kept are copies, and no views of a batch, which would stay; in the grid
        smaller by a whole factor where it would be larger than files and memory like.
        """
        if place in self.in_film:
            self._film[place] = pixels.clone()
        if place not in self.in_grid:
            return
        factor = math.ceil(self._columns * max(pixels.shape[-2:]) / LARGEST_GRID)
        self._grid[place] = reduced(pixels, factor)

    def gather(self, ranks: Ranks) -> None:
        """Those of all processes."""
        for grid, film in ranks.gather((self._grid, self._film)):
            self._grid |= grid
            self._film |= film

    def grid(self) -> list[Tensor]:
        return [self._grid[place] for place in self.in_grid]

    def film(self) -> list[Tensor]:
        return [self._film[place] for place in self.in_film]

    # --- Files, and a line on each ---

    def write_grid(
        self,
        file: Path,
        names: Sequence[str],  # of each image's class; none: without classes
        labels: Sequence[Label] | None,
        numbers: int,  # how many of them a row of labels begins with
        first_seed: int,
        settings: Mapping[str, object],
    ) -> None:
        """The first images in one picture, behind their conditions, above their class and seed."""
        shown = torch.stack(self.grid())
        count = len(shown)
        captions = list(names[:count])
        fallbacks = []
        if names:
            fallbacks = [fallback_of(label, numbers) for label in (labels or [])[:count]]
        seeds = [str(first_seed + place) for place in range(count)]
        if self.steering is not None:
            shown = self.steering.before(shown)
            captions, fallbacks, seeds = map(behind_blanks, (captions, fallbacks, seeds))
        grid = image_grid(
            shown, self._columns, captions=captions, fallbacks=fallbacks, caption_ends=seeds
        )
        save_image(grid, file, settings)
        which = f"the first {count}" if count == MOST_IN_GRID else "all of them"
        say(f"{which} together in {file}")

    def write_film(self, file: Path) -> None:
        """The images of an interpolation, if it is one, one after the other, there and back."""
        if not self.in_film:
            return
        save_film(self.film(), file)
        say(f"one after the other in {file}")

    def write_animation(self, file: Path) -> None:
        """The denoising, where its states were kept."""
        if not self.frames:
            return
        save_animation(self.frames, file)
        say(f"the denoising, x_t beside the estimate of x0, in {file}")


def evenly(count: int, most: int) -> list[int]:
    """At most so many of the places of `count` images, the first and the last one among them."""
    if count <= most:
        return list(range(count))
    return [round(i * (count - 1) / (most - 1)) for i in range(most)]


def columns_of(count: int) -> int:
    """Of a grid of so many images."""
    many, columns = WIDE_GRID
    if count >= many:
        return columns
    return min(MOST_COLUMNS, max(1, round(count**0.5 * WIDER_THAN_HIGH)))


def fallback_of(label: Label, numbers: int) -> str:
    """What stands for the name of a class that no font here can write."""
    classes = [label]
    if not isinstance(label, int):
        classes = [int(each) for each in label[numbers:] if not math.isnan(each)]
    return f"class {classes[0]}" if len(classes) == 1 else "several classes"


def behind_blanks(texts: Sequence[str]) -> list[str]:
    """Each text behind an empty one: images beside their conditions."""
    return [text for own in texts for text in ("", own)]
