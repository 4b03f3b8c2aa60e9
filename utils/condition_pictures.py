"""Conditions as people see them: beside the images that they steer."""

import colorsys
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from model.codecs import Codec, JointCodec
from model.condition import Condition, LabelCondition
from utils.pixel_planes import as_colour

GOLDEN_TURN = 0.618034  # of the colour wheel: neighbouring labels get colours far from each other


def shown_conditions(condition: Condition, pixels: Tensor) -> Tensor:
    """(B,P,H,W) uint8 -> RGB (B,3,H,W) uint8: pictures as they are, each label in a colour of its
    own, the first one black.
    """
    if not isinstance(condition, LabelCondition):
        return as_colour(pixels)
    table = torch.zeros(256, 3, dtype=torch.uint8)
    for place, value in enumerate(condition.values):
        table[value] = torch.tensor(label_colour(place), dtype=torch.uint8)
    return table[pixels[:, 0].long()].permute(0, 3, 1, 2)


def label_colour(place: int) -> tuple[int, int, int]:
    """The colour of label number `place`."""
    if place == 0:
        return (0, 0, 0)
    red, green, blue = colorsys.hsv_to_rgb((place - 1) * GOLDEN_TURN % 1, 0.75, 0.95)
    return (round(255 * red), round(255 * green), round(255 * blue))


def behind_conditions(condition: Condition | None, conditions: Tensor, images: Tensor) -> Tensor:
    """A condition, its image, the next condition: (2B,3,H,W) uint8, at the size of the images."""
    assert condition is not None
    shown = shown_conditions(condition, conditions)
    if shown.shape[-2:] != images.shape[-2:]:
        shown = F.interpolate(shown, images.shape[-2:], mode="nearest")
    pairs = torch.stack([shown, as_colour(images)], dim=1)
    return pairs.flatten(0, 1)


def in_turn(conditions: Tensor, places: Sequence[int]) -> Tensor:
    """Those of the images at these places, where image i has condition i, and after the last one
    the first again.
    """
    return conditions[[place % len(conditions) for place in places]]


def label_map_of(codec: Codec) -> LabelCondition:
    """The label maps that a codec makes together with images, so that they are shown alike."""
    assert isinstance(codec, JointCodec)
    return LabelCondition(codec.values)


def mask_picture(codec: Codec, mask: Tensor) -> Image.Image:
    """A label map (1,H,W) uint8 as a palette picture: its numbers are the labels, in colours."""
    picture = Image.fromarray(mask[0].numpy()).convert("P")
    picture.putdata(mask.flatten().tolist())
    palette = [0] * (3 * 256)
    for place, value in enumerate(label_map_of(codec).values):
        palette[3 * value : 3 * value + 3] = label_colour(place)
    picture.putpalette(palette)
    return picture
