"""The copy test: what it flags among copies that are known, and among images that are new."""

import io
import math

import numpy as np
import pytest
import torch
from helpers import DEMO
from PIL import Image, ImageFilter

from model.metrics import copies, copy_distance, copy_features
from model.metrics.copies import CopySearch
from model.metrics.copy_distance import Geometry, bound_slack, lower_bounds, prepare, working_size
from model.metrics.copy_features import feature_threshold, nearest_features
from model.metrics.copy_threshold import Groups, calibrate, wilson_interval

CLASSES = sorted(folder.name for folder in DEMO.iterdir() if folder.is_dir())
TRAINING_PER_CLASS = 150
HELD_OUT_PER_CLASS = 30


def demo_images(first: int, count: int) -> torch.Tensor:
    """These images of each class of the demo set: (10 * count, 1, 28, 28)."""
    pictures = [
        np.asarray(Image.open(DEMO / name / f"{number:03d}.png").convert("L"))
        for name in CLASSES
        for number in range(first, first + count)
    ]
    return torch.from_numpy(np.stack(pictures))[:, None]


@pytest.mark.parametrize("count", [10, 20, 50])
def test_of_few_training_images_more_new_ones_are_flagged(count):
    """Every image here is as new as any other: about 2 in N + 1, and not 1%."""
    generator = torch.Generator().manual_seed(0)
    shares = []
    for _ in range(150):
        images = torch.randint(256, (count + 8, 1, 8, 8), generator=generator, dtype=torch.uint8)
        search = CopySearch(images[:count])
        calibration = calibrate(search)
        is_flagged = search.nearest(images[count:]).distance <= calibration.threshold
        shares.append(is_flagged.double().mean())
    mean, error = torch.stack(shares).mean(), torch.stack(shares).std() / 150**0.5
    assert calibration.false_alarms == 2 / (count + 1)
    assert abs(mean - calibration.false_alarms) < 0.4 * calibration.false_alarms
    assert mean - 3 * error > 0.01


@pytest.fixture(scope="module")
def search():
    return CopySearch(demo_images(0, TRAINING_PER_CLASS))


@pytest.fixture(scope="module")
def calibration(search):
    return calibrate(search)


@pytest.fixture(scope="module")
def threshold(calibration):
    return calibration.threshold


def with_pillow(change):
    """A function of a Pillow picture as one of (N,1,H,W) uint8."""

    def changed(images):
        pictures = [change(Image.fromarray(image[0].numpy())) for image in images]
        return torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]))[:, None]

    return changed


def noised(images):
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images + 0.05 * 255 * noise).round().clamp(0, 255).byte()


def shifted(down, right):
    """What comes in at the edge is black."""

    def shift(images):
        canvas = torch.zeros_like(images)
        height, width = images.shape[-2:]
        rows = slice(max(0, down), height + min(0, down))
        columns = slice(max(0, right), width + min(0, right))
        from_rows = slice(max(0, -down), height - max(0, down))
        from_columns = slice(max(0, -right), width - max(0, right))
        canvas[..., rows, columns] = images[..., from_rows, from_columns]
        return canvas

    return shift


def compressed(picture):
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=50)
    return Image.open(buffer)


CHANGES = {
    "noised": noised,
    "blurred": with_pillow(lambda picture: picture.filter(ImageFilter.GaussianBlur(0.7))),
    "mirrored": lambda images: images.flip(-1),
    "one pixel down": shifted(1, 0),
    "one pixel to the left": shifted(0, -1),
    "two pixels": shifted(2, -2),
    "mirrored and shifted": lambda images: shifted(-2, 1)(images.flip(-1)),
    "dimmed": lambda images: (images * 0.9).round().byte(),
    "compressed": with_pillow(compressed),
}


# --- What is flagged ---


def test_training_images_are_all_found(search, threshold):
    training = demo_images(0, TRAINING_PER_CLASS)
    some = training[::4]
    nearest = search.nearest(some)
    assert nearest.distance.max() == 0 < threshold
    assert torch.equal(training[nearest.index], some)  # itself, or one with the same pixels


@pytest.mark.parametrize("change", CHANGES)
def test_changed_copies_are_flagged(search, threshold, change):
    originals = torch.arange(3, len(search), 20)
    images = demo_images(0, TRAINING_PER_CLASS)[originals]
    nearest = search.nearest(CHANGES[change](images))
    assert (nearest.distance <= threshold).double().mean() >= 0.9
    assert (nearest.index == originals).double().mean() >= 0.9


