"""What an upscaler is trained on: crops of pairs, turned, and on demand degraded."""

import io
from dataclasses import dataclass

import numpy as np
import torch
import torchvision.transforms.functional as TF
from PIL import Image
from torch import Tensor, nn

from model.codecs import PixelCodec
from model.randomness import draw_uniform
from utils.pictures import to_picture
from utils.training.prefetch import Batch, Draws

TURNS = 8  # a square has so many: four quarter turns, each mirrored or not

# Degradations of photographs from the web, each uniform in its range.
LARGEST_BLUR = 1.5  # sigma, in pixels
SMALLEST_BLUR = 0.1  # less changes nothing
BLUR_WINDOW = 9  # pixels: 3 sigma to each side
LARGEST_NOISE = 10.0  # standard deviation, in 8-bit levels
LOWEST_QUALITY, HIGHEST_QUALITY = 60, 95  # of JPEG


@dataclass
class UpscalingTask:
    """Batches are (small (B,C,h,w) uint8, large (B,C,sh,sw) uint8, indices (B,)), of whole images
    or of parts.

    The loss is the mean absolute error of the enlarged crop, in [-1, 1] (Lim et al. 1707.02921
    found it better than the squared error, for PSNR too).
    """

    scale: int
    crop: int  # side of the square crops, in pixels of the small image; at most what is there
    degrade: bool = False

    def __post_init__(self) -> None:
        self.codec = PixelCodec()

    def passes(self, image_size: tuple[int, int]) -> float:
        """How much more than a crop a whole small image (H, W) is to the network."""
        height, width = image_size
        side = min(self.crop, height, width)
        return height * width / side**2

    def draw(self, batch: Batch, generators: list[torch.Generator]) -> Draws:
        """The crops "small" (B,C,p,p) and "large" (B,C,sp,sp), uint8. Each image draws its place
        and its turn, then its degradations (on the CPU).
        """
        small, large, _ = batch
        height, width = small.shape[2:]
        side = min(self.crop, height, width)
        tops = _whole(draw_uniform(len(small), generators), height - side + 1)
        lefts = _whole(draw_uniform(len(small), generators), width - side + 1)
        turns = _whole(draw_uniform(len(small), generators), TURNS)
        crops: list[Tensor] = []
        targets: list[Tensor] = []
        for i, (top, left, turn) in enumerate(zip(tops, lefts, turns, strict=True)):
            crops.append(turned(cut(small[i], top, left, side), turn))
            s = self.scale
            targets.append(turned(cut(large[i], s * top, s * left, s * side), turn))
        if self.degrade:
            crops = [degraded(crop, g) for crop, g in zip(crops, generators, strict=True)]
        return {"small": torch.stack(crops), "large": torch.stack(targets)}

    def loss(self, network: nn.Module, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """The mean absolute error, and for the log PSNR in dB (not rounded, with borders)."""
        small = self.codec.encode(draws["small"])
        large = self.codec.encode(draws["large"])
        errors = network(small).to(large) - large
        squared = errors.detach().square().flatten(1).mean(1)
        in_db = 10 * torch.log10(4 / squared.clamp(min=1e-10))  # the range is 2
        count = torch.full_like(in_db.sum(), len(in_db))
        return {"loss": errors.abs().mean(), "crop_psnr": torch.stack([in_db.sum(), count])}


def _whole(uniform: Tensor, count: int) -> list[int]:
    """Uniform numbers in [0, 1) -> whole numbers in 0..count-1."""
    return (uniform.double() * count).long().clamp(max=count - 1).tolist()


def cut(image: Tensor, top: int, left: int, side: int) -> Tensor:
    """A square (C,side,side) of an image (C,H,W)."""
    return image[:, top : top + side, left : left + side]


def turned(image: Tensor, turn: int) -> Tensor:
    """One of the eight turns of a square image (C,S,S): `turn` % 4 quarter turns, then mirrored for
    4 and more.
    """
    image = torch.rot90(image, turn % 4, (1, 2))
    return image.flip(2) if turn >= 4 else image


def degraded(image: Tensor, generator: torch.Generator) -> Tensor:
    """(C,H,W) uint8 -> the same, blurred, noisy and compressed like pictures from the web."""
    blur, noise, quality = torch.rand(3, generator=generator).tolist()
    values = image.float()
    sigma = blur * LARGEST_BLUR
    if sigma > SMALLEST_BLUR:
        window = min(BLUR_WINDOW, 2 * min(image.shape[1:]) - 1)  # else it cannot be mirrored
        values = TF.gaussian_blur(values, [window] * 2, [sigma] * 2)
    values = values + noise * LARGEST_NOISE * torch.randn(values.shape, generator=generator)
    pixels = values.round().clamp(0, 255).to(torch.uint8)
    span = HIGHEST_QUALITY - LOWEST_QUALITY + 1
    return compressed(pixels, LOWEST_QUALITY + int(quality * span))


def compressed(pixels: Tensor, quality: int) -> Tensor:
    """(C,H,W) uint8 -> the same after JPEG of that quality."""
    file = io.BytesIO()
    to_picture(pixels).save(file, "JPEG", quality=quality)
    with Image.open(file) as image:
        decoded = torch.tensor(np.asarray(image))
    return decoded.view(*pixels.shape[1:], len(pixels)).permute(2, 0, 1)
