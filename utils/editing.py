"""Images that begin with an image: changed, filled in, blended, inverted. For generate.py and the
server alike.
"""

import abc
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model.codecs import Codec
from model.editing import FillIn, first_call_of, noised, slerp
from model.guidance import Label
from model.networks import check_image_size
from model.randomness import draw_normal, image_generator
from model.samplers import BaseDiffusion
from model.samplers.ddim import DDIM
from model.samplers.inversion import InvertingDDIM
from utils.data.decode import decode
from utils.data.reading import in_mode, why_unreadable
from utils.errors import UserError
from utils.generation import Beginning, ImageGenerator, Sampling
from utils.image_facts import mode_of
from utils.pixel_planes import share_of_range

# Samplers whose next step begins where the last one ended, and nowhere else, so that a change
# between two steps counts.
CHANGEABLE = ("ddpm", "ddim", "dpmpp2m")
HALF_WHITE = 127
LUMA = np.array([299, 587, 114])  # of ITU-R 601, in thousandths
USUAL_STRENGTH = 0.6  # of an image that is changed as a whole

Borders = tuple[int, int, int, int]  # pixels at the top, right, bottom and left
Source = Path | bytes  # a picture's file, or what is in one


# --- What a person asks for ---


class WrongWish(UserError):
    """A wish that cannot be fulfilled, or not together with the others. `name`: which one."""

    def __init__(self, name: str, message: str):
        super().__init__(message)
        self.name = name


