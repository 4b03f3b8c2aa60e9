"""The images that steer those of generate.py."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from model.condition import Condition
from utils.condition_pictures import behind_conditions, in_turn
from utils.data.conditions import condition_files, read_condition
from utils.data.flat import readable


@dataclass
class Steering:
    """Conditions in their order: image i has condition i, and after the last one the first."""

    condition: Condition
    pixels: Tensor  # (n,P,H,W) uint8
    stems: list[str]  # their files, below the folder and without endings

    @classmethod
    def read(cls, path: Path, condition: Condition, size: tuple[int, int]) -> "Steering":
        """From a file, or from those of a folder. Raises UserError for what cannot be used."""
        files = condition_files(path)
        root = path if path.is_dir() else path.parent
        pixels = torch.stack([read_condition(file, condition, size) for file in files])
        stems = [str(file.relative_to(root).with_suffix("")) for file in files]
        return cls(condition, pixels, stems)

    def gives_names(self, count: int) -> bool:
        """Whether so many images can be called like their conditions: each has one of its own."""
        return count == len(self.stems) == len(set(self.stems)) > 1

    def name(self, place: int) -> str:
        """Of the condition of an image, for its text."""
        return readable(self.stems[place % len(self.stems)])

    def pixels_of(self, places: Sequence[int]) -> Tensor:
        """The conditions of the images at these places, (B,P,H,W) uint8."""
        return in_turn(self.pixels, places)

    def before(self, images: Tensor) -> Tensor:
        """A condition, its image, the next condition: (2B,3,H,W) uint8."""
        conditions = self.pixels_of(range(len(images)))
        return behind_conditions(self.condition, conditions, images)
