"""Which images are held out of training, to measure on.

An image is drawn by a digest of its pixels and of nothing else: adding pictures to a folder, or
sorting it anew, moves none of the others from one side to the other. What was drawn and has a near
copy among the images that were not (another skin tone, the mirrored arrow, a file that is there
twice) is used for neither: in training it would tell the network what it is measured on, and held
out it would be measured as if it were new.

Where that would cost more images than it leaves, as with bursts of photographs or the frames of a
film, whole groups of near copies are drawn instead, each by its first member. Adding a near copy
can then move its group.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from utils.data.labels_file import NO_LABEL
from utils.errors import UserError

SMALLEST_SET = 200  # images, from which on some are held out without being asked for
USUAL_SHARE = 0.05
FEWEST, MOST = 20, 256  # images that are held out without being asked for
LARGEST_SHARE = 0.5
LARGER = 1.25  # what the share is multiplied by where it leaves too few
MOST_DRAWN = 5_000  # images, where a larger share is tried
FEWEST_ASKED_FOR = 8  # fewer say nothing

# A place -> (N,) bool: the images that its image is compared with. It is asked when the image's
# turn comes, and for each part of a set that is searched in parts.
Candidates = Callable[[int], np.ndarray]

# Places of images -> pairs of such a place and the places of near copies of its image, as they are
# found.
FindNearCopies = Callable[[np.ndarray, Candidates], Iterable[tuple[int, np.ndarray]]]


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
        """What a checkpoint keeps: places in the set with this fingerprint, and a digest of what is
        held out.
        """
        return {
            "share": self.share,
            "of": fingerprint,
            "images": self.held_out.tolist(),
            "unused": self.unused.tolist(),
            "fingerprint": hashlib.sha256(checksums[self.held_out].tobytes()).hexdigest()[:16],
        }


NOTHING_HELD_OUT = Split(0.0, np.empty(0, np.int64), np.empty(0, np.int64))


def split_set(
    checksums: np.ndarray,
    labels: np.ndarray,
    share: float | None,
    find_near_copies: FindNearCopies,
    is_asked_for: bool = True,
) -> Split:
    """Draw the images that are held out.

    `checksums` (N,) are the images' own, `labels` (N,K) the classes of each, NO_LABEL where there
    are fewer than K. `share` None decides: 5% of 200 images or more, halved or raised until 20 to
    256 remain, else none. Raises UserError where a share that was asked for leaves fewer than 8;
    one that was not then leaves none.
    """
    if share == 0 or (share is None and len(checksums) < SMALLEST_SET):
        return NOTHING_HELD_OUT
    numbers = scattered(checksums)
    connected = Connected(len(numbers), find_near_copies)
    if share is not None:
        split = _draw(numbers, labels, share, connected)
        if len(split.held_out) >= FEWEST_ASKED_FOR:
            return split
        if not is_asked_for:
            return NOTHING_HELD_OUT
        raise UserError(
            f"--val_fraction {share:g} of {len(checksums):,} images holds out "
            f"{len(split.held_out)}, which says nothing: {FEWEST_ASKED_FOR} are the fewest, and "
            "each class keeps an image to learn from; raise it, or pass --val_fraction 0"
        )
    share = USUAL_SHARE
    while (numbers < share).sum() > MOST:
        share /= 2
    split = _draw(numbers, labels, share, connected)
    largest = min(LARGEST_SHARE, MOST_DRAWN / len(numbers))
    while len(split.held_out) < FEWEST and share * LARGER <= largest:
        share *= LARGER
        split = _draw(numbers, labels, share, connected)
    return split if len(split.held_out) >= FEWEST_ASKED_FOR else NOTHING_HELD_OUT


def recorded_split(record: dict, images: int, fingerprint: str) -> Split | None:
    """The split that a checkpoint recorded, or None where the set has changed since. To find near
    copies anew could give another one: on another machine, distances are rounded differently.
    """
    held_out = np.array(record["images"], np.int64)
    unused = np.array(record["unused"], np.int64)
    if record["of"] != fingerprint or max([-1, *held_out, *unused]) >= images:
        return None
    return Split(record["share"], held_out, unused)


def scattered(checksums: np.ndarray) -> np.ndarray:
    """(N,) uint32 -> (N,) float64 in [0, 1): equal for equal images, and otherwise like random
    numbers (the finaliser of splitmix64).
    """
    state = checksums.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    state = state ^ (state >> np.uint64(31))
    return (state >> np.uint64(11)) / 2.0**53


def lowest_numbers(checksums: np.ndarray, count: int) -> np.ndarray:
    """The places of `count` images, or of all, chosen by their pixels alone."""
    return np.argsort(scattered(checksums), kind="stable")[:count]


class Connected:
    """Which images are connected by near copies, as far as these have been looked for.

    Images that are known to be connected are not compared any more, so that a set of nearly equal
    images takes no longer than others.
    """

    def __init__(self, count: int, find: FindNearCopies):
        self._find = find
        self._group = np.arange(count)  # of each image: equal numbers are connected
        self._is_explored = np.zeros(count, bool)

    def __len__(self) -> int:
        return len(self._group)

    def group(self, place: int) -> np.ndarray:
        """(N,) bool: the images that are known to be connected to this one, and itself."""
        return self._group == self._group[place]

    def groups(self, seeds: np.ndarray, largest: int) -> list[np.ndarray]:
        """The places of each group of at most so many images that has one of the seeds, in the
        order of these.
        """
        sizes = np.bincount(self._group, minlength=len(self))
        numbers = self._group[seeds]
        numbers = numbers[sizes[numbers] <= largest]
        if len(numbers) == 0:
            return []
        members = np.flatnonzero(np.isin(self._group, numbers))
        members = members[np.argsort(self._group[members], kind="stable")]
        ends = np.flatnonzero(np.diff(self._group[members])) + 1
        by_number = {int(self._group[group[0]]): group for group in np.split(members, ends)}
        return [by_number[number] for number in dict.fromkeys(numbers.tolist())]

    def are_explored(self, places: np.ndarray) -> bool:
        """Whether all near copies of these images are known."""
        return bool(self._is_explored[places].all())

    def explore(self, places: np.ndarray, is_decided: Callable[[np.ndarray], bool]) -> None:
        """Look for near copies of these images; for none any more of an image of whose group
        (N,) bool enough is known.
        """
        unknown = places[~self._is_explored[places]]
        left_out: set[int] = set()

        def among(place: int) -> np.ndarray:
            group = self.group(place)
            if is_decided(group):
                left_out.add(place)
                return np.zeros_like(group)
            return ~group

        for place, near in self._find(unknown, among):
            if len(near) > 0:
                of_near = np.isin(self._group, self._group[near])
                self._group[of_near] = self._group[place]
        explored = np.setdiff1d(unknown, sorted(left_out))
        self._is_explored[explored] = True


def _draw(numbers: np.ndarray, labels: np.ndarray, share: float, connected: Connected) -> Split:
    split = _draw_singly(numbers, labels, share, connected)
    if len(split.unused) > len(split.held_out):
        return _draw_groups(numbers, labels, share, connected)
    return split


def _draw_singly(
    numbers: np.ndarray, labels: np.ndarray, share: float, connected: Connected
) -> Split:
    is_drawn = numbers < share
    # A class all of whose images were drawn would not be learned.
    trained_classes = np.unique(labels[~is_drawn])
    is_drawn &= (np.isin(labels, trained_classes) | (labels == NO_LABEL)).all(1)
    drawn = np.flatnonzero(is_drawn)
    drawn = drawn[np.argsort(numbers[drawn], kind="stable")]

    def touches_training(group: np.ndarray) -> bool:
        return not bool(is_drawn[group].all())

    connected.explore(drawn, touches_training)
    is_unused = np.array(
        [touches_training(connected.group(place)) for place in drawn.tolist()], bool
    )
    return Split(share, drawn[~is_unused], np.sort(drawn[is_unused]))


def _draw_groups(
    numbers: np.ndarray, labels: np.ndarray, share: float, connected: Connected
) -> Split:
    """The groups with the lowest numbers, until the share is full. A group that is larger than that
    stays in training, and so does one that holds all that is left of a class.
    """
    wanted = max(1, round(share * len(numbers)))
    seeds = np.argsort(numbers, kind="stable")[:wanted]
    left = _counts(labels)
    held_out: list[np.ndarray] = []
    free = wanted
    for group in _whole_groups(seeds, connected, largest=wanted):
        taken = _counts(labels[group], len(left))
        if len(group) > free or ((taken > 0) & (taken >= left)).any():
            continue
        held_out.append(group)
        free -= len(group)
        left = left - taken
    places = np.sort(np.concatenate([np.empty(0, np.int64), *held_out]))
    order = np.argsort(numbers[places], kind="stable")
    return Split(share, places[order], np.empty(0, np.int64))


def _counts(labels: np.ndarray, classes: int = 0) -> np.ndarray:
    """Images of each class; at least so many classes are counted."""
    return np.bincount(labels[labels != NO_LABEL], minlength=classes)


def _whole_groups(seeds: np.ndarray, connected: Connected, largest: int) -> list[np.ndarray]:
    """The places of all images that are connected to each seed, where these are at most so many."""

    def is_too_large(group: np.ndarray) -> bool:
        return bool(group.sum() > largest)

    while True:
        groups = connected.groups(seeds, largest)
        members = np.concatenate([np.empty(0, np.int64), *groups])
        if connected.are_explored(members):
            return groups
        connected.explore(members, is_too_large)
