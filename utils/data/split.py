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
from collections.abc import Callable, Iterable, Sequence
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

    `checksums` (N,) are the images' own, `labels` (N,) their classes. `share` None decides: 5% of
    200 images or more, halved or raised until 20 to 256 remain, else none. Raises UserError where
    a share that was asked for leaves fewer than 8; one that was not then leaves none.
    """
    if share == 0 or (share is None and len(checksums) < SMALLEST_SET):
        return NOTHING_HELD_OUT
    numbers = scattered(checksums)
    near_copies = NearCopies(find_near_copies)
    if share is not None:
        split = _draw(numbers, labels, share, near_copies)
        if len(split.held_out) >= FEWEST_ASKED_FOR:
            return split
        if not is_asked_for:
            return NOTHING_HELD_OUT
        raise UserError(
            f"--val_fraction {share:g} of {len(checksums):,} images holds out "
            f"{len(split.held_out)}, which says nothing: {FEWEST_ASKED_FOR} are the fewest; "
            "raise it, or pass --val_fraction 0"
        )
    share = USUAL_SHARE
    while (numbers < share).sum() > MOST:
        share /= 2
    split = _draw(numbers, labels, share, near_copies)
    while len(split.held_out) < FEWEST and share * LARGER <= LARGEST_SHARE:
        share *= LARGER
        split = _draw(numbers, labels, share, near_copies)
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


class NearCopies:
    """The near copies of images, each looked for once."""

    def __init__(self, find: FindNearCopies):
        self._find = find
        self._known: dict[int, np.ndarray] = {}

    def look_up(self, places: Iterable[int]) -> None:
        """Find those of all these images at once."""
        unknown = np.array(sorted(set(places) - self._known.keys()), np.int64)
        if len(unknown) == 0:
            return
        for place, near in zip(unknown.tolist(), self._find(unknown), strict=True):
            self._known[place] = near

    def __contains__(self, place: int) -> bool:
        return place in self._known

    def __getitem__(self, place: int) -> np.ndarray:
        return self._known[place]


def _draw(numbers: np.ndarray, labels: np.ndarray, share: float, near_copies: NearCopies) -> Split:
    split = _draw_singly(numbers, labels, share, near_copies)
    if len(split.unused) > len(split.held_out):
        return _draw_groups(numbers, labels, share, near_copies)
    return split


def _draw_singly(
    numbers: np.ndarray, labels: np.ndarray, share: float, near_copies: NearCopies
) -> Split:
    is_drawn = numbers < share
    # A class all of whose images were drawn would not be learned.
    trained_classes = np.unique(labels[~is_drawn])
    is_drawn &= np.isin(labels, trained_classes)
    drawn = np.flatnonzero(is_drawn)
    drawn = drawn[np.argsort(numbers[drawn], kind="stable")]
    near_copies.look_up(drawn.tolist())
    found = [near_copies[int(place)] for place in drawn]
    is_unused = _touches_training(drawn, is_drawn, found)
    return Split(share, drawn[~is_unused], np.sort(drawn[is_unused]))


def _draw_groups(
    numbers: np.ndarray, labels: np.ndarray, share: float, near_copies: NearCopies
) -> Split:
    """The groups with the lowest numbers, until the share is full. A group that is larger than that
    stays in training, and so does one that holds all that is left of a class.
    """
    wanted = max(1, round(share * len(numbers)))
    seeds = np.argsort(numbers, kind="stable")[:wanted].tolist()
    groups = _groups_of(seeds, near_copies, largest=wanted)
    left = np.bincount(labels)
    held_out: set[int] = set()
    for seed in seeds:
        group = groups[seed]
        if group is None or seed in held_out:
            continue
        taken = np.bincount(labels[list(group)], minlength=len(left))
        if len(held_out) + len(group) > wanted or ((taken > 0) & (taken >= left)).any():
            continue
        held_out |= group
        left = left - taken
    places = np.array(sorted(held_out), np.int64)
    order = np.argsort(numbers[places], kind="stable")
    return Split(share, places[order], np.empty(0, np.int64))


def _groups_of(
    seeds: Sequence[int], near_copies: NearCopies, largest: int
) -> dict[int, set[int] | None]:
    """The images that are connected to each seed by near copies; None where these are more than
    `largest`.
    """
    groups: dict[int, set[int] | None] = {seed: {seed} for seed in seeds}
    while True:
        for seed, group in groups.items():
            if group is not None:
                groups[seed] = _grown(group, near_copies, largest)
        members = {place for group in groups.values() if group is not None for place in group}
        if all(place in near_copies for place in members):
            return groups
        near_copies.look_up(members)


def _grown(group: set[int], near_copies: NearCopies, largest: int) -> set[int] | None:
    """The group with all that is known to be connected to it."""
    grown = set(group)
    to_visit = list(group)
    while to_visit and len(grown) <= largest:
        place = to_visit.pop()
        if place in near_copies:
            new = set(near_copies[place].tolist()) - grown
            grown |= new
            to_visit += new
    return grown if len(grown) <= largest else None


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
