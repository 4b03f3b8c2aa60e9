"""Images that begin with an image: where to start, and what to change between two steps.

Nothing here loops over steps: `BaseDiffusion.denoise` does, and calls a `Change` after each.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from model.randomness import draw_normal, image_generator, mix
from model.samplers.base import BaseDiffusion
from model.samplers.trajectory import Trajectory
from model.transfer import numbers_on, to_device

# (before the network call, after it) -> the trajectory to go on from
Change = Callable[[Trajectory, Trajectory], Trajectory]

EDIT_STREAM = 1  # the noise of an edit is not that of the sampling steps
SMALLEST_ANGLE = 1e-4  # radians: noises so near to each other are blended in a straight line


def edit_generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """A generator for the edit of each image, apart from that of its sampling."""
    return [image_generator(mix(seed, EDIT_STREAM) % 2**32) for seed in seeds]


# --- Image to image: Meng et al. 2108.01073 ---


def first_call_of(sampler: BaseDiffusion, strength: float) -> int:
    """The network call to begin with, so that the share `strength` of all calls is made; at least
    one.
    """
    calls = len(sampler.calls())
    return min(calls - 1, calls - round(strength * calls))


def noised(sampler: BaseDiffusion, x0: Tensor, first_call: int, seeds: Sequence[int]) -> Tensor:
    """Images x0 (B,C,H,W) at the noise level of a network call, each with the noise of its seed."""
    t, _, _ = sampler.calls()[first_call]
    noise = to_device(draw_normal(len(x0), x0.shape[1:], edit_generators(seeds)), x0.device)
    return sampler.renoise(x0, noise.to(x0), torch.full((len(x0),), t, device=x0.device))


# --- Filling in: RePaint, Lugmayr et al. 2201.09865 ---


class FillIn:
    """A change between steps that keeps what is known: there the image is always x0 at the noise
    level that has been reached, so that what is painted fits to it.

    `paint` (1,1,H,W) bool says where to paint. With `repeats` r each step is made r times, noised
    back in between, which makes both parts agree better. All images are at the same step.
    """

    def __init__(
        self,
        sampler: BaseDiffusion,
        x0: Tensor,
        paint: Tensor,
        seeds: Sequence[int],
        repeats: int = 1,
    ):
        self.sampler = sampler
        self.x0 = x0
        self.paint = paint
        self.repeats = repeats
        self.generators = edit_generators(seeds)
        self.done_again = 0  # how often the current step has been made before

    def copy(self) -> "FillIn":
        """As it stands, so that a step which fails can be made again."""
        other = copy.copy(self)
        other.generators = [generator.clone_state() for generator in self.generators]
        return other

    def __call__(self, before: Trajectory, after: Trajectory) -> Trajectory:
        t, t_prev, _ = before.calls[0]
        known = self._noised(self.x0, t_prev)
        merged = torch.where(self.paint, after.x, known)
        is_last = t_prev < 0
        if is_last or self.done_again + 1 >= self.repeats:
            self.done_again = 0
            return replace(after, x=merged)
        self.done_again += 1
        return replace(before, x=self._back(merged, t, t_prev), generators=after.generators)

    def _noised(self, x0: Tensor, t: int) -> Tensor:
        return self.sampler.renoise(x0, self._noise(x0), self._steps(x0, t))

    def _back(self, x: Tensor, t: int, t_prev: int) -> Tensor:
        """From t_prev to t, by q(x_t | x_t_prev)."""
        kept, added = self.sampler.transition(self._steps(x, t), self._steps(x, t_prev))
        return kept.sqrt().to(x) * x + added.sqrt().to(x) * self._noise(x)

    def _noise(self, x: Tensor) -> Tensor:
        return to_device(draw_normal(len(x), x.shape[1:], self.generators), x.device).to(x)

    def _steps(self, x: Tensor, t: int) -> Tensor:
        return numbers_on([t] * len(x), x.device, torch.long)


# --- Between two images ---


def slerp(a: Tensor, b: Tensor, share: float) -> Tensor:
    """From noise a (share 0) to noise b (share 1) along a great circle, so that what lies between
    is as noisy (Shoemake 1985). Both (C,H,W).
    """
    cosine = (a * b).sum() / (a.norm() * b.norm())
    angle = math.acos(max(-1.0, min(1.0, float(cosine))))
    if angle < SMALLEST_ANGLE:
        return (1 - share) * a + share * b
    parts = (math.sin((1 - share) * angle), math.sin(share * angle))
    return (parts[0] * a + parts[1] * b) / math.sin(angle)
