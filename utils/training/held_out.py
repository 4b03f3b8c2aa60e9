"""The loss of images that the network does not learn from, beside that of images that it does."""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from model.codecs import LatentCodec
from model.diffusion import GaussianDiffusion
from model.randomness import mix
from model.samplers.base import evaluation_mode
from utils.data import ImageSet
from utils.data.conditions import ConditionedSet
from utils.devices import Precision
from utils.errors import ReadError
from utils.ranks import Ranks
from utils.training.diffusion_task import DiffusionTask

LEVELS = 8
# Log-SNRs beyond these are left out: nothing of the image is seen there, or nothing of the noise.
LOWEST_LOG_SNR, HIGHEST_LOG_SNR = -6.0, 8.0
COARSE_LOG_SNR = -4.0  # where no more than the coarsest shapes are seen in the noise


def evaluation_time_steps(diffusion: GaussianDiffusion, count: int = LEVELS) -> list[int]:
    """Time steps equally spaced in log-SNR, ascending; fewer where the process has no more."""
    log_snr = diffusion.levels.log_snr(torch.arange(diffusion.noise_steps)).flatten()
    low = max(LOWEST_LOG_SNR, float(log_snr[-1]))
    high = min(HIGHEST_LOG_SNR, float(log_snr[0]))
    wanted = torch.linspace(high, low, count, dtype=torch.float64)
    return nearest_time_steps(diffusion, wanted)


def nearest_time_steps(diffusion: GaussianDiffusion, log_snrs: Tensor) -> list[int]:
    """The time steps nearest to these log-SNRs (n,), each once, ascending."""
    log_snr = diffusion.levels.log_snr(torch.arange(diffusion.noise_steps)).flatten()
    nearest = (log_snr[None] - log_snrs[:, None]).abs().argmin(dim=1)
    return sorted(set(nearest.tolist()))


@dataclass
class SampleOfImages:
    """Some images of a set, on the host."""

    pixels: Tensor  # (m,C,H,W) uint8, and the planes of conditions behind them
    labels: Tensor  # (m,), or rows (m,W)
    numbers: list[int]  # of each image: what its noise is drawn from

    @classmethod
    def of(cls, images: ImageSet | ConditionedSet, places: np.ndarray) -> "SampleOfImages":
        """The images at these places. Raises ReadError where one cannot be read."""
        items = [images[int(place)] for place in places]
        for item in items:
            if isinstance(item, ReadError):
                raise item
        pixels, labels, _ = zip(*items, strict=True)
        numbers = [int(images.checksums[place]) for place in places]
        return cls(torch.stack(pixels), default_collate(labels), numbers)


class HeldOutLoss:
    """Measures the loss of held-out images, and of as many training images, at a few time steps.

    The noise of an image at a time step is a function of (seed, image, t): two evaluations see the
    same, so that their difference is the network's. The processes of a run share the work.
    """

    def __init__(
        self,
        task: DiffusionTask,
        held_out: SampleOfImages,
        training: SampleOfImages,
        precision: Precision,
        ranks: Ranks,
        batch_size: int,
        seed: int,
    ):
        self.task = task
        self.precision = precision
        self.ranks = ranks
        self.batch_size = batch_size
        self.seed = seed
        self.time_steps = evaluation_time_steps(task.diffusion)
        self.held_out_images = held_out.numbers
        self.training_images = training.numbers
        self.images = len(held_out.labels)
        self._pixels = torch.cat([held_out.pixels, training.pixels])
        # Latents are encoded once, which takes longer than their loss.
        self._latents: tuple[Tensor, Tensor | None] | None = None
        if isinstance(task.codec, LatentCodec):
            self._latents = self._encoded()
        self._labels = torch.cat([held_out.labels, training.labels])
        self._numbers = held_out.numbers + training.numbers

    def _encoded(self) -> tuple[Tensor, Tensor | None]:
        """All images and their conditions as latents; a part at a time, since the pixels of label
        maps take as many numbers as there are labels.
        """
        latents, conditions = [], []
        for pixels in self._pixels.split(self.batch_size):
            image, condition = self.task.encode(pixels.to(self.precision.device))
            latents.append(image)
            if condition is not None:
                conditions.append(condition)
        return torch.cat(latents), torch.cat(conditions) if conditions else None

    @property
    def measure(self) -> str:
        """A digest of all that a loss depends on, but for the network and the image."""
        task = self.task
        facts = (self.seed, self.time_steps, task.diffusion.config, task.codec.config)
        everything = repr((facts, task.loss_kind, task.conditional))
        if task.condition is not None:
            everything += repr(task.condition.config)
        return hashlib.sha256(everything.encode()).hexdigest()[:16]

    def __call__(self, network: nn.Module) -> tuple[np.ndarray, np.ndarray]:
        """The losses of held-out and of training images, both (m, len(time_steps)), on all
        processes, which call it together with equal networks.
        """
        table = self._table(network, len(self._numbers), self.time_steps)
        return table[: self.images], table[self.images :]

    def gain_of_labels(self, network: nn.Module) -> float:
        """By how much the loss of held-out images is larger where the network is not told their
        labels, in noise that leaves the coarsest shapes alone: 0.5 is by half, 0 not at all. All
        processes call it together.
        """
        coarse = torch.tensor([COARSE_LOG_SNR], dtype=torch.float64)
        t = nearest_time_steps(self.task.diffusion, coarse)
        told = self._table(network, self.images, t).mean()
        untold = self._table(network, self.images, t, is_told=False).mean()
        return float(untold / told - 1)

    def _table(
        self, network: nn.Module, images: int, time_steps: list[int], is_told: bool = True
    ) -> np.ndarray:
        """The losses of the first images, (images, len(time_steps)), with or without labels."""
        levels = len(time_steps)
        count = images * levels
        losses = torch.zeros(count, dtype=torch.float64)
        mine = range(self.ranks.rank, count, self.ranks.world_size)
        with evaluation_mode(network), torch.no_grad():
            for start in range(0, len(mine), self.batch_size):
                rows = list(mine[start : start + self.batch_size])
                places = [row // levels for row in rows]
                steps = [time_steps[row % levels] for row in rows]
                losses[rows] = self._losses(network, places, steps, is_told)
        return self.ranks.start_sum(losses).get().view(-1, levels).numpy()

    def _losses(
        self, network: nn.Module, images: list[int], steps: list[int], is_told: bool
    ) -> Tensor:
        """Of these images, each at its time step: (rows,) float64, on the CPU."""
        device = self.precision.device
        if self._latents is None:
            x0, condition = self.task.encode(self._pixels[images].to(device))
        else:
            latents, conditions = self._latents
            x0 = latents[images].to(device)
            condition = None if conditions is None else conditions[images].to(device)
        noise = [
            torch.randn(x0.shape[1:], generator=self._generator(image, t))
            for image, t in zip(images, steps, strict=True)
        ]
        draws = {
            "t": torch.tensor(steps, device=device),
            "noise": torch.stack(noise).to(device),
            "dropped": torch.full((len(images),), not is_told, device=device),
            "condition_dropped": torch.zeros(len(images), dtype=torch.bool, device=device),
        }
        labels = self._labels[images].to(device) if self.task.conditional else None
        with self.precision.autocast():
            losses = self.task.diffusion.losses_of(
                network, x0, labels, draws, self.task.loss_kind, condition=condition
            )
        return losses.cpu().double()

    def _generator(self, image: int, t: int) -> torch.Generator:
        return torch.Generator().manual_seed(mix(self.seed, self._numbers[image], t))
