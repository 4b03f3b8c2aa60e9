"""Which images are held out."""

import numpy as np
import pytest

from utils.data.split import (
    FEWEST,
    FEWEST_ASKED_FOR,
    MOST,
    NOTHING_HELD_OUT,
    Split,
    recorded_split,
    scattered,
    split_set,
)
from utils.errors import UserError


def some_checksums(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**32, count, dtype=np.uint32)


def finder(near_copies_of):
    """For `split_set`, of a function: a place -> the places of its near copies."""

    def find(places, among):
        for place in places.tolist():
            near = np.array(near_copies_of(place), np.int64)
            yield place, near[among(place)[near]]

    return find


no_near_copies = finder(lambda place: [])


def linked(pairs: list[tuple[int, int]]):
    """A finder of near copies for a set in which these pairs are."""

    def others(place):
        return [b for a, b in pairs if a == place] + [a for a, b in pairs if b == place]

    return finder(others)


def split(checksums, share=None, labels=None, find=no_near_copies):
    labels = np.zeros(len(checksums), int) if labels is None else labels
    return split_set(checksums, np.reshape(labels, (len(checksums), -1)), share, find)


@pytest.mark.parametrize("count", [200, 201, 350, 1000, 2000, 5000, 6000, 60_000, 300_000])
def test_how_many_by_default(count):
    for seed in range(5):
        found = split(some_checksums(count, seed))
        assert FEWEST <= len(found.held_out) <= MOST
        assert len(found.unused) == 0
        assert len(found.training(count)) == count - len(found.held_out)
        if 1000 <= count <= 4000:
            assert 0.03 * count < len(found.held_out) < 0.07 * count


def test_none_of_few_images_or_on_request():
    assert split(some_checksums(199)) is NOTHING_HELD_OUT
    assert split(some_checksums(5000), share=0) is NOTHING_HELD_OUT
    assert len(NOTHING_HELD_OUT.training(7)) == 7


def test_a_share_that_is_asked_for():
    found = split(some_checksums(1000), share=0.2)
    assert 160 < len(found.held_out) < 240
    with pytest.raises(UserError, match="--val_fraction 0.01 of 150 images holds out"):
        split(some_checksums(150), share=0.01)


def some_tags(count: int, tags: int, most: int) -> np.ndarray:
    """(count, most): up to `most` different labels an image, so that hardly two are alike."""
    generator = np.random.default_rng(4)
    table = np.stack([generator.permutation(tags)[:most] for _ in range(count)])
    table[np.arange(most) >= generator.integers(1, most + 1, count)[:, None]] = -1
    return table


@pytest.mark.parametrize("find", [no_near_copies, linked([(i, i + 1) for i in range(0, 300, 2)])])
def test_images_with_labels_of_their_own_are_held_out(find):
    """What keeps an image in training is a label that no other has, not a combination of labels."""
    checksums, tags = some_checksums(400), some_tags(400, 40, 5)
    found = split(checksums, labels=tags, find=find)
    assert len(found.held_out) >= FEWEST
    assert 60 < len(split(checksums, 0.2, labels=tags).held_out) < 100
    alone = np.full((400, 1), 41)
    tags = np.hstack([tags, np.where(np.arange(400)[:, None] == found.held_out[0], alone, -1)])
    again = split(checksums, labels=tags, find=find)
    assert found.held_out[0] not in again.held_out and len(again.held_out) >= FEWEST - 2
    trained = set(tags[again.training(400)].flatten())
    assert trained == set(tags.flatten())


def test_adding_pictures_moves_none():
    """As long as the share is the same, which it is for a fixed one."""
    before, more = some_checksums(1500), some_checksums(700, seed=1)
    places = np.random.default_rng(2).permutation(2200)
    after = np.concatenate([before, more])[places]
    for share in (None, 0.1):
        old = set(before[split(before, share).held_out])
        new = set(after[split(after, share).held_out])
        assert old == {checksum for checksum in new if checksum in set(before)}


def test_the_order_does_not_depend_on_the_folder():
    checksums = some_checksums(1000)
    shuffled = checksums[np.random.default_rng(3).permutation(1000)]
    assert (checksums[split(checksums).held_out] == shuffled[split(shuffled).held_out]).all()


def test_equal_images_stay_together():
    checksums = np.repeat(some_checksums(400), 2)
    held_out = split(checksums).held_out
    numbers, counts = np.unique(checksums[held_out], return_counts=True)
    assert len(numbers) >= FEWEST / 2 and (counts == 2).all()


def test_near_copies_do_not_straddle():
    """Also along chains: what is drawn and linked to training images is used for neither."""
    checksums = some_checksums(1000)
    drawn = split(checksums, 0.1).held_out
    trained = split(checksums, 0.1).training(1000)
    a, b, c, d, e = (int(place) for place in drawn[:5])
    pairs = [(a, int(trained[0])), (a, b), (b, c), (d, e)]  # a-b-c hang on a training image
    found = split(checksums, 0.1, find=linked(pairs))
    assert set(found.unused) == {a, b, c}
    assert {d, e} <= set(found.held_out) and len(found.held_out) == len(drawn) - 3
    assert set(found.training(1000)) == set(trained)


def test_near_copies_count_towards_the_fewest():
    """Where many are used for neither, more are drawn."""
    checksums = some_checksums(300)
    pairs = [(i, i + 1) for i in range(0, 150, 2)]  # half of the images have one near copy
    found = split(checksums, find=linked(pairs))
    assert len(found.held_out) >= FEWEST and len(found.unused) > 0


