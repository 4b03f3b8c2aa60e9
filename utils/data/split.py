"""Which images are held out of training, to measure on.

An image is drawn by a digest of its pixels and of nothing else: adding pictures to a folder, or
sorting it anew, moves none of the others from one side to the other. What was drawn and has a near
copy among the images that were not (another skin tone, the mirrored arrow, a file that is there
twice) is used for neither: in training it would tell the network what it is measured on, and held
out it would be measured as if it were new.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from utils.errors import UserError

SMALLEST_SET = 200  # images, from which on some are held out without being asked for
USUAL_SHARE = 0.05
FEWEST, MOST = 20, 256  # images that are held out without being asked for
LARGEST_SHARE = 0.5
LARGER = 1.25  # what the share is multiplied by where it leaves too few
FEWEST_ASKED_FOR = 8  # fewer say nothing

# Places of images -> for each of them, the places of all images that are near copies of it.
FindNearCopies = Callable[[np.ndarray], Sequence[np.ndarray]]


@dataclass(frozen=True)
class Split:
    """Places in the whole set; those in neither list are trained on."""

    share: float  # of the images that is drawn; 0: none is held out
    held_out: np.ndarray  # (h,) int64, in an order that adding pictures does not change
    unused: np.ndarray  # (u,) int64: drawn, but near copies of images that are not

    def training(self, images: int) -> np.ndarray:
        """The places that are trained on, ascending."""
        is_free = np.ones(images, bool)
        is_free[self.held_out] = False
        is_free[self.unused] = False
        return np.flatnonzero(is_free)

    def to_record(self, checksums: np.ndarray, fingerprint: str) -> dict:
        """What a checkpoint keeps: images by their checksums, and the whole set's fingerprint."""
        return {
            "share": self.share,
            "of": fingerprint,
            "images": checksums[self.held_out].tolist(),
            "unused": checksums[self.unused].tolist(),
        }


NOTHING_HELD_OUT = Split(0.0, np.empty(0, np.int64), np.empty(0, np.int64))


def split_set(
    checksums: np.ndarray,
    labels: np.ndarray,
    share: float | None,
    find_near_copies: FindNearCopies,
) -> Split:
    """Draw the images that are held out.

    `checksums` (N,) are the images' own, `labels` (N,) their classes. `share` None decides: 5% of
    200 images or more, halved or raised until 20 to 256 remain, else none. Raises UserError where
    a share that was asked for leaves fewer than 8.
    """
    if share == 0 or (share is None and len(checksums) < SMALLEST_SET):
        return NOTHING_HELD_OUT
    numbers = scattered(checksums)
    if share is not None:
        split = _split_at(numbers, labels, share, find_near_copies)
        if len(split.held_out) < FEWEST_ASKED_FOR:
            raise UserError(
                f"--val_fraction {share:g} of {len(checksums):,} images holds out "
                f"{len(split.held_out)}, which says nothing: {FEWEST_ASKED_FOR} are the fewest; "
                "raise it, or pass --val_fraction 0"
            )
        return split
    share = USUAL_SHARE
    while (numbers < share).sum() > MOST:
        share /= 2
    split = _split_at(numbers, labels, share, find_near_copies)
    while len(split.held_out) < FEWEST and share * LARGER <= LARGEST_SHARE:
        share *= LARGER
        split = _split_at(numbers, labels, share, find_near_copies)
    return split if len(split.held_out) >= FEWEST_ASKED_FOR else NOTHING_HELD_OUT


def recorded_split(record: dict, checksums: np.ndarray, fingerprint: str) -> Split | None:
    """The split that a checkpoint recorded, or None where the set has changed since. To find near
    copies anew could give another one: on another machine, distances are rounded differently.
    """
    if record.get("of") != fingerprint:
        return None
    unused = np.flatnonzero(np.isin(checksums, record["unused"]))
    held_out = np.flatnonzero(np.isin(checksums, record["images"]))
    numbers = scattered(checksums[held_out])
    return Split(record["share"], held_out[np.argsort(numbers, kind="stable")], unused)


def scattered(checksums: np.ndarray) -> np.ndarray:
    """(N,) uint32 -> (N,) float64 in [0, 1): equal for equal images, and otherwise like random
    numbers (the finaliser of splitmix64).
    """
    state = checksums.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    state = state ^ (state >> np.uint64(31))
    return (state >> np.uint64(11)) / 2.0**53


def _split_at(
    numbers: np.ndarray, labels: np.ndarray, share: float, find_near_copies: FindNearCopies
) -> Split:
    is_drawn = numbers < share
    # A class all of whose images were drawn would not be learned.
    trained_classes = np.unique(labels[~is_drawn])
    is_drawn &= np.isin(labels, trained_classes)
    drawn = np.flatnonzero(is_drawn)
    drawn = drawn[np.argsort(numbers[drawn], kind="stable")]
    is_unused = _touches_training(drawn, is_drawn, find_near_copies(drawn))
    return Split(share, drawn[~is_unused], np.sort(drawn[is_unused]))


def _touches_training(
    drawn: np.ndarray, is_drawn: np.ndarray, near_copies: Sequence[np.ndarray]
) -> np.ndarray:
    """Whether each drawn image has a near copy that is trained on, or a near copy that has one, and
    so on: (d,) bool.
    """
    position = {int(place): i for i, place in enumerate(drawn)}
    touches = np.array([not is_drawn[places].all() for places in near_copies], bool)
    neighbours: list[list[int]] = [[] for _ in drawn]
    for i, places in enumerate(near_copies):
        for place in places[is_drawn[places]]:
            j = position[int(place)]
            neighbours[i].append(j)
            neighbours[j].append(i)
    to_visit = np.flatnonzero(touches).tolist()
    while to_visit:
        for neighbour in neighbours[to_visit.pop()]:
            if not touches[neighbour]:
                touches[neighbour] = True
                to_visit.append(neighbour)
    return touches
