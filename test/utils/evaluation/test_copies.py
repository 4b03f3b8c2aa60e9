"""Reports on copies, from folders of real images."""

import json
import shutil

import numpy as np
import pytest
import torch
from helpers import DEMO
from PIL import Image

from model.metrics.copy_threshold import wilson_interval
from utils.data import load_image_set
from utils.errors import ReadError, UserError
from utils.evaluation import copies
from utils.evaluation.copies import Features, TrainingImages, find_copies
from utils.evaluation.copy_report import share_line, write_table

SIZE = (28, 28)
COPIES = 5
NEW = 7


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """160 training images in two classes; as generated ones, mirrored copies and new images."""
    folder = tmp_path_factory.mktemp("copies")
    for name in ("bag", "boot"):
        (folder / "training" / name).mkdir(parents=True)
        for file in sorted((DEMO / name).iterdir())[:80]:
            shutil.copy(file, folder / "training" / name)
    (folder / "generated").mkdir()
    for number in range(COPIES):
        copy = Image.open(DEMO / "bag" / f"{number:03d}.png").transpose(Image.FLIP_LEFT_RIGHT)
        copy.save(folder / "generated" / f"copy {number}.png")
    for number in range(NEW):
        shutil.copy(
            DEMO / "boot" / f"{100 + number}.png", folder / "generated" / f"new {number}.png"
        )
    return folder


def image_set(folder, size=SIZE, mode="auto"):
    return load_image_set(folder, size, conditional=False, mode=mode, cache="ram", quiet=True)


@pytest.fixture(scope="module")
def report(folders):
    training, generated = (image_set(folders / name) for name in ("training", "generated"))
    return find_copies(training, generated, quiet=True)


def test_as_many_images_are_read_together_as_memory_should_hold():
    assert copies.read_at_once(1, (28, 28)) == 256
    assert copies.read_at_once(3, (1024, 1024)) == 21
    assert copies.read_at_once(4, (8192, 8192)) == 1


def test_the_closest_pairs_do_not_hold_their_batches(folders, monkeypatch):
    training, generated = (image_set(folders / name) for name in ("training", "generated"))
    images = TrainingImages(training, quiet=True)
    batches = copies.batches_of(generated)
    _, _, closest = copies._compare(images, next(batches), batches, None, quiet=True)
    assert len(closest) == COPIES + NEW
    assert {pair.pixels.untyped_storage().nbytes() for pair in closest} == {28 * 28}


def test_large_images_are_shown_smaller(tmp_path):
    for name, shade in (("training", 0), ("generated", 90)):
        (tmp_path / name).mkdir()
        for number in range(3):
            picture = Image.new("RGB", (900, 600), (shade, 40 * number, 200))
            picture.save(tmp_path / name / f"{number}.png")
    sets = (image_set(tmp_path / name, (600, 900)) for name in ("training", "generated"))
    report = find_copies(*sets, quiet=True)
    assert report.closest.shape == (6, 3, 150, 225)
    assert max(report.panel().size) < 6 * 240
    assert (report.closest[:, 2] == 200).all()


def test_copies_are_flagged_by_name(report):
    rows = report.rows()
    assert [row["file"] for row in rows if row["copy"]] == [f"copy {i}.png" for i in range(COPIES)]
    for number, row in enumerate(rows[:COPIES]):
        assert row["nearest"] == f"bag/{number:03d}.png" and row["distance"] == 0
    for row in rows[COPIES:]:
        assert row["distance"] > report.calibration.threshold
        assert row["nearest"].startswith("boot/")


def test_numbers_for_a_file(report):
    numbers = json.loads(json.dumps(report.to_dict()))
    assert numbers["flagged"] == COPIES and numbers["of"] == COPIES + NEW
    assert numbers["share"] == COPIES / (COPIES + NEW)
    assert tuple(numbers["interval"]) == wilson_interval(COPIES, COPIES + NEW)
    assert 0.01 < numbers["expected"] < 0.013 and numbers["threshold"] > 0.06
    keys = ("feature", "feature_threshold", "feature_flagged")
    assert [numbers[key] for key in keys] == [None, None, None]


def test_lines_for_people(report):
    text = "\n".join(report.lines())
    assert "5 of 12 images flagged as copies of training images: 41.7% (95% interval 19.3%" in text
    assert "1% is expected of new images" in text
    assert f"{report.calibration.threshold:.4f}" in text
    assert share_line(0, 1000, report.calibration).startswith("0 of 1,000 images")


