"""Which generated images are copies of training images.

`model.metrics.copies` says how images are compared. `TrainingImages` answers for single batches, as
generate.py needs it; `find_copies` looks through a whole set and makes a report.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from model.metrics.copies import CopySearch, Nearest
from model.metrics.copy_features import feature_threshold, nearest_features
from model.metrics.copy_threshold import SAMPLE, Calibration, calibrate
from utils.console import Progress
from utils.data import ImageSet
from utils.data.flat import readable
from utils.devices import one_thread
from utils.errors import ReadError, UserError
from utils.evaluation.copy_report import CopyReport, FeatureColumn
from utils.image_facts import mode_of
from utils.pictures import reduced

BATCH = 256  # images that are read together, at most
LARGEST_BATCH = 2**26  # bytes of them
CLOSEST_PAIRS = 24  # of the panel
LARGEST_SHOWN = 256  # pixels of a side there
COLOURS = {"L": "grey", "RGB": "in colour"}


@dataclass(frozen=True)
class Match:
    """The nearest training image of a generated one."""

    nearest: str  # file name, relative to the training folder
    distance: float  # 0 to 1
    is_copy: bool


class TrainingImages:
    """The training images, ready to be compared with. Reading them takes a while and shows its
    progress, unless `quiet`.
    """

    def __init__(self, training: ImageSet, quiet: bool = False):
        """Raises ReadError for an image that can no longer be read."""
        self.image_set = training
        progress = Progress(
            len(training), title="training images", unit="image", shown=not quiet, leave=False
        )
        with progress, one_thread():
            self.search = CopySearch(_counted(batches_of(training), progress))

    def calibrate(self, quiet: bool = False) -> Calibration:
        """From which distance on an image counts as a copy."""
        sample = min(SAMPLE, len(self.search))
        progress = Progress(
            sample, title="measuring training images", unit="image", shown=not quiet, leave=False
        )
        with progress, one_thread():
            return calibrate(self.search, progress.update)

    def matches(self, pixels: Tensor, threshold: float) -> list[Match]:
        """(B,C,H,W) uint8 -> the nearest training image of each. Raises UserError unless the
        channels and the size are those of training.
        """
        nearest = self.nearest(pixels)
        pairs = zip(nearest.index.tolist(), nearest.distance.tolist(), strict=True)
        return [
            Match(self.name(index), distance, distance <= threshold) for index, distance in pairs
        ]

    def nearest(self, pixels: Tensor) -> Nearest:
        """(B,C,H,W) uint8 -> the nearest training images, by their places in the set. Raises
        UserError as `matches` does.
        """
        self.check(pixels)
        with one_thread():
            return self.search.nearest(pixels)

    def name(self, index: int) -> str:
        return readable(self.image_set.files[index])

    def check(self, pixels: Tensor) -> None:
        """Raise UserError where these cannot be compared with the training images."""
        shape = (self.image_set.channels, *self.image_set.image_size)
        if tuple(pixels.shape[1:]) == shape:
            return
        if pixels.shape[1] != shape[0]:
            generated = COLOURS[mode_of(pixels.shape[1])]
            raise UserError(
                f"the generated images are {generated}, but the training images in "
                f"{self.image_set.root} are {COLOURS[self.image_set.mode]}: read both in one mode"
            )
        height, width = pixels.shape[2:]
        raise UserError(
            f"the generated images are {height}x{width}, but the training images in "
            f"{self.image_set.root} were read at {shape[1]}x{shape[2]}: read both at one size"
        )


@dataclass(frozen=True)
class Features:
    """Feature vectors of all training and generated images, in the order of the images."""

    name: str  # of the network that they are from
    training: Tensor  # (N,D)
    generated: Tensor  # (M,D)


def find_copies(
    training: ImageSet,
    generated: ImageSet | Iterable[Tensor],
    names: Sequence[str] | None = None,
    features: Features | None = None,
    quiet: bool = False,
) -> CopyReport:
    """Compare generated images, a set or batches (B,C,H,W) uint8, with the training images.

    `names` are those of the generated images; by default a set's file names, or numbers. All images
    have one size and one mode. Raises UserError where they have not, or there are none; ReadError
    for one that can no longer be read.
    """
    images = TrainingImages(training, quiet)
    if isinstance(generated, ImageSet):
        names = names or [readable(file) for file in generated.files]
        batches = batches_of(generated)
    else:
        batches = iter(generated)
    first = next(batches, None)
    if first is None:
        raise UserError("there are no generated images to compare with the training images")
    images.check(first)  # before the calibration, which takes a while
    calibration = images.calibrate(quiet)

    index, distance, closest = _compare(images, first, batches, names, quiet)
    if names is None:
        names = [f"{place:05d}" for place in range(len(index))]
    if len(names) != len(index):
        raise ValueError(f"{len(names)} names for {len(index)} generated images")
    column = None
    if features is not None:
        column = _feature_column(features, images, calibration, len(index))
    return CopyReport(
        names=list(names),
        nearest=[images.name(place) for place in index.tolist()],
        distance=distance,
        copies=distance <= calibration.threshold,
        calibration=calibration,
        closest=_pairs(closest, training),
        closest_places=[pair.place for pair in closest],
        features=column,
    )


@dataclass(frozen=True)
class _Pair:
    distance: float
    place: int  # of the generated image
    index: int  # of the training image
    pixels: Tensor  # (C,H,W) uint8, generated


def _compare(
    images: TrainingImages,
    first: Tensor,
    others: Iterator[Tensor],
    names: Sequence[str] | None,
    quiet: bool,
) -> tuple[Tensor, Tensor, list[_Pair]]:
    """All batches -> index (M,), distance (M,) and the closest pairs."""
    indices: list[int] = []
    distances: list[float] = []
    closest: list[_Pair] = []
    total = None if names is None else len(names)
    batch: Tensor | None = first
    with Progress(
        total, title="looking for copies", unit="image", shown=not quiet, leave=False
    ) as progress:
        while batch is not None:
            nearest = images.nearest(batch)
            found = zip(batch, nearest.index.tolist(), nearest.distance.tolist(), strict=True)
            for pixels, index, distance in found:
                closest.append(_Pair(distance, len(indices), index, pixels))
                indices.append(index)
                distances.append(distance)
            closest = sorted(closest, key=lambda pair: (pair.distance, pair.place))[:CLOSEST_PAIRS]
            closest = [replace(pair, pixels=_shown(pair.pixels)) for pair in closest]
            progress.update(len(batch))
            batch = next(others, None)
    return torch.tensor(indices), torch.tensor(distances, dtype=torch.float64), closest


def _pairs(closest: list[_Pair], training: ImageSet) -> Tensor:
    """The pictures of pairs, generated and nearest in turn, (2K,C,H,W)."""
    pictures = []
    for pair in closest:
        pictures += [pair.pixels, _shown(_pixels(training, pair.index))]
    return torch.stack(pictures)


def _shown(pixels: Tensor) -> Tensor:
    """A copy for the panel, no view of a batch, which would stay; smaller where it is large."""
    return reduced(pixels, math.ceil(max(pixels.shape[-2:]) / LARGEST_SHOWN))


def _feature_column(
    features: Features, images: TrainingImages, calibration: Calibration, count: int
) -> FeatureColumn | None:
    """None where the features cannot be calibrated on the training images."""
    sizes = (len(features.training), len(features.generated))
    if sizes != (len(images.search), count):
        raise ValueError(
            f"features of {sizes[0]} training and {sizes[1]} generated images, but there are "
            f"{len(images.search)} and {count}"
        )
    threshold = feature_threshold(features.training, calibration)
    if threshold is None:
        return None
    nearest = nearest_features(features.generated, features.training)
    return FeatureColumn(
        name=features.name,
        nearest=[images.name(place) for place in nearest.index.tolist()],
        distance=nearest.distance,
        copies=nearest.distance <= threshold,
        threshold=threshold,
    )


# --- Images of a set ---


def batches_of(image_set: ImageSet) -> Iterator[Tensor]:
    """The images in order, (B,C,H,W) uint8. Raises ReadError for one that cannot be read."""
    at_once = read_at_once(image_set.channels, image_set.image_size)
    for start in range(0, len(image_set), at_once):
        places = range(start, min(start + at_once, len(image_set)))
        yield torch.stack([_pixels(image_set, place) for place in places])


def read_at_once(channels: int, size: tuple[int, int]) -> int:
    """How many images of that size are read together."""
    return max(1, min(BATCH, LARGEST_BATCH // (channels * size[0] * size[1])))


def _pixels(image_set: ImageSet, place: int) -> Tensor:
    item = image_set[place]
    if isinstance(item, ReadError):
        raise item
    return item[0]


def _counted(batches: Iterable[Tensor], progress: Progress) -> Iterator[Tensor]:
    for batch in batches:
        yield batch
        progress.update(len(batch))