def in_groups(size: int, count: int):
    """A finder for a set of `count` images in which groups of `size` follow each other."""

    def others(place):
        first = place - place % size
        return np.setdiff1d(np.arange(first, min(first + size, count)), place)

    return finder(others)


@pytest.mark.parametrize("size", [2, 5, 10])
def test_bursts_are_held_out_as_whole_groups(size):
    """Where nearly every image has near copies, none is thrown away."""
    checksums = some_checksums(600)
    found = split(checksums, find=in_groups(size, 600))
    assert FEWEST <= len(found.held_out) <= 60
    assert len(found.unused) < 0.05 * 600
    trained = found.training(600) // size
    assert not set(trained) & set(found.held_out // size)
    again = split(checksums, find=in_groups(size, 600))
    assert (again.held_out == found.held_out).all()


def test_near_copies_are_looked_for_once():
    asked = []

    def find(places, among):
        asked.extend(places.tolist())
        return in_groups(2, 300)(places, among)

    split(some_checksums(300), find=find)
    assert len(asked) == len(set(asked)) > 0


def test_a_set_of_near_copies_holds_nothing_out():
    all_alike = finder(lambda place: np.setdiff1d(np.arange(300), place))

    assert split(some_checksums(300), find=all_alike) is NOTHING_HELD_OUT
    with pytest.raises(UserError, match="holds out 0, which says nothing"):
        split(some_checksums(300), share=0.3, find=all_alike)


def reference(checksums, share, near_copies_of):
    """The split by its definition: images and groups by all connections, known from the start."""
    numbers, count = scattered(checksums), len(checksums)
    groups = connected_components([near_copies_of(place) for place in range(count)])
    drawn = sorted(np.flatnonzero(numbers < share), key=lambda place: numbers[place])
    alone = [place for place in drawn if all(numbers[list(groups[place])] < share)]
    if len(drawn) - len(alone) <= len(alone):
        return alone
    wanted = max(1, round(share * count))
    held_out = set()
    for seed in np.argsort(numbers, kind="stable")[:wanted].tolist():
        if seed not in held_out and len(held_out) + len(groups[seed]) <= wanted:
            held_out |= groups[seed]
    return sorted(held_out, key=lambda place: numbers[place])


def connected_components(near_copies):
    """For each place the set of places that it is connected to, by brute force."""
    groups = [{place} for place in range(len(near_copies))]
    for place, near in enumerate(near_copies):
        for other in near:
            if groups[other] is not groups[place]:
                groups[place] |= groups[other]
                for member in groups[other]:
                    groups[member] = groups[place]
    return groups


@pytest.mark.parametrize("links", [20, 100, 200, 300, 600])
@pytest.mark.parametrize("share", [0.05, 0.2, 0.4])
def test_beside_the_definition(links, share):
    """On random graphs, from a few pairs to one large component."""
    for seed in range(8):
        checksums = some_checksums(400, seed)
        pairs = np.random.default_rng(seed).integers(0, 400, (links, 2)).tolist()
        near = [set() for _ in range(400)]
        for a, b in pairs:
            if a != b:
                near[a].add(b)
                near[b].add(a)
        expected = reference(checksums, share, lambda place, near=near: sorted(near[place]))
        if len(expected) < FEWEST_ASKED_FOR:
            continue
        found = split(checksums, share, find=finder(lambda place, near=near: sorted(near[place])))
        assert found.held_out.tolist() == expected
        trained = set(found.training(400).tolist())
        assert all(not near[place] & trained for place in expected)


@pytest.mark.parametrize("clusters", [1, 4])
def test_few_of_nearly_equal_images_are_compared(clusters):
    """In a set that falls into large clusters, each of images that are all near copies."""
    compared = []

    def find(places, among):
        for place in places.tolist():
            wanted = np.flatnonzero(among(place))
            near = wanted[wanted % clusters == place % clusters]
            compared.append(len(near))
            yield place, near

    split(some_checksums(4000), find=find)
    assert sum(compared) < 2 * 4000


def test_no_class_is_held_out_whole():
    checksums = some_checksums(1000)
    numbers = scattered(checksums)
    labels = np.zeros(1000, int)
    labels[np.argsort(numbers)[:3]] = [1, 1, 2]  # the very first to be drawn
    found = split(checksums, labels=labels)
    assert set(labels[found.training(1000)]) == {0, 1, 2}
    assert len(found.held_out) >= FEWEST


def test_scattered_is_like_random_numbers():
    """Also for checksums that follow each other."""
    numbers = np.sort(scattered(np.arange(100_000, dtype=np.uint32)))
    assert numbers[0] >= 0 and numbers[-1] < 1
    assert np.abs(numbers - np.linspace(0, 1, 100_000)).max() < 0.01


def test_what_a_checkpoint_records():
    checksums = some_checksums(1000)
    pairs = [(int(split(checksums).held_out[0]), int(split(checksums).training(1000)[0]))]
    found = split(checksums, find=linked(pairs))
    record = found.to_record(checksums, "digest")
    again = recorded_split(record, 1000, "digest")
    assert again.share == found.share and len(again.unused) == 1
    assert (again.held_out == found.held_out).all() and (again.unused == found.unused).all()
    assert recorded_split(record, 1000, "another digest") is None
    assert recorded_split(record, 5, "digest") is None
    fewer = Split(found.share, found.held_out[1:], found.unused)
    assert fewer.to_record(checksums, "digest")["fingerprint"] != record["fingerprint"]
