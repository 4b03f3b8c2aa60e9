"""From which distance on an image counts as a copy of a training image.

This is calibrated on the training images alone; no held-out images are needed. The threshold is the
1% quantile of the distance from a training image to its nearest in another group of near copies.
So it flags about 1% of new images, and as many more as the training set has near copies itself:
where 3% of its images have a near copy in the set, so have about 3% of new images of that kind.

Of fewer than 200 images the quantile is about the smallest of their distances, and more of the new
ones are flagged: with a new image there are N + 1, of which two have the smallest distance, each
other's; so it is one of these with a probability of about 2 / (N + 1).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from model.metrics.copies import CANDIDATES, NEAR_COPY, CopySearch, Nearest

FALSE_ALARMS = 0.01  # the share of new images that are flagged, where there are enough to measure
SAMPLE = 2000  # training images that the threshold is calibrated on
MOST_RELATIVES = 2000  # near copies beyond the sample whose own near copies are looked for
Z_95 = 1.959963984540054  # the normal distribution's quantile at 97.5%


class Groups:
    """Images in groups: what has been joined, directly or through others, is one group."""

    def __init__(self) -> None:
        self._parents: dict[int, int] = {}

    def of(self, place: int) -> int:
        """One image of the group, the same for all of its images."""
        root = place
        while root in self._parents:
            root = self._parents[root]
        while place != root:  # a shorter way for the next time
            parent = self._parents[place]
            self._parents[place] = root
            place = parent
        return root

    def members(self) -> dict[int, list[int]]:
        """All images of each group of several, by what `of` says of them."""
        groups: dict[int, list[int]] = {}
        for place in list(self._parents):
            root = self.of(place)
            groups.setdefault(root, [root]).append(place)
        return groups

    def join(self, one: int, other: int) -> None:
        first, second = sorted((self.of(one), self.of(other)))
        if first != second:
            self._parents[second] = first


@dataclass(frozen=True)
class Calibration:
    """What the training images say about distances between images that are no copies."""

    threshold: float  # an image at this distance, or nearer, counts as a copy
    sample: list[int] = field(repr=False)  # the training images that this was measured on
    with_near_copy: int  # how many of them have a near copy in the training set
    measured: int  # how many have an image of another group, whose distances the threshold is of
    groups: Groups = field(repr=False)  # of near copies, around the sample

    @property
    def false_alarms(self) -> float:
        """The share of new images that is flagged, as far as that can be known."""
        if self.measured == 0:
            return FALSE_ALARMS
        return max(FALSE_ALARMS, 2 / (self.measured + 1))


def calibrate(search: CopySearch, after_image: Callable[[], None] = lambda: None) -> Calibration:
    """The threshold of a search, from up to `SAMPLE` of its training images, evenly spaced.

    It is at least `NEAR_COPY`, and equal to it where all images are near copies of each other.
    `after_image` is called after each image of the sample.
    """
    count = min(SAMPLE, len(search))
    sample = [number * len(search) // count for number in range(count)]
    found = []
    for neighbours in search.neighbours(sample):
        found.append(neighbours)
        after_image()
    groups = _group(search, sample, found)
    distances = []
    for place, neighbours in zip(sample, found, strict=True):
        distance = _distance_to_another_group(search, place, neighbours, groups)
        if distance is not None:
            distances.append(distance)
    threshold = quantile(distances) if distances else NEAR_COPY
    with_near_copy = sum(len(_near_copies(neighbours)) > 0 for neighbours in found)
    return Calibration(threshold, sample, with_near_copy, len(distances), groups)


def _group(search: CopySearch, sample: list[int], found: list[Nearest]) -> Groups:
    """The groups of near copies around a sample and the neighbours that were found for it.

    Near copies that are not in the sample are followed as well, up to `MOST_RELATIVES`.
    """
    groups = Groups()
    known = set(sample)
    relatives: list[int] = []

    def connect(place: int, neighbours: Nearest) -> None:
        for near_copy in _near_copies(neighbours):
            groups.join(place, near_copy)
            if near_copy not in known:
                known.add(near_copy)
                relatives.append(near_copy)

    for place, neighbours in zip(sample, found, strict=True):
        connect(place, neighbours)
    followed = 0
    while some := relatives[followed:MOST_RELATIVES]:
        for place, neighbours in zip(some, search.neighbours(some), strict=True):
            connect(place, neighbours)
        followed += len(some)
    return groups


def _near_copies(neighbours: Nearest) -> list[int]:
    return neighbours.index[neighbours.distance <= NEAR_COPY].tolist()


def _distance_to_another_group(
    search: CopySearch, place: int, neighbours: Nearest, groups: Groups
) -> float | None:
    """The smallest distance to an image of another group; None where there is no other group.

    `neighbours` are the image's; if all of them are of its group, more are looked at.
    """
    count = CANDIDATES
    own = groups.of(place)
    while True:
        pairs = zip(neighbours.index.tolist(), neighbours.distance.tolist(), strict=True)
        others = [distance for other, distance in pairs if groups.of(other) != own]
        others = [distance for distance in others if distance > NEAR_COPY]
        if others:
            return min(others)
        if count >= len(search):
            return None
        count *= 4
        neighbours = next(search.neighbours([place], count))


def quantile(distances: Sequence[float]) -> float:
    """The distance that a share of `FALSE_ALARMS` of them is below."""
    return torch.tensor(distances, dtype=torch.float64).quantile(FALSE_ALARMS).item()


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """Wilson's 95% confidence interval of a share (JASA 22, 1927). ValueError without trials."""
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(f"{successes} of {trials} is not a share")
    share = successes / trials
    spread = Z_95**2 / trials
    middle = share + spread / 2
    reach = Z_95 * math.sqrt(share * (1 - share) / trials + spread / (4 * trials))
    low = 0.0 if successes == 0 else (middle - reach) / (1 + spread)
    high = 1.0 if successes == trials else (middle + reach) / (1 + spread)
    return low, high