def test_held_out_images_are_not(search, threshold):
    held_out = demo_images(TRAINING_PER_CLASS, HELD_OUT_PER_CLASS)
    flagged = (search.nearest(held_out).distance <= threshold).sum()
    assert len(held_out) == 300 and flagged <= 0.03 * 300


def test_the_nearest_by_thumbnails_is_the_nearest(search):
    """For most new images, and the distance is hardly larger for the others."""
    images = demo_images(TRAINING_PER_CLASS, 3)
    found = search.nearest(images)
    exact = torch.stack(
        [
            copy_distance.copy_distances(query, search.prepared, search.geometry).min()
            for query in prepare(images)
        ]
    )
    assert (found.distance >= exact).all()
    assert (found.distance == exact).double().mean() >= 0.8
    assert (found.distance - exact).max() < 0.03


# --- The distance, against a plain computation ---


def plain_distance(query: np.ndarray, image: np.ndarray) -> float:
    """Both blurred, 28x28 floats 0..255; as bright as each other. Written as loops."""
    ends = [round(part * 28 / 5) for part in range(6)]
    smallest = math.inf
    for picture in (query, query[:, ::-1]):
        for down in range(-2, 3):
            for right in range(-2, 3):
                squares = np.full((28, 28), np.nan)
                for y in range(28):
                    for x in range(28):
                        if is_compared(y, down) and is_compared(x, right):
                            difference = picture[y + down, x + right] - image[y, x]
                            squares[y, x] = (difference / 255) ** 2
                tiles = [
                    np.nanmean(squares[ends[i] : ends[i + 1], ends[j] : ends[j + 1]])
                    for i in range(5)
                    for j in range(5)
                ]
                smallest = min(smallest, max(tiles) ** 0.5)
    return smallest


def is_compared(place: int, shift: int) -> bool:
    """Neither the pixel nor its counterpart is outside the image or at its edge."""
    return 1 <= place <= 26 and 1 <= place + shift <= 26


def test_distance_against_loops(monkeypatch):
    monkeypatch.setattr(copy_distance, "LARGEST_GAIN", 1.0)
    images = prepare(demo_images(0, 2))
    geometry = Geometry(1, 28, 28)
    ours = torch.stack(
        [copy_distance.copy_distances(query, images, geometry) for query in images[:4]]
    )
    loops = [
        [plain_distance(query[0].double().numpy(), image[0].double().numpy()) for image in images]
        for query in images[:4]
    ]
    assert (ours - torch.tensor(loops, dtype=torch.float64)).abs().max() < 1e-9


def plain_blur(pictures: np.ndarray, sigma: float) -> np.ndarray:
    """(N,h,w) floats, as sums over shifted copies."""
    radius = math.ceil(3 * sigma)
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    weights /= weights.sum()
    height, width = pictures.shape[1:]
    padded = np.pad(pictures, ((0, 0), (radius, radius), (radius, radius)), mode="edge")
    rows = sum(weight * padded[:, :, i : i + width] for i, weight in enumerate(weights))
    return sum(weight * rows[:, i : i + height] for i, weight in enumerate(weights))


def test_blur_of_grey():
    images = demo_images(0, 1)
    expected = plain_blur(images[:, 0].double().numpy(), 1.0)
    assert np.abs(prepare(images)[:, 0].double().numpy() - expected).max() < 0.5 + 0.2


def test_colours_are_blurred_more():
    source = demo_images(0, 3)
    images = torch.stack([source[:10, 0], source[10:20, 0], source[20:, 0]], dim=1)  # (10,3,H,W)
    red, green, blue = images.double().numpy().transpose(1, 0, 2, 3)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    expected = np.stack(
        [plain_blur(luma, 1.0) + plain_blur(channel - luma, 1.75) for channel in (red, green, blue)]
    )
    expected = expected.clip(0, 255).transpose(1, 0, 2, 3)
    assert np.abs(prepare(images).double().numpy() - expected).max() < 1.5 + 0.5


