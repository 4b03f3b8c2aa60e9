"""Whether images may be mirrored."""

import numpy as np
import pytest
import torch
from helpers import DEMO
from PIL import Image

from utils.data import load_image_set
from utils.data.symmetry import may_be_mirrored, systematic_share


def image_set(folder, names, draw, count=150):
    """A set of `count` grey images of each class."""
    for number, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = draw(np.random.RandomState(1000 * number + i))
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{i}.png")
    return load_image_set(folder, (16, 16), None, quiet=True)


def blobs(chance):
    """A bright spot anywhere."""
    image = np.full((16, 16), 30.0)
    y, x = chance.randint(0, 13, 2)
    image[y : y + 4, x : x + 4] = 220
    return image


def blobs_on_the_left(chance):
    image = np.full((16, 16), 30.0)
    y, x = chance.randint(0, 13), chance.randint(0, 4)
    image[y : y + 4, x : x + 4] = 220
    return image


def test_the_share_that_is_systematic():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(400, 1, 8, 8, generator=generator)
    assert systematic_share(noise) < 0.02
    wedge = torch.linspace(-1, 1, 8).view(1, 1, 1, 8)
    # the wedge's own difference against that of the noise: 4 wedge^2 of 4 wedge^2 + 2
    expected = 4 * wedge.square().mean() / (4 * wedge.square().mean() + 2)
    assert abs(systematic_share(noise + wedge) - expected) < 0.05
    assert systematic_share(wedge.expand(30, 1, 8, 8)) == pytest.approx(1)
    assert systematic_share(torch.ones(30, 1, 8, 8)) == 0


def test_images_that_look_alike_either_way_round(tmp_path):
    assert may_be_mirrored(image_set(tmp_path, ["dots", "spots"], blobs))


@pytest.mark.parametrize("names", [["3", "spots"], ["dots", "left hand"]])
def test_names_that_say_no(tmp_path, names):
    assert not may_be_mirrored(image_set(tmp_path, names, blobs))


def test_one_class_that_points_one_way_says_no(tmp_path):
    image_set(tmp_path, ["dots"], blobs)
    assert not may_be_mirrored(image_set(tmp_path, ["spots"], blobs_on_the_left))


def test_too_few_images_say_nothing(tmp_path):
    assert not may_be_mirrored(image_set(tmp_path, ["dots", "spots"], blobs, count=10))


def test_shoes_point_one_way():
    assert not may_be_mirrored(load_image_set(DEMO, (28, 28), None, quiet=True))
