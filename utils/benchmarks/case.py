"""What is compared: images of a size, the network for them, its weights."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from model.networks import build_network
from utils.benchmarks.own_steps import random_pixels
from utils.training.estimates import BACKWARD, cost_of
from utils.training.recipe import PRESETS, network_options

NOISE_STEPS = 1000  # of training, everywhere
TIME_STEP = 500  # at which the network is called
VECTOR_STD = 0.1  # how far biases and the gains of norms are moved


@dataclass(frozen=True)
class Case:
    """Images, and the network of a preset for them. Plain values, so that a process can be told."""

    preset: str
    side: int  # pixels, of height and width
    channels: int
    batch_size: int
    sample_steps: int

    @property
    def name(self) -> str:
        return f"{self.side}x{self.side}x{self.channels}"

    @property
    def image_size(self) -> tuple[int, int]:
        return (self.side, self.side)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(B,C,H,W)"""
        return (self.batch_size, self.channels, *self.image_size)

    def network_config(self) -> dict[str, Any]:
        """Of the preset's U-Net, without classes."""
        options = network_options(PRESETS[self.preset], self.image_size)
        return {"name": "unet", "in_channels": self.channels, **options}

    def build_network(self, weights: dict[str, Tensor] | None = None) -> nn.Module:
        """Our network, with these weights or untrained ones."""
        network = build_network(self.network_config())
        if weights is not None:
            network.load_state_dict(weights)
        return network

    def random_weights(self) -> dict[str, Tensor]:
        """The same at each call. No layer is left at zero, so that the output depends on all."""
        generator = torch.Generator().manual_seed(0)
        network = self.build_network()
        for parameter in network.parameters():
            if parameter.ndim > 1:
                std = parameter[0].numel() ** -0.5
                nn.init.normal_(parameter, std=std, generator=generator)
            else:
                moved = torch.randn(parameter.shape, generator=generator)
                parameter.data += VECTOR_STD * moved
        return network.state_dict()

    def operations(self) -> float:
        """Floating-point operations of a forward pass on one image."""
        return cost_of(self.network_config(), self.image_size).operations / (1 + BACKWARD)

    # --- What networks are called with ---

    def pixels(self) -> Tensor:
        """(B,C,H,W) uint8: a fixed batch."""
        return random_pixels(self.shape)

    def noisy(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """x_t (B,C,H,W) and t (B,) of a network call."""
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(self.shape, generator=generator)
        t = torch.full((self.batch_size,), TIME_STEP)
        return x.to(device), t.to(device)
