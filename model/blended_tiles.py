"""Large images piece by piece: in overlapping tiles, blended linearly where they overlap."""

import math
from collections.abc import Callable

import torch
from torch import Tensor


def in_tiles(
    function: Callable[[Tensor], Tensor],
    x: Tensor,
    tile: int,
    overlap: int,
    unit_in: int = 1,
    unit_out: int = 1,
) -> Tensor:
    """`function` of x (B,C,H,W), called for one tile at a time.

    A place is unit_in x unit_in pixels of x, and unit_out x unit_out pixels of what comes out. A
    tile has `tile` places a side, or fewer where x has; neighbours share `overlap` places or more.
    Of what they share, the outer quarter of each tile is context that counts nothing, and between
    these the weight goes linearly from one to the other. So the result is that of the whole x if
    the function of a pixel looks no further than overlap / 4 places.
    """
    height, width = (side // unit_in for side in x.shape[2:])
    total: Tensor | None = None
    for top in tile_starts(height, tile, overlap):
        for left in tile_starts(width, tile, overlap):
            rows = slice(top * unit_in, (top + tile) * unit_in)
            columns = slice(left * unit_in, (left + tile) * unit_in)
            y = function(x[:, :, rows, columns])
            shared = overlap * unit_out
            down = side_weights(y.shape[2], top * unit_out, height * unit_out, shared, y.device)
            across = side_weights(y.shape[3], left * unit_out, width * unit_out, shared, y.device)
            weight = (down[:, None] * across).to(y)  # (tile height, tile width)
            if total is None:  # now that the number of channels is known
                total = y.new_zeros(*y.shape[:2], height * unit_out, width * unit_out)
                weights = torch.zeros_like(total[0, 0])
            rows = slice(top * unit_out, (top + tile) * unit_out)
            columns = slice(left * unit_out, (left + tile) * unit_out)
            total[:, :, rows, columns] += weight * y
            weights[rows, columns] += weight
    assert total is not None  # there is at least one tile
    return total / weights


def tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin that cover a side: evenly spread, neighbours share `overlap` or more."""
    if length <= tile:
        return [0]
    count = math.ceil((length - overlap) / (tile - overlap))
    return [round(i * (length - tile) / (count - 1)) for i in range(count)]


def side_weights(
    tile: int, start: int, length: int, overlap: int, device: torch.device | None = None
) -> Tensor:
    """(tile,) weights along one side of a tile that begins at `start` of a side of `length`, made
    on the device, for which a copy from the host would wait.

    1 in the middle and towards the border of the image; towards another tile they fall to 0.
    """
    context = overlap // 4
    places = torch.arange(tile, device=device) + 0.5
    from_edge = torch.full((tile,), torch.inf, device=device)
    if start > 0:
        from_edge = places
    if start + tile < length:
        from_edge = torch.minimum(from_edge, tile - places)
    return ((from_edge - context) / (overlap - 2 * context)).clamp(0, 1)
