"""A large image through a network in tiles, with the same result as in one call.

A network of convolutions sees `radius` pixels around each pixel of its input. So each tile is taken
with that many of its real neighbours (a halo), and only the tile itself is kept of the output. The
network pads with zeros at the true border of the image, as in one call, and nowhere else.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

ReadWindow = Callable[[slice, slice], Tensor]  # rows, columns -> (...,C,h,w)


@dataclass(frozen=True)
class Span:
    """Along one side of the image: pixels that are made, and the window that is needed for them."""

    start: int
    stop: int
    window_start: int
    window_stop: int

    @property
    def window(self) -> slice:
        """What the network is given, in pixels of the image."""
        return slice(self.window_start, self.window_stop)

    def kept(self, scale: int) -> slice:
        """What is kept of the network's output, in pixels of the output."""
        start = self.start - self.window_start
        stop = self.stop - self.window_start
        return slice(start * scale, stop * scale)

    def place(self, scale: int) -> slice:
        """Where that lies in the enlarged image."""
        return slice(self.start * scale, self.stop * scale)


def spans(length: int, tile: int, radius: int) -> list[Span]:
    """Cut a side into parts of at most `tile` pixels (0: one part), as equal as can be.

    All windows have one length: at a border of the image they are moved inside, where there is more
    than the halo to see. Raises ValueError for lengths that are none.
    """
    if length < 1 or tile < 0 or radius < 0:
        raise ValueError(f"cannot cut {length} pixels into tiles of {tile} with a halo of {radius}")
    count = math.ceil(length / tile) if tile else 1
    part = math.ceil(length / count)
    window = min(length, part + 2 * radius)
    found = []
    for start in range(0, length, part):
        window_start = min(max(start - radius, 0), length - window)
        stop = min(start + part, length)
        found.append(Span(start, stop, window_start, window_start + window))
    return found


def upscaled_strips(
    network: Callable[[Tensor], Tensor],
    read: ReadWindow,
    size: tuple[int, int],
    scale: int,
    radius: int,
    tile: int,
) -> Iterator[Tensor]:
    """The enlarged image (...,C,sH,sW) in strips over its whole width, from top to bottom.

    `network` maps (...,C,h,w) to (...,C,sh,sw), and no pixel it makes depends on pixels of its
    input further away than `radius`. `read` gives a window of the image, whose `size` is (H, W). No
    more than one window and one strip are held at a time.
    """
    height, width = size
    columns = spans(width, tile, radius)
    for row in spans(height, tile, radius):
        strip = None
        for column in columns:
            enlarged = network(read(row.window, column.window))
            part = enlarged[..., row.kept(scale), column.kept(scale)]
            if strip is None:
                strip = part.new_empty((*part.shape[:-1], width * scale))
            strip[..., column.place(scale)] = part
        assert strip is not None  # an image has a pixel
        yield strip


def upscaled(
    network: Callable[[Tensor], Tensor], image: Tensor, scale: int, radius: int, tile: int
) -> Tensor:
    """(...,C,H,W) -> (...,C,sH,sW) in tiles of at most `tile` pixels a side; 0: in one call."""
    if tile == 0:
        return network(image)
    height, width = image.shape[-2:]

    def read(rows: slice, columns: slice) -> Tensor:
        return image[..., rows, columns]

    strips = upscaled_strips(network, read, (height, width), scale, radius, tile)
    return torch.cat(list(strips), dim=-2)


def fitting_tile(size: tuple[int, int], radius: int, largest_window: int) -> int:
    """The tile for windows of about `largest_window` pixels in all; 0 where the whole image is
    such a window.

    Where the halo alone is larger, tiles are as wide as the halo: smaller ones would mostly compute
    halos.
    """
    height, width = size
    if height * width <= largest_window:
        return 0
    side = int(largest_window**0.5)
    return max(side - 2 * radius, radius, 1)
