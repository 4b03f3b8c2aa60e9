"""How far an image is from being a copy of another one.

Both images are blurred with sigma 1 px. Their distance is the largest RMS difference over tiles of
a fifth of the side, in parts of the range (0 to 1); of that, the smallest over mirror images and
shifts of up to 2 px. A copy may be darker or brighter as well: a common factor of up to
`LARGEST_GAIN` is allowed for, at a cost that grows with it.

The tiles are there because a large background that both have in common would make any two images
similar; the blur forgives noise and compression. A margin is left out on all sides, so that nothing
is compared that a shift, or the blur at the edge of a shifted copy, has changed.

Blurred images are whole numbers 0..255, so that every sum of products is a whole number that
float32 holds exactly. The results therefore do not depend on the batch that an image is in.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

WORKING_SIDE = 32  # pixels: larger images are reduced to about 32 x 32 pixels
BLUR_SIGMA = 1.0  # pixels of the working size
BLUR_RADIUS = 3  # pixels
LARGEST_SHIFT = 2  # pixels of the working size
SIDE_PER_SHIFT = 12  # pixels of a side per pixel of shift: below 24 pixels, shifts are smaller
EDGE = 1  # pixels that are left out beside those of the largest shift
TILES_PER_SIDE = 5
THUMBNAIL_SIDE = 8  # cells
WHITE = 255
FLOAT32_SLACK = 0.003  # more than rounding in float32 adds to a bound

# A copy may be this much brighter or darker. Were that free of cost, garments of one shape would be
# near copies of each other: 5.5% of new Fashion-MNIST images would be flagged instead of 2.1%. At
# this cost it is still 2.1%, and a copy that is dimmed by 10% has the distance 0.04.
LARGEST_GAIN = 1.25
GAIN_COST = 0.4  # added to the distance, times |log(gain)|


def working_size(height: int, width: int) -> tuple[int, int]:
    """The size (height, width) at which images are compared: their own one up to 32 x 32 pixels,
    otherwise that of about as many pixels in the same proportions.
    """
    scale = WORKING_SIDE / (height * width) ** 0.5
    if scale >= 1:
        return height, width
    return max(1, round(height * scale)), max(1, round(width * scale))


def prepare(images: Tensor) -> Tensor:
    """(N,C,H,W) uint8 -> (N,C,h,w) uint8: at the working size, and blurred."""
    size = working_size(*images.shape[-2:])
    pixels = images.float()
    if size != tuple(images.shape[-2:]):
        pixels = F.interpolate(pixels, size, mode="bilinear", antialias=True)
    blurred = _blur_along(_blur_along(pixels, -1), -2)
    return blurred.round().clamp(0, WHITE).to(torch.uint8)


def _blur_along(pixels: Tensor, dim: int) -> Tensor:
    """A Gaussian blur along one dimension; beyond an edge, the last pixel is repeated."""
    offsets = torch.arange(-BLUR_RADIUS, BLUR_RADIUS + 1)
    weights = torch.exp(-0.5 * (offsets / BLUR_SIGMA) ** 2)
    weights = weights / weights.sum()
    side = pixels.shape[dim]
    positions = torch.arange(side, device=pixels.device)
    blurred = torch.zeros_like(pixels)
    for offset, weight in zip(offsets.tolist(), weights.tolist(), strict=True):
        neighbours = (positions + offset).clamp(0, side - 1)
        blurred += weight * pixels.index_select(dim, neighbours)
    return blurred


# --- Which pixels are compared ---


@dataclass(frozen=True)
class Variant:
    """A mirror image, or none, moved by so many pixels."""

    is_mirrored: bool
    down: int
    right: int


class Geometry:
    """Which pixels of two images of one size are compared, as tables of places.

    A window is the part of an image that is compared: the middle of a training image, and for each
    variant another part of the query. Tiles divide a window, and so do the cells of a thumbnail.
    """

    def __init__(self, height: int, width: int, device: torch.device | str = "cpu"):
        shifts = [min(LARGEST_SHIFT, side // SIDE_PER_SHIFT) for side in (height, width)]
        self.variants = [
            Variant(is_mirrored, down, right)
            for is_mirrored in (False, True)
            for down in range(-shifts[0], shifts[0] + 1)
            for right in range(-shifts[1], shifts[1] + 1)
        ]
        top, left = (
            min(shift + EDGE, (side - 1) // 2)
            for shift, side in zip(shifts, (height, width), strict=True)
        )
        self.window_size = (height - 2 * top, width - 2 * left)

        places = torch.arange(height * width).view(height, width)
        windows = []
        for variant in self.variants:
            picture = places.flip(1) if variant.is_mirrored else places
            rows = picture[top + variant.down :][: self.window_size[0]]
            windows.append(rows[:, left + variant.right :][:, : self.window_size[1]].flatten())
        middle = places[top : height - top, left : width - left].flatten()

        self.variant_windows = torch.stack(windows).to(device)  # (V,S) places in a flat image
        self.middle_window = middle[None].to(device)  # (1,S)
        self.tiles = _tiles(*self.window_size).to(device)  # (T,P) places in a window
        self.tile_pixels = (self.tiles < len(middle)).sum(1)  # (T,) without padding
        self.cells = _cells(*self.window_size).to(device)  # (S,D) 1 where the pixel is in the cell


def _tiles(height: int, width: int) -> Tensor:
    """The places of each tile's pixels in a window, (T,P); smaller tiles are padded with
    height * width.
    """
    places = torch.arange(height * width).view(height, width)
    tiles = [
        places[rows, columns].flatten()
        for rows in _parts(height, TILES_PER_SIDE)
        for columns in _parts(width, TILES_PER_SIDE)
    ]
    return torch.nn.utils.rnn.pad_sequence(tiles, batch_first=True, padding_value=height * width)


def _cells(height: int, width: int) -> Tensor:
    """Which pixel of a window is in which cell of the thumbnail, (height * width, D) of 0 and 1."""
    cells = []
    for rows in _parts(height, THUMBNAIL_SIDE):
        for columns in _parts(width, THUMBNAIL_SIDE):
            cell = torch.zeros(height, width)
            cell[rows, columns] = 1
            cells.append(cell.flatten())
    return torch.stack(cells, dim=1)


def _parts(side: int, most: int) -> list[slice]:
    """A side in `most` parts of nearly equal length, or in single pixels where it is shorter."""
    count = min(most, side)
    ends = [round(part * side / count) for part in range(count + 1)]
    return [slice(begin, end) for begin, end in zip(ends, ends[1:], strict=False)]


# --- The distance ---


def tiles_of(prepared: Tensor, windows: Tensor, geometry: Geometry) -> Tensor:
    """(B,C,h,w) uint8, windows (V,S) -> (T,B,V,C*P) float32; padding is 0."""
    pixels = prepared.flatten(2)[:, :, windows].float()  # (B,C,V,S)
    tiles = F.pad(pixels, (0, 1))[..., geometry.tiles]  # (B,C,V,T,P)
    return tiles.permute(3, 0, 2, 1, 4).flatten(3)


def copy_distances(query: Tensor, images: Tensor, geometry: Geometry) -> Tensor:
    """Prepared images (C,h,w) and (K,C,h,w) -> distances (K,) float64.

    0 for an exact, mirrored or shifted copy, 1 between black and white.
    """
    of_query = tiles_of(query[None], geometry.variant_windows, geometry)[:, 0]  # (T,V,CP)
    of_images = tiles_of(images, geometry.middle_window, geometry)[:, :, 0].mT  # (T,CP,K)
    values = (geometry.tile_pixels * len(query)).view(-1, 1, 1)  # numbers per tile

    # Whole numbers up to here; float64 keeps their differences exact.
    products = (of_query @ of_images).double()  # (T,V,K)
    query_squares = of_query.square().sum(-1, keepdim=True).double()  # (T,V,1)
    image_squares = of_images.square().sum(-2, keepdim=True).double()  # (T,1,K)

    def largest_difference(gain: Tensor | float) -> Tensor:
        squares = gain * (gain * query_squares - 2 * products) + image_squares
        return (squares.clamp(min=0) / values).amax(0).sqrt() / WHITE

    gain = best_gain(products.sum(0), query_squares.sum(0))  # (V,K)
    as_bright = largest_difference(1.0)
    adjusted = largest_difference(gain) + GAIN_COST * gain.log().abs()
    return torch.minimum(as_bright, adjusted).amin(0)


def best_gain(products: Tensor, squares: Tensor) -> Tensor:
    """The factor from 1 / `LARGEST_GAIN` to `LARGEST_GAIN` that brings a query nearest to an image,
    from their scalar product and the query's square.
    """
    return (products / squares.clamp(min=1)).clamp(1 / LARGEST_GAIN, LARGEST_GAIN)


# --- A lower bound of the distance, from thumbnails ---


def thumbnails_of(prepared: Tensor, windows: Tensor, geometry: Geometry) -> Tensor:
    """(B,C,h,w) uint8, windows (V,S) -> (B,V,C*D) uint8: a thumbnail of each window.

    A value is the mean of a cell, times the root of its area as a part of the largest cell's.
    """
    pixels = prepared.flatten(2)[:, :, windows].float()  # (B,C,V,S)
    sums = pixels @ geometry.cells  # (B,C,V,D)
    areas = geometry.cells.sum(0)
    values = (sums / (areas * areas.max()).sqrt()).round()
    return values.transpose(1, 2).flatten(2).to(torch.uint8)


def lower_bounds(query: Tensor, images: Tensor, geometry: Geometry) -> Tensor:
    """Thumbnails of a query's variants (V,C*D) and of N images (N,C*D), float32 -> (N,) float32.

    No copy distance is below this by more than `bound_slack`: the mean square of cells is at most
    that of pixels, and that of the whole window at most that of some tile.
    """
    products = query @ images.T  # (V,N)
    query_squares = query.square().sum(1, keepdim=True)
    gain = best_gain(products, query_squares)
    squares = (gain * (gain * query_squares - 2 * products)).amin(0)
    squares = (squares + images.square().sum(1)).clamp(min=0)
    pixels, cells = geometry.cells.shape
    channels = query.shape[1] // cells
    largest_cell = geometry.cells.sum(0).max()
    return (squares * largest_cell / (channels * pixels)).sqrt() / WHITE


def bound_slack(geometry: Geometry) -> float:
    """By how much a lower bound may be too large, since thumbnails are rounded."""
    pixels, cells = geometry.cells.shape
    largest_cell = int(geometry.cells.sum(0).max())
    of_a_difference = 0.5 * (1 + LARGEST_GAIN)
    return of_a_difference * (cells * largest_cell / pixels) ** 0.5 / WHITE + FLOAT32_SLACK
