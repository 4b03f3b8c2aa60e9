"""What a run that restores images (enlarges, or decodes them from latents) measures and draws."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from model.codecs import HALF_RANGE
from utils.data import ImageSet
from utils.data.pairs import PairSet
from utils.data.split import Split, lowest_numbers
from utils.errors import ReadError
from utils.evaluation.restoration import Convention, restoration_scores
from utils.pictures import image_grid
from utils.ranks import Ranks
from utils.runs.evaluations import Evaluation
from utils.training.evaluation import EvaluationPlan, plan_evaluations
from utils.training.length import RunLength

FIGURES = "loss, PSNR and SSIM"

# (network, inputs (B,C,h,w) uint8) -> restored (B,C,H,W) uint8, on the CPU
RestoreFunction = Callable[[nn.Module, Tensor], Tensor]


@dataclass
class Originals:
    """Some images of a set, on the host: what a network is given, and what it should make of it."""

    inputs: Tensor  # (m,C,h,w) uint8
    targets: Tensor  # (m,C,H,W) uint8
    numbers: list[int]  # of each image

    @classmethod
    def of(cls, images: ImageSet | PairSet, places: Iterable[int]) -> "Originals":
        """Those at these places: of pairs small and large, of images the same twice. Raises
        ReadError where one cannot be read.
        """
        places = [int(place) for place in places]
        items: list[Any] = [images[place] for place in places]
        for item in items:
            if isinstance(item, ReadError):
                raise item
        inputs = torch.stack([item[0] for item in items])
        targets = inputs
        if isinstance(items[0][1], Tensor):
            targets = torch.stack([item[1] for item in items])
        return cls(inputs, targets, [int(images.checksums[place]) for place in places])

    def __len__(self) -> int:
        return len(self.inputs)


def plan_restoration(
    length: RunLength, split: Split, passes: float, interval_epochs: int | None
) -> EvaluationPlan | None:
    """When a run is evaluated and on how many images; None where none are held out.

    `passes`: the forward passes that an image takes, each of as much as a training image.
    """
    if len(split.held_out) == 0:
        return None
    plan = plan_evaluations(
        total_steps=length.total_steps,
        steps_per_epoch=length.steps_per_epoch,
        global_batch=length.global_batch,
        held_out=len(split.held_out),
        passes=passes,
        interval_epochs=interval_epochs,
    )
    return replace(plan, figures=FIGURES)


def chosen_places(split: Split, checksums: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The places of `count` held-out images, and of as many training images, chosen by their
    pixels alone.
    """
    training = split.training(len(checksums))
    return split.held_out[:count], training[lowest_numbers(checksums[training], count)]


class RestorationScore:
    """Measures PSNR and SSIM of held-out images, and the mean absolute error of these and of as
    many training images. The processes of a run share the work.
    """

    def __init__(
        self,
        restore: RestoreFunction,
        held_out: Originals,
        training: Originals,
        convention: Convention,
        ranks: Ranks,
        baseline: Callable[[Tensor], Tensor] | None = None,  # inputs -> restored, uint8
    ):
        self.restore = restore
        self.held_out = held_out
        self.training = training
        self.convention = convention
        self.ranks = ranks
        self.baseline: dict[str, float] = {}
        if baseline is not None:
            places = range(len(held_out))
            pairs = [(held_out.inputs[i : i + 1], held_out.targets[i : i + 1]) for i in places]
            scores = torch.cat([self._scores(baseline(small), large) for small, large in pairs])
            self.baseline = {
                f"bicubic_{name}": float(values.mean())
                for name, values in zip(("psnr", "ssim"), scores.T, strict=True)
                if not values.isnan().any()
            }

    def __call__(self, network: nn.Module, step: int) -> Evaluation:
        """All processes call it together with equal networks."""
        everything = [self.held_out, self.training]
        places = [(images, i) for images in everything for i in range(len(images))]
        found = torch.zeros(len(places), 3, dtype=torch.float64)  # error, PSNR, SSIM
        for row in range(self.ranks.rank, len(places), self.ranks.world_size):
            images, i = places[row]
            restored = self.restore(network, images.inputs[i : i + 1])
            target = images.targets[i : i + 1]
            error = (restored.double() - target.double()).abs().mean() / HALF_RANGE
            found[row, 0] = error
            found[row, 1:] = self._scores(restored, target)[0]
        found = self.ranks.start_sum(found).get()
        held_out, training = found[: len(self.held_out)], found[len(self.held_out) :]
        scores = {"psnr": float(held_out[:, 1].mean())}
        if not held_out[:, 2].isnan().any():
            scores["ssim"] = float(held_out[:, 2].mean())
        return Evaluation(
            step,
            [0],
            held_out[:, :1].numpy(),
            training[:, :1].numpy(),
            scores | self.baseline,
            self._measure(),
            self.held_out.numbers,
            self.training.numbers,
            str(self.convention),
        )

    def _scores(self, restored: Tensor, targets: Tensor) -> Tensor:
        """PSNR and SSIM, (B,2) float64."""
        return torch.stack(restoration_scores(restored, targets, self.convention), dim=1)

    def _measure(self) -> str:
        """A digest of all that an error depends on, but for the network and the image."""
        shapes = (self.held_out.inputs.shape[1:], self.held_out.targets.shape[1:])
        everything = repr((shapes, self.convention))
        return hashlib.sha256(everything.encode()).hexdigest()[:16]


@dataclass
class RestorationPreviews:
    """Draws images in rows: each as it is given to the network, restored, and as it should be."""

    restore: Callable[[Tensor], Tensor]  # inputs -> restored, with the averaged network
    columns: dict[str, Tensor]  # what does not change, (m,C,H,W) uint8 each
    inputs: Tensor  # (m,C,h,w) uint8
    restored_name: str
    passes: float  # forward passes that an image takes, each of as much as a training image

    @property
    def network_rows(self) -> float:
        return len(self.inputs) * self.passes

    def draw(self, sign_of_life: Callable[[], None]) -> Image.Image:
        """The picture. `sign_of_life` is called after each network call."""
        restored = []
        for i in range(len(self.inputs)):
            restored.append(self.restore(self.inputs[i : i + 1]))
            sign_of_life()
        *before, last = self.columns.items()
        columns = dict([*before, (self.restored_name, torch.cat(restored)), last])
        pixels = torch.stack(list(columns.values()), dim=1).flatten(0, 1)  # image by image
        names = [name for _ in self.inputs for name in columns]
        return image_grid(pixels, len(columns), captions=names)
