"""How plain pictures are."""

import numpy as np
import pytest
from helpers import DEMO
from PIL import Image

from utils.data import load_image_set
from utils.data.flatness import flat_share

SIDE = 16


def image_set(folder, pictures):
    folder.mkdir(parents=True, exist_ok=True)
    for number, pixels in enumerate(pictures):
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    return load_image_set(folder, (SIDE, SIDE), None, quiet=True)


def stripes(width):
    """Vertical stripes, each so many pixels wide."""
    return np.tile(np.arange(SIDE) // width % 2 * 255, (SIDE, 1))


def test_the_share_of_equal_neighbours(tmp_path):
    images = image_set(tmp_path, [np.zeros((SIDE, SIDE)), stripes(1), stripes(4)])
    # all; none; of 15 pairs in a row the 3 at a border differ
    assert flat_share(images) == pytest.approx((1 + 0 + 12 / 15) / 3)


def test_all_channels_must_be_equal(tmp_path):
    red = np.zeros((SIDE, SIDE, 3))
    red[:, 1::2, 0] = 255
    assert flat_share(image_set(tmp_path, [red])) == 0


def test_noise_has_none_and_garments_have_many(tmp_path):
    chance = np.random.RandomState(0)
    noise = [chance.randint(0, 256, (SIDE, SIDE, 3)) for _ in range(5)]
    assert flat_share(image_set(tmp_path, noise)) < 0.01
    garments = load_image_set(DEMO, (28, 28), None, quiet=True)
    assert 0.35 < flat_share(garments) < 0.6


def test_one_column_has_no_neighbours(tmp_path):
    image_set(tmp_path, [np.zeros((SIDE, SIDE))])
    assert flat_share(load_image_set(tmp_path, (SIDE, 1), None, quiet=True)) == 0


def test_the_same_images_are_looked_at_in_any_order(tmp_path, monkeypatch):
    monkeypatch.setattr("utils.data.flatness.MOST_IMAGES", 2)
    pictures = [stripes(width) for width in (1, 2, 3, 4, 5, 8)]
    one = flat_share(image_set(tmp_path / "one", pictures))
    assert flat_share(image_set(tmp_path / "two", pictures[::-1])) == one
