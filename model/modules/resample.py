"""Changes of resolution."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.modules.doubled_conv import doubled_conv


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
        return doubled_conv(x, self.conv)


class PixelShuffleUpsample(nn.Module):
    """(B,C,H,W) -> (B,C,sH,sW): a convolution makes the s x s pixels of each place (Shi et al.
    1609.05158).

    It starts as a convolution and nearest-neighbour enlarging (ICNR, Aitken et al. 1707.02937), so
    that no checkerboard has to be unlearned.
    """

    def __init__(self, channels: int, scale: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels * scale**2, 3, padding=1)
        self.shuffle = nn.PixelShuffle(scale)
        with torch.no_grad():
            first = self.conv.weight[:: scale**2]  # of the pixels of a place, the upper left one
            self.conv.weight.copy_(first.repeat_interleave(scale**2, dim=0))
            assert self.conv.bias is not None
            first_bias = self.conv.bias[:: scale**2]
            self.conv.bias.copy_(first_bias.repeat_interleave(scale**2))

    def forward(self, x: Tensor) -> Tensor:
        return self.shuffle(self.conv(x))


def nearest(images: Tensor, scale: int) -> Tensor:
    """(B,C,H,W) -> (B,C,sH,sW): each pixel as a block."""
    return F.interpolate(images, scale_factor=float(scale), mode="nearest")


def bicubic(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images (B,C,H,W) float at another size (H, W), as MATLAB's imresize and Pillow do it: Keys'
    cubic with a = -1/2, which is widened where the image shrinks (antialiasing).

    Without `antialias`, torch computes another operator: it takes a = -3/4, and shrinks by leaving
    pixels out.
    """
    return F.interpolate(images, size, mode="bicubic", align_corners=False, antialias=True)
