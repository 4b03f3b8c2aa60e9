"""The same images by several generators, and their distance to real ones."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from model.metrics import kernel_distance
from utils.errors import UserError
from utils.evaluation.extract import Reader, feature_set
from utils.evaluation.feature_cache import FeatureCache
from utils.evaluation.features import FeatureNetwork
from utils.evaluation.image_folder import ImageFolder
from utils.generation import ImageGenerator, batch_advice
from utils.image_facts import FEWEST_FOR_KID, mode_of, shown_mode
from utils.pixel_planes import as_colour

MOST_REAL = 5000  # images that generated ones are compared with


@dataclass(frozen=True)
class Questions:
    """What all generators are asked for: image i has the seed first_seed + i."""

    count: int
    first_seed: int
    labels: list[int] | None
    batch_size: int
    shown: int  # of the first images, in a picture

    def batches(self) -> Iterable[tuple[list[int], list[int] | None]]:
        """The seeds and labels of each batch."""
        for start in range(0, self.count, self.batch_size):
            places = range(start, min(start + self.batch_size, self.count))
            labels = None if self.labels is None else [self.labels[place] for place in places]
            yield [self.first_seed + place for place in places], labels


@dataclass(frozen=True)
class Answer:
    """What a generator's images are like."""

    seconds: float  # for all images
    kid: float
    kid_se: float
    shown: Tensor  # (N,C,H,W) uint8: the first images


def answer(
    generator: ImageGenerator,
    questions: Questions,
    features: FeatureNetwork,
    real: Tensor,  # (N,D): features of real images
    after_call: Callable[[], None] = lambda: None,
) -> Answer:
    """Makes all images, and compares them with real ones."""
    seconds = 0.0
    shown: list[Tensor] = []
    found: list[Tensor] = []
    start = time.perf_counter()
    for pixels in batches_of(generator, questions, after_call):
        seconds += time.perf_counter() - start
        missing = questions.shown - sum(map(len, shown))
        shown.append(pixels[:missing].clone())
        found.append(features_of(pixels, features))
        start = time.perf_counter()
    kid, standard_error = kernel_distance(real, torch.cat(found))
    return Answer(seconds, kid, standard_error, torch.cat(shown))


def batches_of(
    generator: ImageGenerator, questions: Questions, after_call: Callable[[], None] = lambda: None
) -> Iterator[Tensor]:
    """The images that are asked for, batch by batch, (B,C,H,W) uint8."""
    for seeds, labels in questions.batches():
        with batch_advice(questions.batch_size):
            pixels = generator.images(seeds, labels, after_call)
        yield pixels


def features_of(pixels: Tensor, features: FeatureNetwork) -> Tensor:
    """(B,C,H,W) uint8 -> (B,D) float32, on the CPU."""
    return features(as_colour(pixels).to(features.device)).cpu()


def features_of_real(
    folder: ImageFolder,
    features: FeatureNetwork,
    image_size: tuple[int, int],
    channels: int,
    batch_size: int,
) -> Tensor:
    """(N,D): of at most 5,000 real images, read as for training. Raises UserError for too few."""
    reader = Reader(image_size, shown_mode(mode_of(channels)))
    places = folder.order()[:MOST_REAL]
    found = feature_set(folder, places, features, reader, batch_size, FeatureCache()).features
    if len(found) < FEWEST_FOR_KID:
        raise UserError(
            f"{folder.role} {folder.root} holds {len(found)} readable images; a KID takes at least "
            f"{FEWEST_FOR_KID}"
        )
    return found
