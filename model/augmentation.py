"""Geometric augmentation that does not leak into samples: Karras et al. 2206.00364, appendix F.2.

An image is mirrored, stretched, turned, scaled and moved at random, in this order, and the network
is told how, by nine numbers that describe the change completely. All nine are 0 for an image as it
is. That is what sampling asks for, so that the samples are upright although the network saw turned
ones.

    0, 1   mirrored left to right, top to bottom: 0 or 1
    2      scale: log2 of it in units of 0.2
    3, 4   rotation by an angle: its cosine - 1, and its sine
    5, 6   stretch along a direction, and squeeze across it: log2 in units of 0.2, as a vector
    7, 8   shift to the right and down, in eighths of the width and of the height
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from model.autocast import without_autocast
from model.randomness import Generators, draw_normal, draw_uniforms

NUMBERS = 9
MIRROR_CHANCE = 0.5  # of an image: this one is always on, since it is never out of place
SCALE = 0.2  # standard deviation of log2 of the scale, and of the stretch
SHIFT = 1 / 8  # standard deviation, as a share of the side

# The places of the numbers above.
MIRRORED, UPSIDE_DOWN, SCALED = 0, 1, 2
COSINE, SINE = 3, 4
STRETCH_X, STRETCH_Y = 5, 6
SHIFT_X, SHIFT_Y = 7, 8


def draw_augmentations(n: int, probability: float, generator: Generators) -> Tensor:
    """The numbers of n images, (n, 9) float32, on the CPU.

    Each change has this probability, but for mirroring: half of the images are mirrored left to
    right, and half as many as the probability says top to bottom.
    Each image draws the same count of random numbers, whatever happens to it.
    """
    chance = draw_uniforms(n, 7, generator)
    angles = draw_uniforms(n, 2, generator) * (2 * math.pi)
    amounts = draw_normal(n, (4,), generator)
    upright = chance[:, 6]
    happens = (chance[:, 1:6] < probability).float()
    upside_down, scaled, turned, stretched, shifted = happens.unbind(1)
    angle, direction = angles.unbind(1)
    scale, stretch, right, down = amounts.unbind(1)
    return torch.stack(
        [
            (chance[:, 0] < MIRROR_CHANCE).float(),
            upside_down * (upright < 1 / 2).float(),
            scaled * scale,
            turned * (angle.cos() - 1),
            turned * angle.sin(),
            stretched * stretch * direction.cos(),
            stretched * stretch * direction.sin(),
            shifted * right,
            shifted * down,
        ],
        dim=1,
    )


def augment(images: Tensor, numbers: Tensor) -> Tensor:
    """Images (B,C,H,W) in [-1, 1], changed as the numbers (B,9) say; the same shape and range.

    What comes in at the edges is the mirror image of what is there. Where all numbers are 0 an
    image stays as it is to the bit, and mirroring moves pixels without changing them.
    """
    moved = _where(numbers[:, MIRRORED] != 0, images.flip(3), images)
    moved = _where(numbers[:, UPSIDE_DOWN] != 0, moved.flip(2), moved)
    warped = _warped(moved, numbers)
    return _where((numbers[:, SCALED:] != 0).any(1), warped, moved)


def _where(mask: Tensor, images: Tensor, otherwise: Tensor) -> Tensor:
    return torch.where(mask.view(-1, 1, 1, 1), images, otherwise)


def _warped(images: Tensor, numbers: Tensor) -> Tensor:
    """All changes but mirroring, in one bicubic step."""
    if images.device.type == "mps":  # for which earlier versions of torch have no bicubic sampling
        return _warped(images.cpu(), numbers.cpu()).to(images.device)
    height, width = images.shape[-2:]
    with without_autocast(images.device):  # places in 16 bits would be off by pixels
        maps = _where_from(numbers.to(images), width / height)
        grid = F.affine_grid(maps, list(images.shape), align_corners=False)
        warped = F.grid_sample(
            images, grid, mode="bicubic", padding_mode="reflection", align_corners=False
        )
    return warped.clamp(-1, 1)


def _where_from(numbers: Tensor, aspect: float) -> Tensor:
    """(B,9) -> the affine maps (B,2,3) from a place in the new image to one in the old, both in
    halves of the sides from the centre; `aspect` is width / height.
    """
    turn = _matrix(
        1 + numbers[:, COSINE], -numbers[:, SINE], numbers[:, SINE], 1 + numbers[:, COSINE]
    )
    scale = torch.exp2(-SCALE * numbers[:, SCALED]).view(-1, 1, 1)
    # In units of half the height, so that a turned circle stays one.
    inverse = _unstretch(numbers) @ turn.transpose(1, 2) * scale
    shift = 2 * SHIFT * numbers[:, SHIFT_X:]  # (B,2), in halves of the sides
    inverse = _matrix(
        inverse[:, 0, 0], inverse[:, 0, 1] / aspect, inverse[:, 1, 0] * aspect, inverse[:, 1, 1]
    )
    moved_back = -inverse @ shift.unsqueeze(2)
    return torch.cat([inverse, moved_back], dim=2)


def _unstretch(numbers: Tensor) -> Tensor:
    """The inverse of the stretch, (B,2,2): R diag(2^-0.2r, 2^0.2r) R^T, without its angle."""
    x, y = numbers[:, STRETCH_X], numbers[:, STRETCH_Y]
    amount = torch.hypot(x, y)
    along, across = torch.exp2(-SCALE * amount), torch.exp2(SCALE * amount)
    safe = amount.clamp(min=1e-12)
    cosine, sine = x / safe, y / safe
    mean, half = (along + across) / 2, (along - across) / 2
    double_cosine = cosine**2 - sine**2
    double_sine = 2 * sine * cosine
    return _matrix(
        mean + half * double_cosine,
        half * double_sine,
        half * double_sine,
        mean - half * double_cosine,
    )


def _matrix(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """(B,) each -> (B,2,2)."""
    return torch.stack([torch.stack([a, b], dim=1), torch.stack([c, d], dim=1)], dim=1)
