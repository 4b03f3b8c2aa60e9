"""generate.py's images that begin with an image: changed, filled in, blended, inverted."""

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model.editing import FillIn, first_call_of, invert, noised, slerp
from model.guidance import Label
from model.networks import check_image_size
from model.randomness import draw_normal, image_generator
from model.samplers.base import evaluation_mode
from utils.data.decode import decode
from utils.data.reading import in_mode, why_unreadable
from utils.errors import UserError
from utils.generation import Beginning, ImageGenerator
from utils.image_facts import mode_of

# Samplers whose next step begins where the last one ended, and nowhere else, so that a change
# between two steps counts.
CHANGEABLE = ("ddpm", "ddim", "dpmpp2m")
HALF_WHITE = 127
Borders = tuple[int, int, int, int]  # pixels at the top, right, bottom and left


class Edit(abc.ABC):
    """What images begin with, and what is made of them at the end."""

    @abc.abstractmethod
    def begin(self, generator: ImageGenerator, seeds: Sequence[int]) -> Beginning:
        """Where the images of these seeds start."""

    def finish(self, pixels: Tensor) -> Tensor:
        """(B,C,H,W) uint8 when they are done."""
        return pixels


@dataclass
class FromImage(Edit):
    """Image to image: an image is noised, and denoised again."""

    image: Tensor  # (1,C,H,W) uint8
    strength: float  # the share of the network calls that are made

    def begin(self, generator: ImageGenerator, seeds: Sequence[int]) -> Beginning:
        first_call = first_call_of(generator.sampler, self.strength)
        x0 = encoded(generator, self.image, len(seeds))
        return Beginning(noised(generator.sampler, x0, first_call, seeds), first_call)


@dataclass
class Filled(Edit):
    """Part of an image is painted anew; the rest stays to the bit."""

    image: Tensor  # (1,C,H,W) uint8
    paint: Tensor  # (1,1,H,W) bool
    strength: float = 1.0
    repeats: int = 1

    def begin(self, generator: ImageGenerator, seeds: Sequence[int]) -> Beginning:
        sampler = generator.sampler
        first_call = first_call_of(sampler, self.strength)
        x0 = encoded(generator, self.image, len(seeds))
        change = FillIn(sampler, x0, self._paint_of(x0), seeds, self.repeats)
        if first_call == 0:
            return Beginning(None, 0, change)
        return Beginning(noised(sampler, x0, first_call, seeds), first_call, change)

    def finish(self, pixels: Tensor) -> Tensor:
        return torch.where(self.paint, pixels, self.image)

    def _paint_of(self, x0: Tensor) -> Tensor:
        """Where to paint in what the diffusion sees: wherever there is a pixel to paint."""
        pooled = F.adaptive_max_pool2d(self.paint.float(), x0.shape[-2:])
        return (pooled > 0).to(x0.device)


@dataclass
class Blended(Edit):
    """From the noise of one seed to that of another."""

    ends: tuple[int, int]
    first_seed: int
    count: int

    def begin(self, generator: ImageGenerator, seeds: Sequence[int]) -> Beginning:
        shape = generator.codec.shape(generator.image_size, generator.channels)
        a, b = (draw_normal(1, shape, image_generator(seed))[0] for seed in self.ends)
        last = max(1, self.count - 1)
        shares = [(seed - self.first_seed) / last for seed in seeds]
        return Beginning(torch.stack([slerp(a, b, share) for share in shares]))


@dataclass
class FromNoise(Edit):
    """From a given noise (1,C,H,W)."""

    noise: Tensor

    def begin(self, generator: ImageGenerator, seeds: Sequence[int]) -> Beginning:
        return Beginning(self.noise.expand(len(seeds), -1, -1, -1))


# --- Files ---


def read_for(generator: ImageGenerator, file: Path) -> Tensor:
    """An image file as the network's training read its own, (1,C,H,W) uint8. Raises UserError."""
    mode = mode_of(generator.channels)
    pixels = _read(file, generator.image_size, mode)
    planes = pixels[..., : generator.channels].transpose(2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(planes))[None]


def read_mask(generator: ImageGenerator, file: Path) -> Tensor:
    """A mask file: where it is white, an image is painted anew. (1,1,H,W) bool. Raises UserError
    where it is white nowhere.
    """
    pixels = _read(file, generator.image_size, "L")
    paint = torch.from_numpy(pixels[..., 0] > HALF_WHITE)[None, None]
    if not paint.any():
        raise UserError(f"the mask {file} is white nowhere: nothing would be painted")
    return paint


def _read(file: Path, size: tuple[int, int], mode: str) -> np.ndarray:
    try:
        return in_mode(decode(file, size, mode).pixels, mode)
    except MemoryError:
        raise
    except Exception as error:  # whatever Pillow's plugins raise on damaged files
        why = why_unreadable(error, str(file))
        raise UserError(f"the image {file} cannot be read: {why}") from None


def widened(generator: ImageGenerator, file: Path, borders: Borders, strength: float) -> Filled:
    """Outpainting: the image within borders that are painted. The generator makes images of the
    larger size from now on. Raises UserError for a size that the network does not take.
    """
    top, right, bottom, left = borders
    image = read_for(generator, file)
    height, width = generator.image_size
    size = (height + top + bottom, width + left + right)
    factor = generator.codec.downsample_factor * cast(int, generator.network.downsample_factor)
    try:
        check_image_size(*size, factor)
    except ValueError as error:
        raise UserError(f"with these borders: {error}") from None
    paint = F.pad(torch.zeros(1, 1, height, width), (left, right, top, bottom), value=1.0).bool()
    canvas = F.pad(image.float(), (left, right, top, bottom), mode="replicate").to(image)
    generator.image_size = size
    return Filled(canvas, paint, strength)


def encoded(generator: ImageGenerator, pixels: Tensor, count: int) -> Tensor:
    """What the diffusion sees of an image, `count` times."""
    x0 = generator.codec.encode(pixels.to(generator.precision.device))
    return x0.expand(count, -1, -1, -1)


# --- Back to noise ---


@dataclass
class Recovered:
    """The noise that becomes an image file, and how well."""

    edit: FromNoise
    error: float  # RMS over pixels, 0 to 1


def recover(
    generator: ImageGenerator,
    image: Tensor,
    label: Label | None,
    rounds: int,
    after_call: Callable[[], None],
) -> Recovered:
    """The noise from which the generator, with its label and guidance, makes the image (1,C,H,W)
    again.
    """
    x0 = encoded(generator, image, 1)
    labels = None if label is None else [label]
    start = generator.start([0], labels)
    with evaluation_mode(generator.network):
        found = invert(generator.sampler, generator.call, start, x0, rounds, after_call)
    edit = FromNoise(found.noise)
    again = generator.images([0], labels, edit=edit)
    difference = (again.float() - image.float()) / 255
    return Recovered(edit, difference.square().mean().sqrt().item())


def check_changeable(sampler: str) -> None:
    """Raise UserError where a sampler does not go on from what was changed between its steps."""
    if sampler not in CHANGEABLE:
        raise UserError(
            f"--mask and --outpaint change the image between steps, which {sampler} does not see: "
            f"choose --sample {', '.join(CHANGEABLE)}"
        )
