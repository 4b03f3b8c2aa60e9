"""What an upscaler's run measures and draws: held-out images, beside bicubic interpolation."""

from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from model.codecs import PixelCodec
from model.modules.resample import bicubic, nearest
from model.randomness import mix
from utils.data.pairs import PairSet
from utils.data.split import Split
from utils.devices import Precision
from utils.evaluation.restoration import Convention
from utils.ranks import Ranks
from utils.training.evaluation import EvaluationPlan
from utils.training.restoration import (
    Originals,
    RestorationPreviews,
    RestorationScore,
    chosen_places,
)
from utils.training.upscaling_task import degraded
from utils.upscaling.upscaler import Upscaler


def enlarged(precision: Precision, network: nn.Module, small: Tensor) -> Tensor:
    """(B,C,h,w) uint8 -> (B,C,sh,sw) uint8, on the CPU, by a network."""
    return Upscaler(network, precision).pixels(small)


def enlarged_bicubic(scale: int, small: Tensor) -> Tensor:
    """The same by bicubic interpolation."""
    height, width = small.shape[2:]
    codec = PixelCodec()
    return codec.decode(bicubic(codec.encode(small), (scale * height, scale * width)))


def originals(pairs: PairSet, places: np.ndarray, degrade: bool) -> Originals:
    """The pairs at these places; on demand the small images are degraded as in training, each by
    random numbers of its own, which are always the same.

    Raises ReadError where an image cannot be read.
    """
    found = Originals.of(pairs, places)
    if not degrade:
        return found
    worse = [
        degraded(small, torch.Generator().manual_seed(mix(number)))
        for small, number in zip(found.inputs, found.numbers, strict=True)
    ]
    return replace(found, inputs=torch.stack(worse))


def build_score(
    pairs: PairSet,
    split: Split,
    plan: EvaluationPlan,
    scale: int,
    convention: Convention,
    precision: Precision,
    ranks: Ranks,
) -> RestorationScore:
    """What measures an upscaler. Raises ReadError where an image cannot be read."""
    held_out, training = chosen_places(split, pairs.checksums, plan.images)
    return RestorationScore(
        partial(enlarged, precision),
        originals(pairs, held_out, convention.degraded),
        originals(pairs, training, convention.degraded),
        convention,
        ranks,
        baseline=partial(enlarged_bicubic, scale),
    )


def build_previews(
    pairs: PairSet,
    split: Split,
    count: int,
    scale: int,
    network: nn.Module,
    precision: Precision,
    passes: float,
    degrade: bool,
) -> RestorationPreviews:
    """What draws `count` held-out images, or training images where none are held out."""
    held_out, training = chosen_places(split, pairs.checksums, count)
    places = held_out if len(held_out) else training
    chosen = originals(pairs, places, degrade)
    bicubics = [enlarged_bicubic(scale, small[None]) for small in chosen.inputs]
    columns = {
        "small": nearest(chosen.inputs, scale),
        "bicubic": torch.cat(bicubics),
        "original": chosen.targets,
    }
    return RestorationPreviews(
        partial(enlarged, precision, network), columns, chosen.inputs, "enlarged", passes
    )
