"""evaluate.py --copies through its command line: no feature network is needed."""

import csv
import json
import shutil

import numpy as np
import pytest
from helpers import DEMO
from PIL import Image, ImageOps

NO_FEATURES = ("--features", "none")


def some_files(name: str, start: int, count: int):
    return sorted((DEMO / name).glob("*.png"))[start : start + count]


@pytest.fixture
def folders(tmp_path):
    """60 training images; 6 mirrored copies of them among 12 generated ones."""
    train, made = tmp_path / "train", tmp_path / "made"
    made.mkdir()
    for name in ("boot", "trouser"):
        (train / name).mkdir(parents=True)
        for file in some_files(name, 0, 30):
            shutil.copy(file, train / name)
        for file in some_files(name, 0, 3):
            ImageOps.mirror(Image.open(file)).save(made / f"copy_{name}_{file.name}")
        for file in some_files("bag", 0, 3):
            shutil.copy(file, made / f"new_{name}_{file.name}")
    return train, made


def evaluate(script, folders, tmp_path, *extra, status=0):
    train, made = folders
    options = [train, made, "--copies", train, *NO_FEATURES, "--json", tmp_path / "found.json"]
    return script("evaluate", *options, *extra, status=status)


def test_copies_are_found_by_name(script, folders, tmp_path):
    out = evaluate(script, folders, tmp_path).stdout
    assert "6 of 12 images flagged as copies of training images: 50.0%" in out
    assert "3% is expected of new images" in out  # of 60 training images
    found = json.loads((tmp_path / "found.json").read_text())["copies"]
    assert found["flagged"] == 6 and found["of"] == 12 and found["share"] == 0.5
    assert found["expected"] == 2 / 61 and found["interval"][0] < 0.5 < found["interval"][1]
    with open(tmp_path / "results" / "evaluation" / "copies.csv", newline="") as file:
        rows = {row["file"]: row for row in csv.DictReader(file)}
    assert len(rows) == 12
    for name, row in rows.items():
        assert (row["copy"] == "True") == name.startswith("copy_")
        if name.startswith("copy_"):
            _, kind, original = name.split("_", 2)
            assert row["nearest"] == f"{kind}/{original}" and float(row["distance"]) < 0.01
    panel = Image.open(tmp_path / "results" / "evaluation" / "copies.png")
    assert panel.width > 2 * 28


def test_without_the_packages_for_features(script, folders, tmp_path):
    """The copy test is done whether or not they are installed."""
    train, made = folders
    out = script("evaluate", train, made, "--copies", train).stdout
    assert "6 of 12 images flagged" in out


def test_mixed_sizes_need_a_size(script, folders, tmp_path):
    train, made = folders
    Image.open(next(made.iterdir())).resize((40, 40)).save(made / "larger.png")
    said = evaluate(script, folders, tmp_path, status=2).stderr
    assert "2 (28x28, 40x40, ...): pass --image_size" in said
    out = evaluate(script, folders, tmp_path, "--image_size", 28).stdout
    assert "of 13 images flagged" in out


def test_grey_against_colour_is_said(script, folders, tmp_path):
    train, made = folders
    red = np.zeros((28, 28, 3), np.uint8)
    red[..., 0] = 200
    Image.fromarray(red).save(made / "red.png")
    out = evaluate(script, folders, tmp_path).stdout
    assert "are grey and the generated ones colour: they are compared in colour" in out
    assert "6 of 13 images flagged" in out


def test_broken_images_are_left_out_by_name(script, folders, tmp_path):
    train, made = folders
    (made / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(20))
    (train / "boot" / "cut.png").write_bytes(some_files("boot", 40, 1)[0].read_bytes()[:100])
    out = evaluate(script, folders, tmp_path).stdout
    assert "left out of GENERATED: broken.png" in out and "left out of TRAIN: boot/cut.png" in out
    assert "6 of 12 images flagged" in out


def test_nothing_readable_to_compare(script, folders, tmp_path):
    train, made = folders
    for file in made.iterdir():
        file.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(20))
    assert "can be read" in evaluate(script, folders, tmp_path, status=2).stderr
    said = script("evaluate", train, made, "--copies", tmp_path / "no", status=2).stderr
    assert "does not exist" in said


@pytest.mark.metrics
def test_features_as_a_second_opinion_on_larger_images(script, tmp_path):
    train, made = tmp_path / "train", tmp_path / "made"
    for folder in (train, made):
        folder.mkdir()
    for file in some_files("boot", 0, 30) + some_files("bag", 0, 30):
        name = f"{file.parent.name}_{file.name}"
        Image.open(file).resize((64, 64)).save(train / name)
        if file in some_files("boot", 0, 8):
            ImageOps.mirror(Image.open(file).resize((64, 64))).save(made / name)
    out = script("evaluate", train, made, "--copies", train, "--json", tmp_path / "f.json").stdout
    assert "by features (EffNet): " in out
    found = json.loads((tmp_path / "f.json").read_text())["copies"]
    assert found["flagged"] == 8 and found["feature"] == "EffNet" and found["feature_flagged"] >= 1
