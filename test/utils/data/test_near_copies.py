"""Near copies within a set, and that none of them straddles a split."""

import json
import shutil

import numpy as np
import pytest
from helpers import DEMO, TINY
from PIL import Image, ImageOps

from utils.data import load_image_set, near_copies
from utils.data.near_copies import near_copy_finder
from utils.data.split import split_set


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """240 images: 54 of four classes, of which 6 have a mirrored or a shifted copy too."""
    root = tmp_path_factory.mktemp("near_copies")
    for name in ("bag", "boot", "dress", "sandal"):
        (root / name).mkdir()
        files = sorted((DEMO / name).glob("*.png"))
        for file in files[:54]:
            shutil.copy(file, root / name)
        for i, file in enumerate(files[:6]):
            image = Image.open(file)
            copy = ImageOps.mirror(image) if i % 2 else image.rotate(0, translate=(1, 0))
            copy.save(root / name / f"copy_{file.name}")
    return root


@pytest.fixture(scope="module")
def images(folder):
    return load_image_set(folder, (28, 28), conditional=True, cache="ram", quiet=True)


def original(name: str) -> str:
    return name.replace("copy_", "")


@pytest.mark.parametrize("at_once", [7, 4096])
def test_copies_are_found_wherever_they_lie(images, monkeypatch, at_once):
    monkeypatch.setattr(near_copies, "SEARCHED_AT_ONCE", at_once)
    places = np.arange(0, len(images), 9)
    everything = np.ones(len(images), bool)
    found: dict = {place: set() for place in places.tolist()}
    for place, near in near_copy_finder(images, quiet=True)(places, lambda place: everything):
        found[place] |= set(near.tolist()) - {place}
    names = list(images.files)
    for place, near in found.items():
        partners = [
            i
            for i, name in enumerate(names)
            if i != place and original(name) == original(names[place])
        ]
        assert set(partners) <= near
        assert len(near) <= len(partners) + 3  # few others are that close


def test_no_pair_straddles(images):
    split = split_set(
        images.checksums, images.label_table(), None, near_copy_finder(images, quiet=True)
    )
    assert len(split.held_out) >= 20 and len(split.unused) > 0
    names = list(images.files)
    trained = {original(names[place]) for place in split.training(len(images))}
    assert not {original(names[place]) for place in split.held_out} & trained


def test_a_run_trains_on_no_near_copy_of_what_it_is_measured_on(script, folder, tmp_path):
    options = [*TINY, "--image_size", 28, "--batch_size", 32, "--epochs", 1, "--vis", "False"]
    out = script("train", "--dataset_path", folder, *options, "--run_name", "a").stdout
    assert "near copies of training images used for neither" in out
    config = json.loads((tmp_path / "results" / "a" / "config.json").read_text())["config"]
    held_out = config["data"]["held_out"]
    count = len(held_out["images"]) + len(held_out["unused"])
    assert config["data"]["images"] == 240 - count and len(held_out["unused"]) > 0
