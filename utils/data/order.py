"""Which images each training step sees."""

import itertools
import math
from collections.abc import Iterator, Sized

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from model.randomness import mix


class StepSampler(Sampler[int]):
    """The images of this process for the training steps start_step..total_steps-1.

    The global order of an epoch is a permutation that depends on a mix of (seed, epoch), so that
    different seeds share no order; it is filled up from its own beginning to whole global batches,
    and the processes take turns in it. So step k holds the same images whatever the number of
    processes, workers and restarts, and no position needs to be saved. A global batch is what one
    optimizer step sees. With `balance`, the label of each image, an epoch has as many images of
    each class: those of small classes come several times, those of large ones not in every epoch.
    """

    def __init__(
        self,
        dataset: Sized,
        global_batch: int,
        seed: int,
        start_step: int,
        total_steps: int,
        rank: int = 0,
        world_size: int = 1,
        balance: np.ndarray | None = None,  # (N,)
    ):
        self.images = len(dataset)
        self.batch_size = global_batch // world_size  # of this process
        self.seed = seed
        self.start_step = start_step
        self.steps = total_steps - start_step
        self.rank = rank
        self.world_size = world_size
        self.balance = None if balance is None else torch.from_numpy(np.array(balance)).long()
        self.steps_per_epoch = steps_per_epoch(self.images, global_batch)

    def __len__(self) -> int:
        return self.steps * self.batch_size

    def __iter__(self) -> Iterator[int]:
        return itertools.islice(self._all(), len(self))

    def _all(self) -> Iterator[int]:
        """This process's images from `start_step` on, without end."""
        first_epoch, step = divmod(self.start_step, self.steps_per_epoch)
        skipped = step * self.batch_size
        for epoch in itertools.count(first_epoch):
            yield from self.epoch(epoch)[skipped:]
            skipped = 0

    def epoch(self, epoch: int) -> list[int]:
        """This process's images of a whole epoch, in order."""
        generator = torch.Generator().manual_seed(mix(self.seed, epoch))
        order = torch.randperm(self.images, generator=generator)
        if self.balance is not None:
            order = balanced(order, self.balance, generator)
        needed = self.steps_per_epoch * self.batch_size * self.world_size
        repeats = math.ceil(needed / self.images)
        filled = order.repeat(repeats)[:needed]
        return filled[self.rank :: self.world_size].tolist()


def balanced(order: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """A random order of N images with labels (N,) -> N images, as many of each class that has any,
    up to one; every part of them has the classes in about these proportions.
    """
    classes = labels.unique().tolist()
    shares = torch.full((len(classes),), len(order) // len(classes))
    shares[: len(order) % len(classes)] += 1
    images, places = [], []
    for label, share in zip(classes, shares.tolist(), strict=True):
        own = order[labels[order] == label]
        images.append(own.repeat(math.ceil(share / len(own)))[:share])
        chance = torch.rand(share, generator=generator, dtype=torch.float64)
        places.append((torch.arange(share) + chance) / max(share, 1))
    return torch.cat(images)[torch.cat(places).argsort(stable=True)]


def steps_per_epoch(images: int, global_batch: int) -> int:
    """Steps in which each image is seen once; the last one is filled up from the beginning."""
    return math.ceil(images / global_batch)
