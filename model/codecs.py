"""From images to what the diffusion sees, and back: pixels here, later latents too."""

import torch
from torch import Tensor

HALF_RANGE = 127.5  # of 8-bit pixels


class PixelCodec:
    """8-bit pixels 0..255 <-> numbers in [-1, 1]. The diffusion sees the pixels themselves."""

    name = "pixels"
    downsample_factor = 1  # what a side of the image is divided by

    def __init__(self) -> None:
        self.config = {"name": self.name}

    def shape(self, image_size: tuple[int, int], channels: int) -> tuple[int, int, int]:
        """(C,H,W) of what the diffusion sees of an image."""
        return (channels, *image_size)

    def encode(self, pixels: Tensor) -> Tensor:
        """(B,C,H,W) uint8 -> (B,C,H,W) float in [-1, 1]."""
        return pixels.to(torch.get_default_dtype()) / HALF_RANGE - 1

    def decode(self, x: Tensor) -> Tensor:
        """(B,C,H,W) float -> (B,C,H,W) uint8: clamped first, so that nothing wraps."""
        return ((x.clamp(-1, 1) + 1) * HALF_RANGE).round().to(torch.uint8)


CODECS = {"pixels": PixelCodec}


def build_codec(config: dict) -> PixelCodec:
    """A codec from a plain dict; "name" chooses the class. ValueError for an unknown name."""
    arguments = dict(config)
    name = arguments.pop("name", "pixels")
    if name not in CODECS:
        raise ValueError(f"codec {name!r} is unknown; known are {', '.join(CODECS)}")
    if arguments:
        raise ValueError(f"codec {name!r} has no option {', '.join(map(repr, arguments))}")
    return CODECS[name](**arguments)
