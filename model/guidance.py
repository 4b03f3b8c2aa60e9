"""Guidance: which network rows it needs, and their sum.

Classifier-free guidance (Ho & Salimans 2207.12598):

    prediction = null + s (label - null)

s = 1 is plain conditional and s = 0 unconditional, and both cost one row per image; any other s
costs two. s is one number or one per image. (Ho & Salimans' w is s - 1.)
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from model.transfer import numbers_on

NO_LABEL = -1  # stands for the null label where the number of classes is not known


def null_label(network: Callable) -> int:
    """The label that stands for "no label": the last row of the network's label table.

    DistributedDataParallel hides the attribute behind `module`. Raises ValueError for a network
    without classes.
    """
    num_classes = getattr(getattr(network, "module", network), "num_classes", None)
    if num_classes is None:
        raise ValueError(
            "labels were given to a network that was built without classes (num_classes=None)"
        )
    return num_classes


Label = int | tuple[float, ...]  # of an image: a number, or a row of numbers and several labels

NOTHING = math.nan  # what is not there, in a row


def without_labels(labels: Tensor, network: Callable, chosen: Tensor) -> Tensor:
    """Labels (B,) or rows of them (B,W), with those of the chosen images (B,) bool taken away."""
    if labels.dim() == 1:
        return torch.where(chosen, null_label(network), labels)
    return torch.where(chosen[:, None], NOTHING, labels)


def null_of(network: Callable, labels: Any) -> int:
    """The null label for images with these labels: NO_LABEL where they are rows, or none are."""
    if labels is None or len(labels) == 0:
        return NO_LABEL
    first = labels[0]
    is_row = first.ndim > 0 if hasattr(first, "ndim") else isinstance(first, list | tuple)
    return NO_LABEL if is_row else null_label(network)


def label_tensor(labels: Sequence[Label], null: int, device: torch.device) -> Tensor | None:
    """The labels of images, NO_LABEL for none, as a network takes them; None where no image has
    one.

    (B,) with `null` for none. Where some are rows they all become rows (B,W); a number beside them
    is one with that label alone, as networks without numbers take it.
    """
    if all(label == NO_LABEL for label in labels):
        return None
    widths = [len(label) for label in labels if isinstance(label, tuple)]
    if not widths:
        return numbers_on(
            [null if label == NO_LABEL else label for label in labels], device, torch.long
        )
    width = max(widths)
    rows = []
    for label in labels:
        row = label if isinstance(label, tuple) else (label,)
        if label == NO_LABEL:
            row = ()
        rows.append([*row, *[NOTHING] * (width - len(row))])
    return numbers_on(rows, device, torch.float32)


def needs_label(scale: float) -> bool:
    """Whether an image guided with this scale asks the network about its label."""
    return scale != 0


def needs_null(scale: float) -> bool:
    """Whether an image with a label, guided with this scale, asks the network without it too."""
    return scale not in (0, 1)


def guided_places(
    labels: Sequence[Label], scales: Sequence[float], conditioned: bool = False
) -> list[int]:
    """The places of the images that need two rows; `conditioned`: all of them have more than a
    label that can be left out.
    """
    return [
        place
        for place, (label, scale) in enumerate(zip(labels, scales, strict=True))
        if (conditioned or label != NO_LABEL) and needs_null(scale)
    ]


def combine(prediction: Tensor, places: Sequence[int], scales: Tensor) -> Tensor:
    """The network's output for B + G rows -> the guided prediction of B images.

    The first B rows belong to the B images, the last G to the images at `places`, without their
    label. `scales` (G,1,1,1) on the output's device. Works in the output's dtype, which the caller
    has made float32 or better: in 16 bits the difference of two near values is mostly rounding.
    """
    if len(places) == 0:
        return prediction
    n = len(prediction) - len(places)
    own = prediction[:n]
    null = prediction[n:]
    if len(places) == n:
        return null + scales * (own - null)
    index = numbers_on(places, prediction.device, torch.long)
    guided = null + scales * (own.index_select(0, index) - null)
    return own.index_copy(0, index, guided)


class Autoguided(nn.Module):
    """Autoguidance, Karras et al. 2406.02507: a network led away from a worse one of its kind.

        prediction = guide + s (network - guide)

    The guide is such as an early checkpoint of the same run. It takes the same rows, so that every
    call costs twice; s = 1 is the network alone. With `guide_labels` False it is not told their
    labels: the images are led away from what both networks do badly, and at once towards their
    labels, as classifier-free guidance leads them.
    """

    def __init__(
        self, network: nn.Module, guide: nn.Module, scale: float, guide_labels: bool = True
    ):
        super().__init__()
        self.network = network
        self.guide = guide
        self.scale = scale
        self.guide_labels = guide_labels

    @property
    def num_classes(self) -> int | None:
        """Of both."""
        return self.network.num_classes  # type: ignore[return-value]

    @property
    def downsample_factor(self) -> int:
        """What both divide the sides of an image by."""
        return math.lcm(self.network.downsample_factor, self.guide.downsample_factor)  # type: ignore

    @property
    def config(self) -> dict:
        """Of the network that is guided."""
        return self.network.config  # type: ignore[return-value]

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """(B,C,H,W), (B,), (B,) or None -> (B,C,H,W), in float32 or better."""
        precise = torch.promote_types(x.dtype, torch.float32)
        good = self.network(x, t, labels).to(precise)
        worse = self.guide(x, t, labels if self.guide_labels else None).to(precise)
        return worse + self.scale * (good - worse)
