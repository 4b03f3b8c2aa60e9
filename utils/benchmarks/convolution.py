"""What this machine can do: the fastest of a few 3x3 convolutions, which is nearly all that the
networks consist of.
"""

import itertools
import time

import torch
from torch import nn

from utils.benchmarks.results import Peak
from utils.benchmarks.turns import wait_for
from utils.devices import Precision

# Images, channels and side of feature maps: like those of the networks, and large ones for a GPU.
SHAPES = {
    "cpu": ((32, 64, 32), (32, 128, 16), (8, 256, 32)),
    "cuda": ((64, 256, 32), (64, 512, 32), (128, 512, 16)),
}
LAYOUTS = (torch.contiguous_format, torch.channels_last)
REPEATS = 5
TAPS = 3 * 3
PER_TAP = 2  # operations: a product and a sum


@torch.no_grad()
def convolution_peak(precision: Precision) -> Peak:
    """Of forward passes, in both memory layouts."""
    kind = "cuda" if precision.device.type == "cuda" else "cpu"
    speeds = {
        _name(*shape, layout): _operations(*shape) / _fastest(*shape, layout, precision)
        for shape, layout in itertools.product(SHAPES[kind], LAYOUTS)
    }
    best = max(speeds, key=speeds.__getitem__)
    return Peak(name_of(precision), speeds[best], best)


def name_of(precision: Precision) -> str:
    """Of its number format: float32."""
    return str(precision.dtype).removeprefix("torch.")


def _operations(images: int, channels: int, side: int) -> float:
    return PER_TAP * TAPS * channels**2 * images * side**2


def _name(images: int, channels: int, side: int, layout: torch.memory_format) -> str:
    layout_name = str(layout).removeprefix("torch.")
    return f"{channels} to {channels} channels on {images} x {side}x{side}, {layout_name}"


def _fastest(
    images: int, channels: int, side: int, layout: torch.memory_format, precision: Precision
) -> float:
    """Seconds of the shortest of a few passes."""
    device, dtype = precision.device, precision.dtype
    layer = nn.Conv2d(channels, channels, 3, padding=1, device=device, dtype=dtype)
    layer = layer.to(memory_format=layout)
    x = torch.randn(images, channels, side, side, device=device, dtype=dtype)
    x = x.to(memory_format=layout)
    seconds = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        layer(x)
        wait_for(precision.device)
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])  # the first one prepares the layer
