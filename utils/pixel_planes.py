"""What a viewer shows of pixels of any mode."""

import torch
from torch import Tensor

OPAQUE = 255
WHITE_16 = 65535
STEP_16 = 257  # from an 8-bit level to the next, in 16 bits


def shown_pixels(pixels: Tensor) -> Tensor:
    """(..,C,H,W) uint8 of any mode (see `image_facts.CHANNELS`) -> grey (..,1,H,W) or RGB
    (..,3,H,W) uint8: transparency lies on white, and 16 bits are rounded to 8.
    """
    planes = pixels.shape[-3]
    if planes == 4:
        colour, alpha = pixels[..., :3, :, :].int(), pixels[..., 3:, :, :].int()
        return (colour + OPAQUE - alpha).clamp(max=OPAQUE).to(torch.uint8)
    if planes == 2:
        high, low = pixels[..., :1, :, :].int(), pixels[..., 1:, :, :].int()
        return ((256 * high + low + STEP_16 // 2) // STEP_16).to(torch.uint8)
    return pixels


def share_of_range(pixels: Tensor) -> Tensor:
    """(C,H,W) uint8 of any mode -> levels from 0 to 1, float32: (C,H,W), (1,H,W) of 16 bits."""
    if len(pixels) == 2:
        return (256.0 * pixels[:1] + pixels[1:]) / WHITE_16
    return pixels.float() / OPAQUE


def as_colour(pixels: Tensor) -> Tensor:
    """The same as RGB (..,3,H,W) whatever the mode."""
    shown = shown_pixels(pixels)
    if shown.shape[-3] == 3:
        return shown
    shape = list(shown.shape)
    shape[-3] = 3
    return shown.expand(shape)