@dataclass(frozen=True)
class Wishes:
    """What images are to begin with. None: not asked for."""

    init_image: Source | None = None
    strength: float | None = None
    mask: Source | None = None
    repeats: int = 1
    outpaint: Borders | None = None
    interpolate: tuple[int, int] | None = None
    invert: Source | None = None
    prefix: str = ""  # before the names in messages

    def word(self, name: str) -> str:
        return f"{self.prefix}{name}"

    def check(self, has_condition: bool) -> None:
        """Raise WrongWish where they do not go together."""
        word = self.word
        begun = [
            name
            for name in ("init_image", "interpolate", "invert")
            if getattr(self, name) is not None
        ]
        if len(begun) > 1:
            two = f"{word(begun[0])} and {word(begun[1])}"
            raise WrongWish(begun[1], f"{two} both say where to begin: choose one")
        for name in ("mask", "outpaint", "strength"):
            if getattr(self, name) is not None and self.init_image is None:
                raise WrongWish(name, f"{word(name)} belongs to {word('init_image')}")
        if self.mask is not None and self.outpaint is not None:
            two = f"{word('mask')} and {word('outpaint')}"
            raise WrongWish("outpaint", f"{two} both say where to paint: choose one")
        if self.outpaint is not None and not any(self.outpaint):
            raise WrongWish("outpaint", f"{word('outpaint')} has no border: nothing is painted")
        if self.repeats > 1 and not self.is_painted:
            choices = f"{word('mask')} or {word('outpaint')}"
            raise WrongWish("repeats", f"{word('repeats')} belongs to {choices}")
        for name in ("invert", "outpaint"):
            if has_condition and getattr(self, name) is not None:
                condition = word("condition")
                message = f"{word(name)} does not go with {condition}: leave one out"
                raise WrongWish(name, message)

    def check_sampling(self, sampling: Sampling) -> None:
        """Raise WrongWish where the sampler cannot do it."""
        word = self.word
        for name in ("mask", "outpaint"):
            if getattr(self, name) is not None and sampling.sampler not in CHANGEABLE:
                raise WrongWish(
                    name,
                    f"{word('mask')} and {word('outpaint')} change the image between steps, which "
                    f"{sampling.sampler} does not see: choose {word('sample')} "
                    f"{', '.join(CHANGEABLE)}",
                )
        if self.invert is not None and (sampling.sampler != "ddim" or sampling.eta != 0):
            raise WrongWish(
                "invert",
                f"{word('invert')} needs a sampler that adds no noise: {word('sample')} ddim "
                f"{word('eta')} 0",
            )
        if self.interpolate is not None and sampling.adds_noise:
            raise WrongWish(
                "interpolate",
                f"{word('interpolate')} needs a sampler that adds no noise, which would be another "
                f"for each image: {word('sample')} ddim {word('eta')} 0, dpmpp2m, plms or unipc",
            )

    def check_labels(self, labels: Sequence[Label] | None, are_known: bool) -> None:
        """Raise WrongWish where images that belong together would not have one class. `labels`: of
        the images in turn; None: the network has no classes. They are known where they were asked
        for, or there is no choice.
        """
        if labels is None or (are_known and len(set(labels)) == 1):
            return
        why = {
            "interpolate": "images between two seeds have one class",
            "invert": "the noise of an image depends on its class",
        }
        for name, reason in why.items():
            if getattr(self, name) is not None:
                asked = self.word("class_name")
                raise WrongWish(name, f"{reason}: choose it with {asked} for {self.word(name)}")

    def check_weights(self, makes_masks: bool) -> None:
        """Raise WrongWish where the weights cannot do it."""
        for name in ("init_image", "invert"):
            if makes_masks and getattr(self, name) is not None:
                raise WrongWish(
                    name, "these weights make images together with masks: they begin with no image"
                )

    def size(self, image_size: tuple[int, int], factor: int) -> tuple[int, int]:
        """Of the images, (H,W), where they are of `image_size` without borders. Raises WrongWish
        where the sides are not divisible by the network's `factor`.
        """
        if self.outpaint is None:
            return image_size
        top, right, bottom, left = self.outpaint
        size = (image_size[0] + top + bottom, image_size[1] + left + right)
        try:
            check_image_size(*size, factor)
        except ValueError as error:
            raise WrongWish("outpaint", f"with these borders: {error}") from None
        return size

    def edit(
        self, image_size: tuple[int, int], channels: int, first_seed: int, count: int
    ) -> "Edit | None":
        """What fulfils them, for images of these seeds: `image_size` is their own, borders
        included. None: nothing is asked for. Raises WrongWish for pictures that cannot be used.
        """
        if self.interpolate is not None:
            return Blended(self.interpolate, first_seed, count)
        if self.invert is not None:
            return Inverted(self._picture("invert", image_size, channels))
        if self.init_image is None:
            return None
        if self.outpaint is not None:
            return self._widened(self.outpaint, image_size, channels)
        image = self._picture("init_image", image_size, channels)
        if self.mask is not None:
            return Filled(image, self._mask(image_size), self.used_strength, self.repeats)
        return FromImage(image, self.used_strength)

    @property
    def is_painted(self) -> bool:
        """Whether a part of the image is made anew, and the others stay."""
        return self.mask is not None or self.outpaint is not None

    @property
    def used_strength(self) -> float:
        """The one that is asked for, or the usual one."""
        return self.strength or (1.0 if self.is_painted else USUAL_STRENGTH)

    def _widened(self, borders: Borders, size: tuple[int, int], channels: int) -> "Filled":
        """The image within borders that are painted."""
        top, right, bottom, left = borders
        inner = (size[0] - top - bottom, size[1] - left - right)
        image = self._picture("init_image", inner, channels)
        sides = (left, right, top, bottom)
        paint = F.pad(torch.zeros(1, 1, *inner), sides, value=1.0).bool()
        canvas = F.pad(image.float(), sides, mode="replicate").to(image)
        return Filled(canvas, paint, self.used_strength, self.repeats)

    def _picture(self, name: str, size: tuple[int, int], channels: int) -> Tensor:
        """A picture as the network's training read its own, (1,C,H,W) uint8."""
        pixels = self._read(name, size, mode_of(channels))
        planes = pixels[..., :channels].transpose(2, 0, 1)
        return torch.from_numpy(np.ascontiguousarray(planes))[None]

    def _mask(self, size: tuple[int, int]) -> Tensor:
        """Where it is white, an image is painted anew: (1,1,H,W) bool."""
        colours = self._read("mask", size, "RGBA")[..., :3]  # on black where it is transparent
        luma = colours.astype(np.int64) @ LUMA
        paint = torch.from_numpy(luma > HALF_WHITE * LUMA.sum())[None, None]
        if not paint.any():
            raise WrongWish(
                "mask", f"{self._called('mask')} is white nowhere: nothing would be painted"
            )
        return paint

    def _read(self, name: str, size: tuple[int, int], mode: str) -> np.ndarray:
        source = getattr(self, name)
        file = io.BytesIO(source) if isinstance(source, bytes) else source
        try:
            return in_mode(decode(file, size, mode).pixels, mode)
        except MemoryError:
            raise
        except Exception as error:  # whatever Pillow's plugins raise on damaged files
            called = self._called(name)
            why = why_unreadable(error, called)
            raise WrongWish(name, f"{called} cannot be read: {why}") from None

    def _called(self, name: str) -> str:
        source = getattr(self, name)
        if isinstance(source, bytes):
            return self.word(name)
        return f"the {'mask' if name == 'mask' else 'image'} {source}"

    def without_pictures(self) -> "Wishes":
        """The same, as far as it can be spoken of: what was in files is let go."""
        return replace(
            self,
            init_image=_without_contents(self.init_image),
            mask=_without_contents(self.mask),
            invert=_without_contents(self.invert),
        )

    def settings(self) -> dict:
        """What the text of a PNG says of them."""
        names = ("init_image", "mask", "outpaint", "interpolate", "invert")
        given = {name: getattr(self, name) for name in names}
        if self.init_image is not None:
            given["strength"] = self.used_strength
        if self.is_painted:
            given["repeats"] = self.repeats
        said = {}
        for name, value in given.items():
            if isinstance(value, Path):
                said[name] = value.name
            elif isinstance(value, bytes):
                said[name] = "sent with the request"
            elif value is not None:
                said[name] = value
        return said


