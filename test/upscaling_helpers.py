"""Upscalers for tests: tiny ones, and ones whose result is known."""

from pathlib import Path

import torch
from torch import nn

from model.networks import build_network
from utils.devices import Precision
from utils.runs.checkpoint import Checkpoint
from utils.runs.files import save_checkpoint
from utils.upscaling import Upscaler

CPU = Precision(torch.float32, torch.device("cpu"))


def tiny_network(channels: int = 3, scale: int = 2) -> nn.Module:
    """The smallest RDN, with weights large enough that all of its parts count."""
    torch.manual_seed(0)
    config = {"name": "rdn", "in_channels": channels, "scale": scale, "features": 8}
    network = build_network({**config, "blocks": 1, "layers": 1, "growth": 4})
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    return network.eval().requires_grad_(False)


class Smoothing(nn.Module):
    """Enlarges by nearest neighbour, then a mean over 3x3: its weights are known, and constant
    colours stay constant except at the border.
    """

    receptive_radius = 2

    def __init__(self, channels: int = 3, scale: int = 2):
        super().__init__()
        self.scale = scale
        self.config = {"in_channels": channels, "scale": scale}

    def forward(self, x):
        h = nn.functional.interpolate(x, scale_factor=float(self.scale), mode="nearest")
        h = nn.functional.pad(h, (1, 1, 1, 1), mode="replicate")
        return nn.functional.avg_pool2d(h, 3, stride=1)


def upscaler(channels: int = 3, scale: int = 2, tile: int | None = None) -> Upscaler:
    return Upscaler(tiny_network(channels, scale), CPU, tile)


def write_upscaler(file: Path, channels: int = 3, scale: int = 2, **changes) -> Path:
    """A checkpoint with the tiny network."""
    network = tiny_network(channels, scale)
    data = {"image_size": [16, 16], "mode": {1: "L", 3: "RGB"}[channels], "class_names": []}
    checkpoint = Checkpoint(
        config={"network": network.config, "data": data},
        kind="upscaler",
        ema=network.state_dict(),
    )
    save_checkpoint({**checkpoint.to_dict(), **changes}, file)
    return file


class Nearest(nn.Module):
    """Repeats each pixel: what a file holds can be compared to the bit."""

    receptive_radius = 0

    def __init__(self, channels: int = 3, scale: int = 2):
        super().__init__()
        self.scale = scale
        self.config = {"in_channels": channels, "scale": scale}

    def forward(self, x):
        return nn.functional.interpolate(x, scale_factor=float(self.scale), mode="nearest")
