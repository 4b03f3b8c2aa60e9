"""How far an image is from being a copy of another one.

Both images are blurred with sigma 1 px. Their distance is the largest RMS difference over tiles of
a fifth of the side, in parts of the range (0 to 1); of that, the smallest over mirror images and
shifts of up to 2 px. A copy may be darker or brighter as well: a common factor of up to
`LARGEST_GAIN` is allowed for, at a cost that grows with it.

The tiles are there because a large background that both have in common would make any two images
similar; the blur, which is wider for colours, forgives noise and compression. What a shift moves
out of the image, or lets in, is not compared, and neither are the pixels at the edges.

Blurred images are whole numbers 0..255, so that every sum of products is a whole number that
float32 holds exactly. The results therefore do not depend on the batch that an image is in.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

WORKING_SIDE = 32  # pixels: larger images are reduced to about 32 x 32 pixels
BLUR_SIGMA = 1.0  # pixels of the working size
COLOUR_BLUR_SIGMA = 1.75  # pixels: JPEG keeps colours at half the resolution
BLUR_WHOLE = 1024
LUMA = torch.tensor([299, 587, 114], dtype=torch.int32).view(1, 3, 1, 1)  # of ITU-R 601
LARGEST_SHIFT = 2  # pixels of the working size
SIDE_PER_SHIFT = 12  # pixels of a side per pixel of shift: below 24 pixels, shifts are smaller
EDGE = 1  # pixels on each side that are not compared, since a blur there depends on its padding
TILES_PER_SIDE = 5
THUMBNAIL_SIDE = 8  # cells
WHITE = 255
FLOAT32_SLACK = 0.003  # more than rounding in float32 adds to a bound

# A copy may be this much brighter or darker. Were that free of cost, garments of one shape would be
# near copies of each other: 3.4% of 1,000 new Fashion-MNIST images would be flagged. At this cost
# it is 1.8%, without any gain 1.6%; and a copy that is dimmed by 10% has the distance 0.03.
LARGEST_GAIN = 1.25
GAIN_COST = 0.3  # added to the distance, times |log(gain)|


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
    if size != tuple(images.shape[-2:]):
        pixels = F.interpolate(images.float(), size, mode="bilinear", antialias=True)
        images = pixels.round().clamp(0, WHITE).to(torch.uint8)
    return blurred(images)


def blurred(images: Tensor) -> Tensor:
    """(N,C,h,w) uint8 -> the same, blurred: grey with `BLUR_SIGMA`, what a pixel's colours differ
    from its grey by with `COLOUR_BLUR_SIGMA`.
    """
    pixels = images.int()
    if images.shape[1] == 1:
        smooth = _smooth(pixels, BLUR_SIGMA)
    else:
        luma = (pixels * LUMA.to(pixels.device)).sum(1, keepdim=True) // LUMA.sum()
        smooth = _smooth(luma, BLUR_SIGMA) + _smooth(pixels - luma, COLOUR_BLUR_SIGMA)
    return smooth.clamp(0, WHITE).to(torch.uint8)


def _smooth(pixels: Tensor, sigma: float) -> Tensor:
    """A Gaussian blur of (N,C,h,w) int32; beyond an edge, its pixels are repeated.

    In whole numbers, with weights whose sum is `BLUR_WHOLE`.
    """
    radius = math.ceil(3 * sigma)
    bell = [math.exp(-0.5 * (offset / sigma) ** 2) for offset in range(-radius, radius + 1)]
    weights = [round(BLUR_WHOLE * value / sum(bell)) for value in bell]
    weights[radius] += BLUR_WHOLE - sum(weights)

    height, width = pixels.shape[-2:]
    padded = F.pad(pixels.float(), (radius,) * 4, mode="replicate").int()
    along_rows = torch.zeros_like(padded[..., :width])
    for begin, weight in enumerate(weights):
        along_rows += weight * padded[..., begin : begin + width]
    along_both = torch.full_like(along_rows[..., :height, :], BLUR_WHOLE**2 // 2)  # to round
    for begin, weight in enumerate(weights):
        along_both += weight * along_rows[..., begin : begin + height, :]
    return along_both // BLUR_WHOLE**2


# --- Which pixels are compared ---


@dataclass(frozen=True)
class Variant:
    """A mirror image, or none, moved by so many pixels."""

    is_mirrored: bool
    down: int
    right: int


class Geometry:
    """Which pixels of two images of one size are compared, as tables of places.

    The query's variants are compared with an image tile by tile, wherever both have pixels. For
    the thumbnails, all variants have a window of the same size: its place in the middle of an
    image, and for a shifted query beside that.
    """

    def __init__(self, channels: int, height: int, width: int, device: torch.device | str = "cpu"):
        shifts = [min(LARGEST_SHIFT, side // SIDE_PER_SHIFT) for side in (height, width)]
        self.variants = [
            Variant(is_mirrored, down, right)
            for is_mirrored in (False, True)
            for down in range(-shifts[0], shifts[0] + 1)
            for right in range(-shifts[1], shifts[1] + 1)
        ]
        self.pixels = height * width

        # Tiles: places in a flat image of all channels
        places = torch.arange(self.pixels).view(height, width)
        counterparts = torch.stack([_counterparts(places, variant) for variant in self.variants])
        tiles = _tiles(places)  # (T,P)
        query_tiles = _in_all_channels(counterparts[:, tiles], channels, self.pixels)
        image_tiles = _in_all_channels(tiles[None], channels, self.pixels)
        is_compared = query_tiles < channels * self.pixels
        self.query_tiles = query_tiles.to(device)  # (T,V,C*P)
        self.image_tiles = image_tiles.to(device)  # (T,1,C*P)
        self.is_compared = is_compared.float().to(device)  # (T,V,C*P)

        # Windows of thumbnails: places in a flat channel
        top, left = (
            min(shift + EDGE, (side - 1) // 2)
            for shift, side in zip(shifts, (height, width), strict=True)
        )
        middle = places[top : height - top, left : width - left].flatten()
        self.query_windows = counterparts[:, middle].to(device)  # (V,S)
        self.image_window = middle[None].to(device)  # (1,S)
        self.cells = _cells(height - 2 * top, width - 2 * left).to(device)  # (S,D) of 0 and 1


def _counterparts(places: Tensor, variant: Variant) -> Tensor:
    """For each pixel of an image, the place (h,w) in a flat query with which it is compared;
    h * w for those that are not. -> (h*w + 1,); the last one is for padding.
    """
    height, width = places.shape
    rows, columns = _compared(height, variant.down), _compared(width, variant.right)
    picture = places.flip(1) if variant.is_mirrored else places
    shifted = picture.roll((-variant.down, -variant.right), (0, 1))
    counterparts = torch.full_like(places, height * width)
    counterparts[rows, columns] = shifted[rows, columns]
    return F.pad(counterparts.flatten(), (0, 1), value=height * width)


def _compared(side: int, shift: int) -> slice:
    """What is compared of a side with a shifted query: what lies in both, but for the edges."""
    edge = min(EDGE, (side - 1) // 2)
    return slice(max(0, -shift) + edge, side - max(0, shift) - edge)


def _tiles(places: Tensor) -> Tensor:
    """The places (h,w) of each tile, (T,P); smaller tiles are padded with h * w."""
    height, width = places.shape
    tiles = [
        places[rows, columns].flatten()
        for rows in _parts(height, TILES_PER_SIDE)
        for columns in _parts(width, TILES_PER_SIDE)
    ]
    return torch.nn.utils.rnn.pad_sequence(tiles, batch_first=True, padding_value=height * width)


def _in_all_channels(places: Tensor, channels: int, pixels: int) -> Tensor:
    """Places (V,T,P) in a flat channel -> places (T,V,C*P) in a flat image of all channels.

    What is not compared, or padding, comes from behind the image.
    """
    starts = torch.arange(channels).view(-1, 1) * pixels
    everywhere = places[:, :, None] + starts  # (V,T,C,P)
    everywhere[(places == pixels)[:, :, None].expand_as(everywhere)] = channels * pixels
    return everywhere.flatten(2).transpose(0, 1).contiguous()


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


def tiles_of(prepared: Tensor, places: Tensor) -> Tensor:
    """(B,C,h,w) uint8, places (T,V,C*P) -> (B,T,V,C*P) float32; padding is 0."""
    padded = F.pad(prepared.flatten(1), (0, 1))
    tiles = padded.index_select(1, places.flatten())
    return tiles.view(len(prepared), *places.shape).float()


def copy_distances(query: Tensor, images: Tensor, geometry: Geometry) -> Tensor:
    """Prepared images (C,h,w) and (K,C,h,w) -> distances (K,) float64.

    0 for an exact, mirrored or shifted copy, 1 between black and white.
    """
    (of_query,) = tiles_of(query[None], geometry.query_tiles)  # (T,V,CP)
    of_images = tiles_of(images, geometry.image_tiles)[:, :, 0].permute(1, 2, 0)  # (T,CP,K)
    values = geometry.is_compared.sum(-1, keepdim=True).clamp(min=1)  # (T,V,1) numbers per tile

    # Whole numbers up to here; float64 keeps their differences exact.
    products = (of_query @ of_images).double()  # (T,V,K)
    query_squares = of_query.square().sum(-1, keepdim=True).double()  # (T,V,1)
    image_squares = (geometry.is_compared @ of_images.square()).double()  # (T,V,K)

    def largest_difference(gain: Tensor | float) -> Tensor:
        squares = gain * (gain * query_squares - 2 * products) + image_squares
        return (squares.clamp(min=0) / values).amax(0).sqrt() / WHITE

    best_gain = products.sum(0) / query_squares.sum(0).clamp(min=1)  # (V,K)
    gain = best_gain.clamp(1 / LARGEST_GAIN, LARGEST_GAIN)
    as_bright = largest_difference(1.0)
    adjusted = largest_difference(gain) + GAIN_COST * gain.log().abs()
    return torch.minimum(as_bright, adjusted).amin(0)


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

    No copy distance is below this by more than `bound_slack`: the sum of squares over cells is at
    most that over pixels, and the mean over all that are compared at most that of some tile.
    """
    lengths = query.square().sum(1, keepdim=True).clamp(min=1).sqrt()  # (V,1)
    along_query = ((query / lengths) @ images.T).amax(0)  # (N,)
    # The query, made brighter or darker, reaches the place on its line that is nearest to an image.
    nearest = along_query.clamp(lengths.min() / LARGEST_GAIN, lengths.max() * LARGEST_GAIN)
    squares = images.square().sum(1) + nearest * (nearest - 2 * along_query)
    channels = query.shape[1] // geometry.cells.shape[1]
    largest_cell = geometry.cells.sum(0).max()
    return (squares.clamp(min=0) * largest_cell / (channels * geometry.pixels)).sqrt() / WHITE


def bound_slack(geometry: Geometry) -> float:
    """By how much a lower bound may be too large, since thumbnails are rounded."""
    pixels, cells = geometry.cells.shape
    largest_cell = int(geometry.cells.sum(0).max())
    of_a_difference = 0.5 * (1 + LARGEST_GAIN)
    return of_a_difference * (cells * largest_cell / pixels) ** 0.5 / WHITE + FLOAT32_SLACK