def _without_contents(source: Source | None) -> Source | None:
    return b"" if isinstance(source, bytes) else source


# --- What fulfils it ---


class Maker(Protocol):
    """What makes the images: `utils.generation.ImageGenerator`, or a lane of the server."""

    @property
    def sampler(self) -> BaseDiffusion: ...
    @property
    def codec(self) -> Codec: ...
    @property
    def image_size(self) -> tuple[int, int]: ...
    @property
    def channels(self) -> int: ...


class Edit(abc.ABC):
    """What images begin with, and what is made of them at the end."""

    @abc.abstractmethod
    def begin(self, maker: Maker, seeds: Sequence[int]) -> Beginning:
        """Where the images of these seeds start."""

    def finish(self, pixels: Tensor) -> Tensor:
        """(B,C,H,W) uint8 when they are done."""
        return pixels

    def sampler_of(self, sampler: BaseDiffusion) -> BaseDiffusion:
        """What samples in the place of a sampler."""
        return sampler

    def calls(self, sampler: BaseDiffusion) -> int:
        """Network calls of an image, where `sampler_of` has been asked."""
        return len(sampler.calls())

    def about(self, pixels: Tensor, seed: int) -> dict:
        """What is to be said of the finished image (C,H,W) uint8 of this seed."""
        return {}


@dataclass
class FromImage(Edit):
    """Image to image: an image is noised, and denoised again."""

    image: Tensor  # (1,C,H,W) uint8
    strength: float  # the share of the network calls that are made

    def begin(self, maker: Maker, seeds: Sequence[int]) -> Beginning:
        first_call = first_call_of(maker.sampler, self.strength)
        x0 = encoded(maker, self.image, len(seeds))
        return Beginning(noised(maker.sampler, x0, first_call, seeds), first_call)

    def calls(self, sampler: BaseDiffusion) -> int:
        return _calls_from(sampler, self.strength)


