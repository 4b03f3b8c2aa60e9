"""Exponential moving average of a network's weights and buffers."""

import copy

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
    copied. Raises ValueError for a length that is not above 0 and below LONGEST.
    """

    def __init__(self, network: nn.Module, decay: float | None = None, length: float = 0.1):
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay = decay
        self._exponent = 0.0 if decay is not None else power_of(length) + 1

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


def power_of(length: float) -> float:
    """The exponent g for which weights that grow as t^g over the steps t of a run so far have a
    standard deviation of `length`, as a share of the run (2312.02696, equations 123 and 126).
    """
    if not 0 < length < LONGEST:
        raise ValueError(f"the length of an average is above 0 and below {LONGEST}, not {length}")
    # length^2 = (g + 1) / ((g + 2)^2 (g + 3))
    inverse = length**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())
