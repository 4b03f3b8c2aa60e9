"""What a network costs, found out without computing anything: on the meta device, where tensors
have shapes and no numbers.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from model.networks import build_network

BACKWARD = 2  # times the operations of a forward pass


@dataclass(frozen=True)
class NetworkCost:
    """Of training on one image."""

    parameters: int
    operations: float  # floating-point, of a forward and a backward pass
    activations: int  # bytes kept for the backward pass, in 32 bits

    def memory(self, images: int, copies: int) -> float:
        """Bytes of a training step on so many images, with so many copies of the weights."""
        return 4 * copies * self.parameters + images * self.activations


def cost_of(network: dict[str, Any], size: tuple[int, int]) -> NetworkCost:
    """The cost of a denoiser on images (or latents) of that height and width.

    Raises ValueError for a network that cannot be built, or does not take the size.
    """
    with torch.device("meta"):
        built = build_network(network)
        image = torch.empty(1, network["in_channels"], *size)
        t = torch.zeros(1, dtype=torch.long)
    own = {parameter.untyped_storage()._cdata for parameter in built.parameters()}
    kept: dict[int, int] = {}

    def keep(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage.nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        with FlopCounterMode(display=False) as counter:
            out = built(image, t)
    parameters = sum(parameter.numel() for parameter in built.parameters())
    operations = (1 + BACKWARD) * counter.get_total_flops()
    del out
    return NetworkCost(parameters, operations, sum(kept.values()))