@dataclass
class Filled(Edit):
    """Part of an image is painted anew; the rest stays to the bit."""

    image: Tensor  # (1,C,H,W) uint8
    paint: Tensor  # (1,1,H,W) bool
    strength: float = 1.0
    repeats: int = 1

    def begin(self, maker: Maker, seeds: Sequence[int]) -> Beginning:
        sampler = maker.sampler
        first_call = first_call_of(sampler, self.strength)
        x0 = encoded(maker, self.image, len(seeds))
        change = FillIn(sampler, x0, self._paint_of(x0), seeds, self.repeats)
        if first_call == 0:
            return Beginning(None, 0, change)
        return Beginning(noised(sampler, x0, first_call, seeds), first_call, change)

    def finish(self, pixels: Tensor) -> Tensor:
        return torch.where(self.paint, pixels, self.image)

    def calls(self, sampler: BaseDiffusion) -> int:
        return (_calls_from(sampler, self.strength) - 1) * self.repeats + 1

    def _paint_of(self, x0: Tensor) -> Tensor:
        """Where to paint in what the diffusion sees: wherever there is a pixel to paint."""
        pooled = F.adaptive_max_pool2d(self.paint.float(), x0.shape[-2:])
        return (pooled > 0).to(x0.device)


@dataclass
class Blended(Edit):
    """From the noise of one seed to that of another."""

    ends: tuple[int, int]
    first_seed: int
    count: int  # images, the ends included

    def begin(self, maker: Maker, seeds: Sequence[int]) -> Beginning:
        shape = maker.codec.shape(maker.image_size, maker.channels)
        a, b = (draw_normal(1, shape, image_generator(seed))[0] for seed in self.ends)
        return Beginning(torch.stack([slerp(a, b, self._share(seed)) for seed in seeds]))

    def about(self, pixels: Tensor, seed: int) -> dict:
        return {"interpolate_share": round(self._share(seed), 4)}

    def _share(self, seed: int) -> float:
        """How far on the way the image of this seed is, from 0 to 1."""
        return (seed - self.first_seed) / max(1, self.count - 1)


@dataclass
class FromNoise(Edit):
    """From a given noise (1,C,H,W)."""

    noise: Tensor

    def begin(self, maker: Maker, seeds: Sequence[int]) -> Beginning:
        return Beginning(self.noise.expand(len(seeds), -1, -1, -1))


@dataclass
class Inverted(Edit):
    """An image goes back to its noise, and is drawn from that again."""

    image: Tensor  # (1,C,H,W) uint8

    def begin(self, maker: Maker, seeds: Sequence[int]) -> Beginning:
        return Beginning(encoded(maker, self.image, len(seeds)))

    def sampler_of(self, sampler: BaseDiffusion) -> BaseDiffusion:
        return InvertingDDIM.of(cast(DDIM, sampler))

    def about(self, pixels: Tensor, seed: int) -> dict:
        return {"inversion_error": round(self.error(pixels), 4)}

    def error(self, pixels: Tensor) -> float:
        """How much the image that was drawn again (C,H,W) uint8 differs: RMS, as a share of the
        range.
        """
        difference = share_of_range(pixels) - share_of_range(self.image[0])
        return difference.square().mean().sqrt().item()


def _calls_from(sampler: BaseDiffusion, strength: float) -> int:
    """The network calls that are made at this strength."""
    return len(sampler.calls(sampler.step_of_call(first_call_of(sampler, strength))))


def encoded(maker: Maker, pixels: Tensor, count: int) -> Tensor:
    """What the diffusion sees of an image, `count` times."""
    x0 = maker.codec.encode(pixels.to(maker.sampler.device))
    return x0.expand(count, -1, -1, -1)


# --- Back to noise, once for several images ---


def recover(
    generator: ImageGenerator,
    edit: Inverted,
    label: Label | None,
    after_call: Callable[[], None],
) -> tuple[FromNoise, float]:
    """The noise from which the generator, with its label and guidance, makes an image again; and
    how much that differs.
    """
    going_back = generator.with_sampler(edit.sampler_of(generator.sampler))
    sampler = cast(InvertingDDIM, going_back.sampler)
    labels = None if label is None else [label]
    noise = torch.empty(0)
    for denoised in going_back.denoise([0], labels, edit):
        after_call()
        if denoised.calls_done == sampler.backward_calls:
            noise = denoised.trajectory.x
    again = going_back.finished(denoised)[0]
    return FromNoise(noise), edit.error(again)
