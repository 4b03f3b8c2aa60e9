"""Exponential moving average of a network's weights and buffers."""

import copy

import torch
from torch import nn

FASTEST_START = 10  # the decay after step k is at most (1 + k) / (FASTEST_START + k)


class EMA:
    """Keeps `network`, a frozen copy in evaluation mode whose weights follow the trained ones.

    The decay warms up as min(decay, (1 + step) / (10 + step)), so that the first weights, which
    are noise, are soon forgotten; it averages over about the last 1 / (1 - decay) steps. Buffers
    in floating point (a BatchNorm's running mean) are averaged too, others (its count) are copied.
    """

    def __init__(self, network: nn.Module, decay: float):
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay = decay

    def decay_at(self, step: int) -> float:
        """How much of the average stays at training step `step` (0, 1, ...)."""
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
