"""What a diffusion on latents reads in its steps, and what its plan says of that."""

import time
from datetime import timedelta
from functools import partial

import numpy as np
import torch

from model.codecs import LatentCodec, frozen_autoencoder, images_per_call
from model.condition import LatentLabelCondition, LatentPictureCondition
from utils.data import ImageSet, TrainingSet
from utils.data.conditions import ConditionedSet
from utils.data.latents import (
    ConditionedLatents,
    LatentSet,
    are_cached,
    encoded_in_ram,
    load_latents,
    shape_of,
)
from utils.free_memory import give_back_memory
from utils.ranks import Ranks
from utils.runs.autoencoders import StoredAutoencoder
from utils.training.latent_statistics import MOST_MEASURED

MOST_TIMED = 32  # images that are encoded to find out how long it takes


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
        ranks.wait_for_all()  # other machines may have a cache
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


def seconds_of_encoding(
    dataset: ImageSet,
    stored: StoredAutoencoder,
    flip: bool,
    cache: str,
    device: torch.device,
    ranks: Ranks,
    paired: ConditionedSet | None = None,
) -> float:
    """About how long it takes until all latents are there, and the numbers to normalise them with:
    measured on some images, by this process's clock. 0 where they lie in the cache, or are encoded
    at each use; and where the autoencoder does not take the images, which is refused later.
    """
    try:
        network = frozen_autoencoder(stored.network, stored.weights)
        channels = stored.network["latent_channels"]
        codec = LatentCodec(network, [0.0] * channels, [1.0] * channels).to(device)
        steering = _encoded_conditions(paired)
        sets = [dataset] if steering is None else [dataset, steering]
        to_encode = sum(len(each) for each in sets if _is_missing(each, codec, flip, cache))
        if stored.latents_mean is None:
            to_encode += min(MOST_MEASURED, len(dataset)) // ranks.world_size
    except ValueError:
        return 0.0
    if to_encode == 0:
        return 0.0
    some = first_batch(dataset, min(MOST_TIMED, images_per_call(*dataset.image_size)))
    encode_in_ram = partial(encoded_in_ram, some, codec, shape_of(some, codec, flip), quiet=True)
    encode_in_ram()  # the first call of a network takes longer
    start = time.perf_counter()
    encode_in_ram()
    seconds = time.perf_counter() - start
    give_back_memory()  # what it took is free for the run, which asks how much there is
    return seconds / len(some) * to_encode


def _is_missing(images: ImageSet, codec: LatentCodec, flip: bool, cache: str) -> bool:
    """Whether their latents are to be encoded before the first step."""
    if cache == "none":
        return False
    return cache == "ram" or not are_cached(images, codec, flip)


def _encoded_conditions(paired: ConditionedSet | None) -> ImageSet | None:
    """The conditions that are encoded as images are; None where there are none, or label maps."""
    if paired is None or not isinstance(paired.condition, LatentPictureCondition):
        return None
    return paired.conditions


def planned_inputs(
    dataset: ImageSet,
    codec: LatentCodec,
    flip: bool,
    cache: str,
    batch_size: int,
    seconds: float,
    paired: ConditionedSet | None = None,
) -> tuple[TrainingSet, list[str]]:
    """The same for a plan, of a batch only: enough to measure a step. `seconds`: what encoding all
    takes, about. Nothing is written.
    """
    line = _line(dataset, codec, flip)
    if cache == "none":
        return paired or dataset, [f"{line}, encoded at each use"]
    some = first_batch(dataset, batch_size)
    latents = load_latents(some, codec, flip, "ram", quiet=True)
    inputs: TrainingSet = latents
    if paired is not None:
        few = paired.subset(np.arange(len(some)))
        inputs = _steered(latents, few, codec, flip, "ram", quiet=True)
    how = f"to be encoded in about {_rounded(seconds)}"
    if cache != "ram" and are_cached(dataset, codec, flip):
        how = "found in the cache"
    return inputs, [f"{line}, {how}"]


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
