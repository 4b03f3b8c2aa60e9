"""Parts that every block shares: activations, normalisation, layers that start at zero."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "lrelu": lambda: nn.LeakyReLU(0.1),
}


def activation(name: str) -> nn.Module:
    """The activation layer of that name. Raises ValueError for an unknown name."""
    if name not in ACTIVATIONS:
        raise ValueError(f"activation {name!r} is unknown; known are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]()


class GroupNorm(nn.GroupNorm):
    """torch's, for groups of a single value too, which it refuses for one image and takes for two:
    channels of 1 x 1 pixels, normalised one by one, are their bias.
    """

    def forward(self, x: Tensor) -> Tensor:
        return torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


def group_norm(groups: int, channels: int, eps: float) -> nn.GroupNorm:
    """GroupNorm with `groups` groups; where they do not divide the channels, as many as do."""
    return GroupNorm(math.gcd(groups, channels), channels, eps)


def zero_init(layer: nn.Conv2d | nn.Linear) -> nn.Module:
    """Zero a layer's weight and bias, so that its branch adds nothing when training begins."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