def test_brightness_costs_a_little():
    geometry = Geometry(1, 28, 28)
    images = prepare(demo_images(0, 1))
    dimmed = prepare((demo_images(0, 1) * 0.9).round().byte())
    for image, query in zip(images, dimmed, strict=True):
        distance = copy_distance.copy_distances(query, image[None], geometry).item()
        cost = copy_distance.GAIN_COST * math.log(1 / 0.9)
        assert distance <= cost + 0.005
    black = torch.zeros(1, 1, 28, 28, dtype=torch.uint8)
    white = torch.full_like(black, 255)
    assert copy_distance.copy_distances(black[0], white, geometry).item() == 1
    assert copy_distance.copy_distances(black[0], black, geometry).item() == 0


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 21, 40), (1, 9, 5), (3, 32, 32)])
def test_no_distance_is_below_its_bound(shape):
    channels, height, width = shape
    source = demo_images(0, 12)
    resized = torch.nn.functional.interpolate(source.float(), (height, width)).byte()
    images = prepare(resized.repeat(1, channels, 1, 1))
    geometry = Geometry(channels, height, width)
    thumbnails = copy_distance.thumbnails_of(images, geometry.image_window, geometry)[:, 0].float()
    for query in images[::9]:
        variants = copy_distance.thumbnails_of(query[None], geometry.query_windows, geometry)
        bounds = lower_bounds(variants[0].float(), thumbnails, geometry)
        distances = copy_distance.copy_distances(query, images, geometry)
        assert (bounds <= distances + bound_slack(geometry)).all()
        assert bounds.max() > 0.1  # and it says something


def test_within_finds_all(search):
    queries = torch.cat([demo_images(TRAINING_PER_CLASS, 1), demo_images(7, 1).flip(-1)])
    radius = 0.11
    found = search.within(queries, radius)
    total = 0
    for query, places in zip(prepare(queries), found, strict=True):
        distances = copy_distance.copy_distances(query, search.prepared, search.geometry)
        assert torch.equal(places, (distances <= radius).nonzero()[:, 0])
        total += len(places)
    assert total > len(queries)
    assert all(7 + 150 * number in found[10 + number] for number in range(10))  # mirrored


# --- The same results however images are divided; other shapes ---


def test_results_do_not_depend_on_batches(search, monkeypatch):
    images = torch.cat([demo_images(0, 2).flip(-1), demo_images(TRAINING_PER_CLASS, 2)])
    together = search.nearest(images)
    one_by_one = [search.nearest(image[None]) for image in images]
    assert torch.equal(together.index, torch.cat([nearest.index for nearest in one_by_one]))
    assert torch.equal(together.distance, torch.cat([nearest.distance for nearest in one_by_one]))
    monkeypatch.setattr(copies, "PREPARED_AT_ONCE", 17)
    monkeypatch.setattr(copies, "COMPARED_AT_ONCE", 100)
    monkeypatch.setattr(copies, "QUERIES_AT_ONCE", 3)
    monkeypatch.setattr(copies, "MEASURED_AT_ONCE", 5)
    training = demo_images(0, TRAINING_PER_CLASS)
    divided = CopySearch(batch for batch in training.split(333))
    assert torch.equal(divided.prepared, search.prepared)
    again = divided.nearest(images)
    assert torch.equal(together.index, again.index)
    assert torch.equal(together.distance, again.distance)


@pytest.mark.parametrize(
    ("shape", "working"),
    [
        ((3, 32, 32), (32, 32)),
        ((3, 64, 64), (32, 32)),
        ((1, 96, 128), (28, 37)),
        ((3, 20, 44), (20, 44)),
        ((1, 16, 16), (16, 16)),
        ((3, 8, 8), (8, 8)),
    ],
)
def test_other_shapes(shape, working):
    channels, height, width = shape
    assert working_size(height, width) == working
    source = demo_images(0, 6).float()
    pixels = torch.nn.functional.interpolate(source, (height, width), mode="bilinear")
    tints = torch.tensor([1.0, 0.8, 0.6])[:channels].view(1, channels, 1, 1)
    images = (pixels * tints).round().byte()
    search = CopySearch(images)
    assert search.prepared.shape == (60, channels, *working)
    threshold = calibrate(search).threshold
    mirrored = search.nearest(images.flip(-1))
    assert (mirrored.distance <= threshold).double().mean() >= 0.9
    assert (mirrored.index == torch.arange(60)).double().mean() >= 0.9
    assert (search.nearest(noised(images)).distance <= threshold).double().mean() >= 0.9
    if channels == 3:  # another colour is another image
        recoloured = search.nearest(images.flip(1))
        assert (recoloured.distance <= threshold).double().mean() < 0.5


