"""The enhanced deep super-resolution network (Lim et al. 1707.02921), in its baseline size."""

from typing import Any

from torch import Tensor, nn

from model.modules.layers import activation
from model.modules.resample import PixelShuffleUpsample, nearest
from model.networks.config import check_upscaler_config


class PlainResBlock(nn.Module):
    """(B,C,H,W) -> (B,C,H,W): two convolutions of 3x3 and a residual, without normalisation."""

    def __init__(self, features: int, act: str):
        super().__init__()
        self.conv1 = nn.Conv2d(features, features, 3, padding=1)
        self.act = activation(act)
        self.conv2 = nn.Conv2d(features, features, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.act(self.conv1(x)))


class EDSR(nn.Module):
    """An image (B,C,H,W) in [-1, 1] -> the same, enlarged: (B,C,sH,sW), unbounded.

    The paper's baseline: `blocks` 16, `features` 64. One pixel shuffle enlarges by the whole scale,
    and what is learned is added to the nearest-neighbour enlargement, which saves learning to copy.
    Raises ValueError at construction for options out of bounds.
    """

    name = "edsr"

    def __init__(
        self,
        in_channels: int = 3,
        scale: int = 2,  # or 3, 4
        features: int = 64,
        blocks: int = 16,
        act: str = "relu",
    ):
        config: dict[str, Any] = {
            "name": self.name,
            "in_channels": in_channels,
            "scale": scale,
            "features": features,
            "blocks": blocks,
            "act": act,
        }
        check_upscaler_config(config)
        super().__init__()
        self.config = config
        self.scale = scale
        # How far an output pixel sees, in pixels of the input: the 3x3 convolutions there, and one
        # pixel for the last convolution, which works on the enlarged image.
        self.receptive_radius = 1 + 2 * blocks + 1 + 1 + 1

        self.head = nn.Conv2d(in_channels, features, 3, padding=1)
        self.blocks = nn.Sequential(*(PlainResBlock(features, act) for _ in range(blocks)))
        self.body_end = nn.Conv2d(features, features, 3, padding=1)
        self.up = PixelShuffleUpsample(features, scale)
        self.out = nn.Conv2d(features, in_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        shallow = self.head(x)
        deep = self.body_end(self.blocks(shallow))
        return nearest(x, self.scale) + self.out(self.up(shallow + deep))
