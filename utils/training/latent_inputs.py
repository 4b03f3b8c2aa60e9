"""What a diffusion on latents reads in its steps, and what its plan says of that."""

import time
from datetime import timedelta

import numpy as np

from model.codecs import LatentCodec
from model.condition import LatentLabelCondition, LatentPictureCondition
from utils.data import ImageSet, TrainingSet
from utils.data.conditions import ConditionedSet
from utils.data.latents import ConditionedLatents, LatentSet, load_latents
from utils.ranks import Ranks


def first_batch(dataset: ImageSet, size: int) -> ImageSet:
    """As many images as a plan needs, to measure with."""
    return dataset.subset(np.arange(min(size, len(dataset))))


def latent_inputs(
    dataset: ImageSet,
    codec: LatentCodec,
    flip: bool,
    cache: str,
    ranks: Ranks,
    paired: ConditionedSet | None = None,
) -> tuple[TrainingSet, list[str]]:
    """The latents, encoded once or found in the cache, or with `cache` "none" the images; and lines
    of the plan. With `paired`, the same images with what steers them. Returns when every process
    has them.
    """
    line = _line(dataset, codec, flip)
    if cache == "none":
        return paired or dataset, [f"{line}, encoded at each use"]
    start = time.perf_counter()
    quiet = not ranks.is_main
    latents = load_latents(dataset, codec, flip, cache, quiet)
    inputs = latents if paired is None else _steered(latents, paired, codec, flip, cache, quiet)
    ranks.wait_for_all()
    how = f"encoded once, in {_rounded(time.perf_counter() - start)}"
    if latents.is_cached:
        how = "found in the cache"
    return inputs, [f"{line}, {how}", *(f"note        {text}" for text in latents.remarks)]


def planned_inputs(
    dataset: ImageSet,
    codec: LatentCodec,
    flip: bool,
    cache: str,
    batch_size: int,
    paired: ConditionedSet | None = None,
) -> tuple[TrainingSet, list[str]]:
    """The same for a plan, of a batch only: enough to measure a step, and how long encoding takes.
    Nothing is written.
    """
    line = _line(dataset, codec, flip)
    if cache == "none":
        return paired or dataset, [f"{line}, encoded at each use"]
    some = first_batch(dataset, batch_size)
    start = time.perf_counter()
    latents = load_latents(some, codec, flip, "ram", quiet=True)
    inputs: TrainingSet = latents
    if paired is not None:
        few = paired.subset(np.arange(len(some)))
        inputs = _steered(latents, few, codec, flip, "ram", quiet=True)
    seconds = (time.perf_counter() - start) * len(dataset) / len(some)
    return inputs, [f"{line}, to be encoded in about {_rounded(seconds)}, if not in the cache"]


def _steered(
    latents: LatentSet,
    paired: ConditionedSet,
    codec: LatentCodec,
    flip: bool,
    cache: str,
    quiet: bool,
) -> ConditionedLatents:
    condition = paired.condition
    if isinstance(condition, LatentLabelCondition):
        return ConditionedLatents(latents, paired.conditions, condition)
    assert isinstance(condition, LatentPictureCondition)
    pictures = load_latents(paired.conditions, codec, flip, cache, quiet)
    return ConditionedLatents(latents, pictures, condition)


def _line(dataset: ImageSet, codec: LatentCodec, flip: bool) -> str:
    channels, height, width = codec.shape(dataset.image_size, dataset.channels)
    views = "image and its mirror" if flip else "image"
    return f"latents     {channels} x {height},{width} of each {views}"


def _rounded(seconds: float) -> timedelta:
    return timedelta(seconds=round(seconds))
