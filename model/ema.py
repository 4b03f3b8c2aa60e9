"""Exponential moving average of a network's weights and buffers."""

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

LONGEST = 0.28  # the width of a plain mean over all steps, as a share of them, is 1 / sqrt(12)
FASTEST_START = 10  # the decay after step k is at most (1 + k) / (FASTEST_START + k)


class EMA:
    """Keeps `network`, a frozen copy in evaluation mode whose weights follow the trained ones.

    With `decay` it averages over about the last 1 / (1 - decay) steps. The decay warms up as
    min(decay, (1 + step) / (10 + step)), so that the first weights, which are noise, are soon
    forgotten. Without, the average grows with the run: its width is the share `length` of the steps
    so far (Karras et al. 2312.02696, section 3.1), so that one number suits short and long runs.

    Buffers in floating point (a BatchNorm's running mean) are averaged too, others (its count) are
    copied. Raises ValueError for a length that is not above 0 and at most LONGEST.
    """

    def __init__(self, network: nn.Module, decay: float | None = None, length: float | None = 0.1):
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay = decay
        self._exponent = 0.0
        if decay is None:
            self._exponent = power_of(length or 0.0) + 1

    def decay_at(self, step: int) -> float:
        """How much of the average stays at training step `step` (0, 1, ...)."""
        if self.decay is None:
            return (step / (step + 1)) ** self._exponent
        return min(self.decay, (1 + step) / (FASTEST_START + step))

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Move towards `network` after training step `step` (0, 1, ...)."""
        theirs = [*network.parameters(), *network.buffers()]
        ours = [*self.network.parameters(), *self.network.buffers()]
        averaged = [value.is_floating_point() for value in ours]
        torch._foreach_lerp_(
            [value for value, chosen in zip(ours, averaged, strict=True) if chosen],
            [value for value, chosen in zip(theirs, averaged, strict=True) if chosen],
            1 - self.decay_at(step),
        )
        for our, their, chosen in zip(ours, theirs, averaged, strict=True):
            if not chosen:
                our.copy_(their)

    def state_dict(self) -> dict:
        return self.network.state_dict()


class PowerAverages:
    """Two averages of different length, from whose snapshots an average of any length can be put
    together after training (Karras et al. 2312.02696, section 3.2).
    """

    LENGTHS = (0.05, 0.1)

    def __init__(self, network: nn.Module):
        self.averages = [EMA(network, length=length) for length in self.LENGTHS]

    def update(self, network: nn.Module, step: int) -> None:
        """Move both towards `network` after training step `step` (0, 1, ...)."""
        for average in self.averages:
            average.update(network, step)

    def state_dict(self) -> dict[str, dict]:
        """The weights of each, by its length."""
        pairs = zip(self.LENGTHS, self.averages, strict=True)
        return {str(length): average.state_dict() for length, average in pairs}

    def load_state_dict(self, saved: dict[str, dict]) -> None:
        for length, average in zip(self.LENGTHS, self.averages, strict=True):
            average.network.load_state_dict(saved[str(length)])


def weights_of_snapshots(
    snapshots: Sequence[tuple[int, float]], length: float, step: int
) -> list[float]:
    """How much each snapshot counts in the average of that length at step `step`.

    A snapshot is (step, length) of a power-function average. The weights, which may be negative,
    make the sum's profile over the steps as near to the wanted one as it can be, in the mean square
    (2312.02696, algorithm 3); they add up to 1.
    """
    profiles = [(at, power_of(own)) for at, own in snapshots]
    wanted = (step, power_of(length))
    products = np.array([[_overlap(a, b) for b in profiles] for a in profiles])
    with_wanted = np.array([_overlap(profile, wanted) for profile in profiles])
    solution = np.linalg.lstsq(products, with_wanted, rcond=1e-12)[0]
    return (solution / solution.sum()).tolist()


def _overlap(a: tuple[float, float], b: tuple[float, float]) -> float:
    """The integral of the product of two profiles: (step t, exponent g) stands for
    (g + 1) / t (x / t)^g at the steps x up to t (equations 132 to 134).
    """
    (early, early_power), (late, late_power) = sorted((a, b))
    both = (early_power + 1) * (late_power + 1) / (early_power + late_power + 1)
    return both * (early / late) ** late_power / late


def power_of(length: float) -> float:
    """The exponent g for which weights that grow as t^g over the steps t of a run so far have a
    standard deviation of `length`, as a share of the run (2312.02696, equations 123 and 126).
    """
    if not 0 < length <= LONGEST:
        raise ValueError(f"the length of an average is above 0 and at most {LONGEST}, not {length}")
    # length^2 = (g + 1) / ((g + 2)^2 (g + 3))
    inverse = length**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())
