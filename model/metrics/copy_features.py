"""A second opinion on copies, from feature vectors of images: the same questions as `copies` and
`copy_threshold`, with the cosine distance, 1 - cos. It ranges from 0 to 2.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from model.metrics.copies import Nearest
from model.metrics.copy_threshold import Calibration, quantile

QUERIES_AT_ONCE = 256
TRAINING_AT_ONCE = 8192


def nearest_features(queries: Tensor, training: Tensor) -> Nearest:
    """Feature vectors (B,D) and (N,D) -> the nearest training image of each query."""
    found = [_most_similar(chunk, training) for chunk in queries.split(QUERIES_AT_ONCE)]
    indices, cosines = zip(*found, strict=True)
    return Nearest(torch.cat(indices), (1 - torch.cat(cosines)).clamp(min=0))


def feature_threshold(training: Tensor, calibration: Calibration) -> float | None:
    """The 1% quantile of the distance (training features (N,D)) to the nearest image of another
    group of near copies, over the sample of a calibration on pixels, whose groups these are.

    None where there is only one group.
    """
    members = calibration.groups.members()
    distances: list[float] = []
    for places in torch.tensor(calibration.sample).split(QUERIES_AT_ONCE):
        own = [
            (row, member)
            for row, place in enumerate(places.tolist())
            for member in members.get(calibration.groups.of(place), [place])
        ]
        _, cosines = _most_similar(training[places], training, own)
        distances += (1 - cosines[cosines > -torch.inf]).tolist()
    return quantile(distances) if distances else None


def _most_similar(
    queries: Tensor, training: Tensor, left_out: Sequence[tuple[int, int]] = ()
) -> tuple[Tensor, Tensor]:
    """Of each of the queries (B,D), the place of the training features (N,D) with the largest
    cosine, the first one of equals, and that cosine; minus infinity where all are `left_out`, pairs
    of a query and a place. Training features are converted in parts, so that they are there once.
    """
    directions = F.normalize(queries.double(), dim=1)
    best = torch.full((len(queries),), -torch.inf, dtype=torch.float64)
    places = torch.zeros(len(queries), dtype=torch.long)
    pairs = torch.tensor(left_out, dtype=torch.long).reshape(-1, 2)
    for begin in range(0, len(training), TRAINING_AT_ONCE):
        part = F.normalize(training[begin : begin + TRAINING_AT_ONCE].double(), dim=1)
        cosines = directions @ part.T
        rows, columns = pairs[(pairs[:, 1] >= begin) & (pairs[:, 1] < begin + len(part))].T
        cosines[rows, columns - begin] = -torch.inf
        highest, index = cosines.max(1)
        is_better = highest > best
        best = torch.where(is_better, highest, best)
        places = torch.where(is_better, begin + index, places)
    return places, best
