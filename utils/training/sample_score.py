"""How near generated images are to the training images, measured while a run trains: KID."""

import numpy as np
import torch
from torch import Tensor, nn

from model.guidance import Label
from model.metrics import kernel_distance
from utils.console import Progress
from utils.data import ImageSet
from utils.data.split import lowest_numbers
from utils.evaluation.features import FeatureNetwork
from utils.evaluation.from_weights import in_proportion
from utils.generation import ImageGenerator
from utils.pixel_planes import as_colour
from utils.ranks import Ranks
from utils.training.held_out import SampleOfImages

MOST_REAL = 5000  # training images that generated ones are compared with


def labels_as_in(training: ImageSet, count: int) -> list[Label] | None:
    """Labels of `count` images as training images have them: in proportion, or with labels.csv
    those of some images; None where none are learned.
    """
    if not training.is_labelled:
        return None
    if training.conditions is None:
        return [*in_proportion(training.label_counts().tolist(), count)]
    places = np.resize(lowest_numbers(training.checksums, count), count)
    return [tuple(row) for row in training.conditions.rows[places].tolist()]


class SampleScore:
    """The KID of `count` images of the seeds 0 to count - 1, always the same ones; their classes
    are those of the training images, in proportion. The processes of a run share the work.
    """

    def __init__(
        self,
        generator: ImageGenerator,
        features: FeatureNetwork,
        training: ImageSet,
        count: int,
        batch_size: int,
        ranks: Ranks,
    ):
        """Raises ReadError where a training image cannot be read."""
        self.generator = generator
        self.features = features
        self.count = count
        self.batch_size = batch_size
        self.ranks = ranks
        self.labels = labels_as_in(training, count)
        self._real = self._features_of_training(training)

    def __call__(self, network: nn.Module) -> dict[str, float]:
        """{"kid": value, "kid_se": standard error} on the main process, {} on the others."""
        self.generator.network = network
        mine = range(self.ranks.rank, self.count, self.ranks.world_size)
        parts = []
        batches = range(0, len(mine), self.batch_size)
        with self._progress("generating for KID", len(batches) * self.generator.calls) as progress:
            for start in batches:
                seeds = mine[start : start + self.batch_size]
                labels = None if self.labels is None else [self.labels[seed] for seed in seeds]
                pixels = self.generator.images(seeds, labels, after_call=progress.update)
                parts.append(self._features(pixels))
        generated = self._gathered(torch.cat(parts) if parts else self._nothing())
        if not self.ranks.is_main:
            return {}
        value, standard_error = kernel_distance(self._real, generated)
        return {"kid": value, "kid_se": standard_error}

    def _features_of_training(self, training: ImageSet) -> Tensor:
        places = lowest_numbers(training.checksums, MOST_REAL)
        mine = places[self.ranks.rank :: self.ranks.world_size]
        parts = [self._nothing()]
        with self._progress("features of training images", len(mine)) as progress:
            for start in range(0, len(mine), self.batch_size):
                some = SampleOfImages.of(training, mine[start : start + self.batch_size])
                parts.append(self._features(some.pixels))
                progress.update(len(some.pixels))
        return self._gathered(torch.cat(parts))

    def _features(self, pixels: Tensor) -> Tensor:
        """(B,C,H,W) uint8 -> (B,D) float32, on the CPU."""
        return self.features(as_colour(pixels).to(self.features.device)).cpu()

    def _nothing(self) -> Tensor:
        return torch.empty(0, self.features.dimension)

    def _gathered(self, mine: Tensor) -> Tensor:
        """All processes' features, in the order of the images, of which each has every n-th."""
        parts = self.ranks.gather(mine)
        features = torch.empty(sum(map(len, parts)), self.features.dimension)
        for rank, part in enumerate(parts):
            features[rank :: len(parts)] = part
        return features

    def _progress(self, title: str, total: int) -> Progress:
        return Progress(total, title=title, leave=False, shown=self.ranks.is_main)
