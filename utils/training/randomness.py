"""Where the random numbers of training come from: (seed, step, place in the global batch)."""

import torch

from model.randomness import BatchGenerators, mix
from utils.ranks import Ranks


def image_generators(
    seed: int, step: int, first: int, count: int, ranks: Ranks, global_batch: int
) -> BatchGenerators:
    """One generator for each image of a micro-batch, by its place in the global batch of the step.

    `first` counts this process's images of the step so far. The processes take turns in the global
    order, so an image's place, and all that is drawn for it, does not depend on how many there are.
    """
    places = [i * ranks.world_size + ranks.rank for i in range(first, first + count)]
    generators = (torch.Generator().manual_seed(mix(seed, step, place)) for place in places)
    return BatchGenerators(generators, places, global_batch)


def seed_dropout(seed: int, step: int, ranks: Ranks) -> None:
    """Dropout is the one thing drawn by the device: a function of (seed, step, rank)."""
    torch.manual_seed(mix(seed, step, ranks.rank))
