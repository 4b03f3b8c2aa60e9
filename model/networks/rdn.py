"""The residual dense network for super-resolution (Zhang et al. 1802.08797)."""

from typing import Any

import torch
from torch import Tensor, nn

from model.modules.layers import activation
from model.modules.resample import PixelShuffleUpsample, nearest
from model.networks.config import check_upscaler_config


class ResidualDenseBlock(nn.Module):
    """(B,C,H,W) -> (B,C,H,W): each layer sees what all layers before it made.

    `layers` convolutions of 3x3, each adding `growth` channels, then a 1x1 convolution that fuses
    all of them (local feature fusion), and a residual.
    """

    def __init__(self, features: int, layers: int, growth: int, act: str):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Conv2d(features + i * growth, growth, 3, padding=1) for i in range(layers)
        )
        self.act = activation(act)
        self.fuse = nn.Conv2d(features + layers * growth, features, 1)

    def forward(self, x: Tensor) -> Tensor:
        known = x
        for layer in self.layers:
            known = torch.cat([known, self.act(layer(known))], dim=1)
        return x + self.fuse(known)


class RDN(nn.Module):
    """An image (B,C,H,W) in [-1, 1] -> the same, enlarged: (B,C,sH,sW), unbounded.

    The paper's D is `blocks`, C `layers`, G `growth`, G0 `features`. The defaults are the small
    network of 1.44 M parameters at scale 4; the paper's has 16 blocks of 8 layers with growth 64.
    Differences from the paper: the second shallow convolution is 1x1, one pixel shuffle enlarges by
    the whole scale, and what is learned is added to the nearest-neighbour enlargement, which saves
    learning to copy. Raises ValueError at construction for options out of bounds.
    """

    name = "rdn"

    def __init__(
        self,
        in_channels: int = 3,
        scale: int = 2,  # or 3, 4
        features: int = 64,
        blocks: int = 3,
        layers: int = 6,
        growth: int = 32,
        act: str = "relu",
    ):
        config: dict[str, Any] = {
            "name": self.name,
            "in_channels": in_channels,
            "scale": scale,
            "features": features,
            "blocks": blocks,
            "layers": layers,
            "growth": growth,
            "act": act,
        }
        check_upscaler_config(config)
        super().__init__()
        self.config = config
        self.scale = scale
        # How far an output pixel sees, in pixels of the input: the 3x3 convolutions there, and one
        # pixel for the last convolution, which works on the enlarged image.
        self.receptive_radius = 1 + blocks * layers + 1 + 1 + 1

        self.shallow1 = nn.Conv2d(in_channels, features, 3, padding=1)
        self.shallow2 = nn.Conv2d(features, features, 1)
        self.blocks = nn.ModuleList(
            ResidualDenseBlock(features, layers, growth, act) for _ in range(blocks)
        )
        self.fuse1 = nn.Conv2d(blocks * features, features, 1)  # global feature fusion
        self.fuse2 = nn.Conv2d(features, features, 3, padding=1)
        self.up = PixelShuffleUpsample(features, scale)
        self.out = nn.Conv2d(features, in_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        shallow = self.shallow1(x)
        h = self.shallow2(shallow)
        outputs = []
        for block in self.blocks:
            h = block(h)
            outputs.append(h)
        fused = self.fuse2(self.fuse1(torch.cat(outputs, dim=1)))
        return nearest(x, self.scale) + self.out(self.up(shallow + fused))
