"""Whence every random number of a training run comes: (seed, step, place in the global batch)."""

import torch

from utils.ranks import Ranks

_64_BITS = 2**64 - 1
_63_BITS = 2**63 - 1  # what torch takes as a seed


def mix(*numbers: int) -> int:
    """Whole numbers -> a well-scattered seed: the finaliser of splitmix64, once a number."""
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & _64_BITS
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _64_BITS
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _64_BITS
        state ^= state >> 31
    return state & _63_BITS


def image_generators(
    seed: int, step: int, first: int, count: int, ranks: Ranks
) -> list[torch.Generator]:
    """One generator for each image of a micro-batch, by its place in the global batch of the step.

    `first` counts this process's images of the step so far. The processes take turns in the global
    order, so an image's place, and all that is drawn for it, does not depend on how many there are.
    """
    places = (i * ranks.world_size + ranks.rank for i in range(first, first + count))
    return [torch.Generator().manual_seed(mix(seed, step, place)) for place in places]


def seed_dropout(seed: int, step: int, ranks: Ranks) -> None:
    """Dropout is the one thing drawn by the device: a function of (seed, step, rank)."""
    torch.manual_seed(mix(seed, step, ranks.rank))
