"""A second opinion on copies, from feature vectors of images: the same questions as `copies` and
`copy_threshold`, with the cosine distance, 1 - cos. It ranges from 0 to 2.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from model.metrics.copies import Nearest
from model.metrics.copy_threshold import Calibration, quantile

QUERIES_AT_ONCE = 256


def nearest_features(queries: Tensor, training: Tensor) -> Nearest:
    """Feature vectors (B,D) and (N,D) -> the nearest training image of each query."""
    directions = F.normalize(training.double(), dim=1)
    indices = []
    distances = []
    for chunk in F.normalize(queries.double(), dim=1).split(QUERIES_AT_ONCE):
        cosine, index = (chunk @ directions.T).max(1)
        indices.append(index)
        distances.append((1 - cosine).clamp(min=0))
    return Nearest(torch.cat(indices), torch.cat(distances))


def feature_threshold(training: Tensor, calibration: Calibration) -> float | None:
    """The 1% quantile of the distance (training features (N,D)) to the nearest image of another
    group of near copies, over the sample of a calibration on pixels, whose groups these are.

    None where there is only one group.
    """
    directions = F.normalize(training.double(), dim=1)
    members = calibration.groups.members()
    distances = []
    for place in calibration.sample:
        cosine = directions @ directions[place]
        own = members.get(calibration.groups.of(place), [place])
        cosine[own] = -torch.inf
        distance = 1 - cosine.max().item()
        if distance < torch.inf:
            distances.append(distance)
    return quantile(distances) if distances else None
