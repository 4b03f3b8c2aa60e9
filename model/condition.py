"""Images that steer images: a mask, edges, a photograph, as channels beside the noisy image.

A network that is conditioned takes these channels behind those of x_t. The last of them is 1 where
there is a condition: with all of them 0 there is none, which guidance needs (Ho & Salimans
2207.12598), and which some training images are shown with.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from model.codecs import PixelCodec

MOST_LABELS = 64  # of a label map


class PictureCondition:
    """A picture with 1 or 3 channels, as numbers in [-1, 1]."""

    name = "picture"

    def __init__(self, planes: int):
        if type(planes) is not int or planes not in (1, 3):
            raise ValueError(f"a condition is a grey or an RGB picture, not one of {planes} planes")
        self.planes = planes  # of its pixels
        self.config: dict[str, Any] = {"name": self.name, "planes": planes}

    @property
    def channels(self) -> int:
        """That the network takes beside those of x_t."""
        return self.planes + 1

    def encode(self, pixels: Tensor) -> Tensor:
        """(B,planes,H,W) uint8 -> (B,channels,H,W) float."""
        return _with_presence(PixelCodec().encode(pixels))


class LabelCondition:
    """A label map: each pixel has one of at most 64 labels, and each label a channel."""

    name = "labels"
    planes = 1

    def __init__(self, values: Sequence[int]):
        """`values`: the labels' numbers in the files, 0..255, ascending. Raises ValueError."""
        values = list(values)
        if not all(type(value) is int and 0 <= value <= 255 for value in values):
            raise ValueError(f"labels are numbers from 0 to 255, not {values!r:.80}")
        if not 1 <= len(values) <= MOST_LABELS or sorted(set(values)) != values:
            raise ValueError(f"labels are 1 to {MOST_LABELS} ascending numbers, not {values!r:.80}")
        self.values = values
        self._tables: dict[torch.device, Tensor] = {}  # copied to a device once
        self.config: dict[str, Any] = {"name": self.name, "values": values}

    @property
    def channels(self) -> int:
        """That the network takes beside those of x_t."""
        return len(self.values) + 1

    def encode(self, pixels: Tensor) -> Tensor:
        """(B,1,H,W) uint8 -> (B,channels,H,W) float: 1 in the channel of each pixel's label. A
        number that is no label is 0 in all of them.
        """
        device = pixels.device
        if device not in self._tables:
            self._tables[device] = torch.tensor(self.values, device=device).view(1, -1, 1, 1)
        values = self._tables[device]
        return _with_presence((pixels == values).to(torch.get_default_dtype()))


def _with_presence(channels: Tensor) -> Tensor:
    return torch.cat([channels, torch.ones_like(channels[:, :1])], dim=1)


Condition = PictureCondition | LabelCondition
CONDITIONS: dict[str, type[Condition]] = {
    PictureCondition.name: PictureCondition,
    LabelCondition.name: LabelCondition,
}


def build_condition(config: dict) -> Condition:
    """A condition from a plain dict; "name" chooses the class. Raises ValueError for one that is
    none.
    """
    arguments = dict(config)
    name = arguments.pop("name", None)
    if name not in list(CONDITIONS):
        raise ValueError(f"condition {name!r} is unknown; known are {', '.join(CONDITIONS)}")
    try:
        return CONDITIONS[name](**arguments)
    except TypeError:
        raise ValueError(f"condition {name!r} has other options than {arguments!r:.80}") from None


def without_condition(condition: Tensor, chosen: Tensor) -> Tensor:
    """Conditions (B,K,H,W), with those of the chosen images (B,) bool taken away."""
    return torch.where(chosen.view(-1, 1, 1, 1), 0.0, condition)