def test_siblings_in_the_training_set_are_said(folders, tmp_path):
    shutil.copytree(folders / "training", tmp_path / "training")
    for file in sorted((tmp_path / "training" / "bag").iterdir())[:20]:
        shutil.copy(file, file.with_name(f"again {file.name}"))
    report = find_copies(
        image_set(tmp_path / "training"), image_set(folders / "generated"), quiet=True
    )
    assert report.flagged == COPIES  # the siblings have not changed what is a copy
    assert "of the training images have a near copy among the others" in "\n".join(report.lines())


@pytest.mark.parametrize("count", [1, 12])
def test_features_that_cannot_be_calibrated_say_nothing(folders, tmp_path, count):
    """On one image, or near copies alone; the pixels are compared all the same."""
    for i in range(count):
        (tmp_path / "same" / "all").mkdir(parents=True, exist_ok=True)
        file = next((folders / "training" / "bag").iterdir())
        shutil.copy(file, tmp_path / "same" / "all" / f"{i}.png")
    generated = image_set(folders / "generated")
    features = Features("f", torch.ones(count, 3), torch.rand(len(generated), 3))
    found = find_copies(image_set(tmp_path / "same"), generated, features=features, quiet=True)
    assert found.features is None and found.of == len(generated)
    assert "images flagged as copies" in "\n".join(found.lines())


def test_panel(report, folders):
    """Pairs, the closest first: a bag beside its mirror image."""
    panel = report.panel()
    assert report.closest.shape == (2 * (COPIES + NEW), 1, 28, 28)
    assert sorted(report.closest_places[:COPIES]) == list(range(COPIES))
    generated, nearest = report.closest[:2]
    assert torch.equal(generated, nearest.flip(-1))
    pixels = np.asarray(panel)
    shown = pixels[: 28 * 5, : 28 * 5][2::5, 2::5]  # enlarged by five
    assert np.array_equal(shown, generated[0].numpy())
    assert panel.width > 6 * 28 * 5 and panel.height > 4 * 28 * 5


def test_batches_give_the_same(report, folders):
    training, generated = (image_set(folders / name) for name in ("training", "generated"))
    pixels = torch.stack([generated[i][0] for i in range(len(generated))])
    again = find_copies(training, iter(pixels.split(5)), quiet=True)
    assert torch.equal(again.distance, report.distance) and again.nearest == report.nearest
    assert again.names[-1] == "00011"
    assert torch.equal(again.closest, report.closest)
    named = find_copies(training, pixels.split(5), names=report.names, quiet=True)
    assert named.rows() == report.rows()


def test_features_as_a_second_column(folders):
    training, generated = (image_set(folders / name) for name in ("training", "generated"))
    vectors = [
        torch.stack([images[i][0].float().mean(2).flatten() for i in range(len(images))])
        for images in (training, generated)  # the mean of each row
    ]
    report = find_copies(training, generated, features=Features("rows", *vectors), quiet=True)
    numbers = report.to_dict()
    assert numbers["feature"] == "rows" and numbers["feature_threshold"] > 0
    rows = report.rows()
    flagged = sum(row["feature_copy"] for row in rows)
    assert numbers["feature_flagged"] == flagged
    cosine = torch.nn.functional.cosine_similarity(vectors[1][:, None], vectors[0][None], dim=2)
    found = torch.tensor([row["feature_distance"] for row in rows])
    assert (found - (1 - cosine.amax(1))).abs().max() < 1e-5
    assert "by features (rows)" in report.lines()[-1]
    with pytest.raises(ValueError, match="features of 160 training and 3 generated"):
        few = Features("rows", vectors[0], vectors[1][:3])
        find_copies(training, generated, features=few, quiet=True)


def test_images_that_cannot_be_compared(folders, tmp_path):
    training = image_set(folders / "training")
    (tmp_path / "red").mkdir()
    Image.new("RGB", SIZE, "red").save(tmp_path / "red" / "0.png")
    with pytest.raises(UserError, match="generated images are in colour, but .* are grey"):
        find_copies(training, image_set(tmp_path / "red"), quiet=True)
    with pytest.raises(UserError, match="are 14x28, but .* at 28x28"):
        find_copies(training, image_set(folders / "generated", (14, 28)), quiet=True)
    with pytest.raises(UserError, match="no generated images"):
        find_copies(training, [], quiet=True)


def test_an_image_that_has_gone(folders, tmp_path):
    shutil.copytree(folders / "generated", tmp_path / "images")
    images = load_image_set(tmp_path / "images", SIZE, False, cache="none", quiet=True)
    images.retry_pauses = ()
    (tmp_path / "images" / "new 3.png").unlink()
    with pytest.raises(ReadError, match="new 3.png"):
        TrainingImages(images, quiet=True)


def test_a_table_that_cannot_be_written(tmp_path):
    with pytest.raises(UserError, match="cannot write .*missing"):
        write_table([{"file": "a"}], tmp_path / "missing" / "nearest.csv")
