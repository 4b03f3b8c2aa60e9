"""Changes of resolution by a factor of two."""

import torch.nn.functional as F
from torch import Tensor, nn


class Downsample(nn.Module):
    """(B,C,H,W) -> (B,C,H/2,W/2) by a convolution of stride 2.

    `asymmetric` pads on the right and below only, as the TensorFlow code of DDPM does.
    """

    def __init__(self, channels: int, asymmetric: bool = False):
        super().__init__()
        self.asymmetric = asymmetric
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=0 if asymmetric else 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.asymmetric:
            x = F.pad(x, (0, 1, 0, 1))
        return self.conv(x)


class Upsample(nn.Module):
    """(B,C,H,W) -> (B,C,2H,2W): nearest neighbour, then a convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