def test_ties_go_to_the_first():
    images = demo_images(0, 2)
    search = CopySearch(torch.cat([images] * 5))  # more equal ones than candidates would do
    assert torch.equal(search.nearest(images).index, torch.arange(len(images)))


def test_what_cannot_be_searched(search):
    with pytest.raises(ValueError, match=r"not \(2, 2, 8, 8\) uint8"):
        CopySearch(torch.zeros(2, 2, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match="float32"):
        CopySearch(torch.zeros(2, 1, 8, 8))
    with pytest.raises(ValueError, match="no training images"):
        CopySearch([])
    with pytest.raises(ValueError, match=r"\(3, 28, 28\).*\(1, 28, 28\)"):
        search.nearest(torch.zeros(1, 3, 28, 28, dtype=torch.uint8))
    assert len(search.nearest(torch.zeros(0, 1, 28, 28, dtype=torch.uint8)).index) == 0


# --- The threshold ---


def test_near_copies_in_the_set_do_not_lower_the_threshold(search, threshold):
    """Each image with a mirrored, a noised and a dimmed sibling: they are one group."""
    images = demo_images(0, 15)
    alone = calibrate(CopySearch(images))
    siblings = torch.cat([images, images.flip(-1), noised(images), (images * 0.9).byte()])
    together = calibrate(CopySearch(siblings))
    assert together.with_near_copy / len(together.sample) > 0.9 > 0.1
    assert alone.with_near_copy / len(alone.sample) < 0.1
    assert abs(together.threshold - alone.threshold) < 0.15 * alone.threshold
    groups = together.groups
    assert all(groups.of(place) == groups.of(place + 150) for place in range(0, 150, 7))


def test_a_set_of_near_copies_alone():
    image = demo_images(0, 1)[:1]
    calibration = calibrate(CopySearch(noised(image.repeat(70, 1, 1, 1))))
    assert calibration.threshold == copies.NEAR_COPY and calibration.with_near_copy == 70
    assert calibrate(CopySearch(image)).threshold == copies.NEAR_COPY


def test_groups():
    groups = Groups()
    for pair in ((5, 3), (8, 9), (3, 8)):
        groups.join(*pair)
    assert {groups.of(place) for place in (3, 5, 8, 9)} == {3}
    assert groups.of(4) == 4
    assert {root: sorted(places) for root, places in groups.members().items()} == {3: [3, 5, 8, 9]}


def test_wilson_interval():
    """The interval's ends p solve (k/n - p)^2 = z^2 p (1 - p) / n."""
    for successes, trials in ((0, 10), (3, 200), (10, 10), (50, 101)):
        low, high = wilson_interval(successes, trials)
        for end in (low, high):
            left = (successes / trials - end) ** 2
            assert abs(left - 1.959963984540054**2 * end * (1 - end) / trials) < 1e-12
        assert low <= successes / trials <= high
    assert wilson_interval(3, 200) == pytest.approx((0.0051142, 0.0431657), abs=1e-6)
    with pytest.raises(ValueError, match="0 of 0"):
        wilson_interval(0, 0)


# --- Features ---


def test_features_are_calibrated_alike(calibration, monkeypatch):
    training = demo_images(0, TRAINING_PER_CLASS).flatten(1).double()
    threshold = feature_threshold(training, calibration)
    nearest = nearest_features(training[::50] * 1.7, training)
    assert torch.equal(training[nearest.index], training[::50])
    assert nearest.distance.max() < 1e-12
    held_out = demo_images(TRAINING_PER_CLASS, HELD_OUT_PER_CLASS).flatten(1).double()
    found = nearest_features(held_out, training)
    monkeypatch.setattr(copy_features, "TRAINING_AT_ONCE", 37)
    monkeypatch.setattr(copy_features, "QUERIES_AT_ONCE", 11)
    in_parts = nearest_features(held_out, training)
    assert torch.equal(in_parts.index, found.index)
    assert (in_parts.distance - found.distance).abs().max() < 1e-12
    assert abs(feature_threshold(training, calibration) - threshold) < 1e-12
    assert (found.distance <= threshold).double().mean() < 0.04
    cosine = torch.nn.functional.cosine_similarity(held_out[:5, None], training[None], dim=2)
    assert (found.distance[:5] - (1 - cosine.amax(1))).abs().max() < 1e-12
    one_group = calibrate(CopySearch(noised(demo_images(0, 1)[:1].repeat(5, 1, 1, 1))))
    assert feature_threshold(training[:5], one_group) is None
