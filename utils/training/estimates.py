"""What a network costs, found out without computing anything: on the meta device, where tensors
have shapes and no numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from model.networks import build_network, check_image_size, checkpoint_activations
from utils.call_memory import FusedAttention

BACKWARD = 2  # times the operations of a forward pass

BYTES = 4  # of a number in 32 bits
COPIES_OF_WEIGHTS = 5  # weights, gradients, EMA, two moments
FURTHER_AVERAGES = 2  # with --ema_snapshots

# What a step takes beside the weights, as a share of `activations`: those themselves, their
# gradients and what convolutions work in. Measured: 1.45 at 64x64 and 1.7 at 28x28 in 32 bits, 0.94
# and 1.1 in bf16, where autocast keeps most of them in 16.
SHARE_OF_ACTIVATIONS = {torch.float32: 1.6, torch.bfloat16: 1.1, torch.float16: 1.1}


@dataclass(frozen=True)
class NetworkCost:
    """Of training on one image."""

    parameters: int
    operations: float  # floating-point, of a forward and a backward pass
    activations: int  # bytes kept for the backward pass, in 32 bits
    copies: int = COPIES_OF_WEIGHTS  # of the parameters

    def memory(self, images: int, dtype: torch.dtype) -> float:
        """Bytes that training takes, about, with so many images in a forward pass, computed in that
        number format.
        """
        of_weights = self.copies * BYTES * self.parameters
        return of_weights + images * self.activations * SHARE_OF_ACTIVATIONS[dtype]

    def most_images(self, memory: float, dtype: torch.dtype) -> float:
        """How many images of a forward pass fit into so many bytes."""
        of_weights = self.memory(0, dtype)
        return (memory - of_weights) / (self.memory(1, dtype) - of_weights)


def cost_of(
    network: dict[str, Any],
    size: tuple[int, int],
    checkpointed: Sequence[int] = (),
    has_averages: bool = False,
) -> NetworkCost:
    """The cost of a denoiser on images (or latents) of that height and width. Of the levels that
    are `checkpointed`, activations are not kept. `has_averages`: whether two further ones are kept
    beside the EMA.

    Raises ValueError for a network that cannot be built, or does not take the size.
    """
    with torch.device("meta"):
        built = build_network(network)
        checkpoint_activations(built, checkpointed)
        image = torch.empty(1, network["in_channels"], *size)
        t = torch.zeros(1, dtype=torch.long)
    cost = _cost_of_call(built, image, t)
    return replace(cost, copies=cost.copies + FURTHER_AVERAGES * has_averages)


def cost_of_autoencoder(network: dict[str, Any], size: tuple[int, int]) -> NetworkCost:
    """The same of an autoencoder, without its loss."""
    with torch.device("meta"):
        built: Any = build_network(network)
        check_image_size(*size, built.downsample_factor)
        image = torch.empty(1, network["in_channels"], *size)
        sides = [side // built.downsample_factor for side in size]
        noise = torch.empty(1, network["latent_channels"], *sides)
    return _cost_of_call(built, image, noise)


def cost_of_upscaler(network: dict[str, Any], size: tuple[int, int]) -> NetworkCost:
    """The same of an upscaler on small images of that size. Raises ValueError for a network that
    cannot be built.
    """
    with torch.device("meta"):
        built = build_network(network)
        image = torch.empty(1, network["in_channels"], *size)
    return _cost_of_call(built, image)


def _cost_of_call(network: nn.Module, *inputs: Tensor) -> NetworkCost:
    parameters = sum(parameter.numel() for parameter in network.parameters())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(*inputs)
    operations = (1 + BACKWARD) * counter.get_total_flops()
    return NetworkCost(parameters, operations, _kept_for_backward(network, *inputs))


def _kept_for_backward(network: nn.Module, *inputs: Tensor) -> int:
    """Bytes of the tensors, but for parameters, that a call keeps for its backward pass."""
    own = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    kept: dict[int, int] = {}

    def keep(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage.nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value), FusedAttention():
        out = network(*inputs)
    del out
    return sum(kept.values())
