"""Exponential moving average of a network's weights."""

import copy

import torch
from torch import nn


class EMA:
    """Keeps `network`, a frozen copy whose weights follow the trained ones. (The networks have no
    buffers.)

    The decay warms up as min(decay, (1 + step) / (10 + step)), so that the first weights, which are
    noise, are soon forgotten. It averages over about the last 1 / (1 - decay) steps.
    """

    def __init__(self, network: nn.Module, decay: float):
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Move towards `network` after training step `step` (0, 1, ...)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.network.parameters()), list(network.parameters()), 1 - decay)

    def state_dict(self) -> dict:
        return self.network.state_dict()
