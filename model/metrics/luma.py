"""The brightness that papers on super-resolution measure."""

import torch
from torch import Tensor

# ITU-R BT.601, as MATLAB's rgb2ycbcr: 8-bit R, G, B -> Y in 16..235.
WEIGHTS = (65.481 / 255, 128.553 / 255, 24.966 / 255)
BLACK = 16.0


def luma_601(pixels: Tensor) -> Tensor:
    """8-bit values 0..255 (B,3,H,W) -> Y of BT.601 (B,1,H,W) float64, 16 (black) to 235, not
    rounded; grey images (B,1,H,W) count as equal R, G and B.
    """
    weights = torch.tensor(WEIGHTS, dtype=torch.float64, device=pixels.device).view(1, 3, 1, 1)
    colour = pixels.double().expand(-1, 3, -1, -1)
    return (colour * weights).sum(1, keepdim=True) + BLACK
