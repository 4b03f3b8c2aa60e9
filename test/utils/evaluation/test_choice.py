"""Which images are compared: folders, classes, halves, proportions."""

import os

import numpy as np
import pytest
import torch
from helpers import DEMO
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from utils.evaluation.distribution import (
    ALL_IMAGES,
    Plan,
    TooFewImages,
    choose_rows,
    common_classes,
    plan_comparison,
)
from utils.evaluation.extract import Facts, FeatureSet, SameSizeBatches
from utils.evaluation.from_weights import class_folder_names, in_proportion, labels_like
from utils.evaluation.image_folder import open_folder
from utils.evaluation.picture import nearest
from utils.pictures import save_image


def make(root, **classes):
    """Empty files with the names of images."""
    for name, count in classes.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            (root / name / f"{i}.png").touch()
    return root


def test_each_part_of_the_order_has_the_classes_in_proportion(tmp_path):
    folder = open_folder(make(tmp_path, a=60, b=30, c=10), "REAL")
    order = folder.order()
    assert sorted(order) == list(range(100))
    assert folder.class_counts() == {"a": 60, "b": 30, "c": 10}
    for start in range(0, 100, 20):
        part = np.bincount(folder.labels[order[start : start + 20]], minlength=3)
        assert np.abs(part - [12, 6, 2]).max() <= 1
    assert (order == open_folder(tmp_path, "REAL").order()).all()
    of_a = [place for place in order if folder.labels[place] == 0]
    assert of_a != sorted(of_a)  # at random within a class


def test_classes_are_folders_that_hold_all_images(tmp_path):
    folder = open_folder(make(tmp_path / "two", a=2, b=1), "REAL")
    assert folder.class_names == ["a", "b"] and folder.labels.tolist() == [0, 0, 1]
    (tmp_path / "two" / "beside.png").touch()
    folder = open_folder(tmp_path / "two", "REAL")
    assert folder.class_names == [] and set(folder.labels) == {-1}
    assert "1 images lie beside the folders a, b: no figures per class" in folder.remarks[0]
    assert open_folder(make(tmp_path / "one", a=2), "REAL").class_names == []
    (remark,) = open_folder(make(tmp_path / "parts", train=2, test=1), "REAL").remarks
    assert "test, train look like parts of a data set" in remark
    one = open_folder(DEMO, "REAL")
    other = open_folder(make(tmp_path / "other", bag=1, car=1), "GENERATED")
    assert common_classes(one, one)[0].names == one.class_names
    classes, remark = common_classes(one, other)
    assert classes is None and "REAL alone has boot, coat" in remark
    assert "GENERATED alone has car" in remark


def test_generate_s_own_overview_is_no_image_of_the_set(tmp_path):
    for name in ("00000.png", "00001.png", "grid.png", "denoising.webp"):
        (tmp_path / name).touch()
    folder = open_folder(tmp_path, "GENERATED")
    assert list(folder.names) == ["00000.png", "00001.png"]
    (line,) = folder.account.lines(folder.role)
    assert "overview" in line and "denoising.webp, grid.png" in line
    (tmp_path / "00000.png").unlink()  # then it is a folder of somebody's own
    assert len(open_folder(tmp_path, "GENERATED")) == 3
    os.rename(tmp_path / "00001.png", tmp_path / "grid-2.png")
    assert len(open_folder(tmp_path, "GENERATED")) == 3


def test_nor_are_its_films_and_masks(tmp_path):
    (tmp_path / "masks").mkdir()
    files = ("00000.png", "interpolation.webp", "masks/00000.png", "masks/photo.png")
    for name in (*files, "masks/00001.png"):  # whose image somebody has removed
        (tmp_path / name).touch()
    folder = open_folder(tmp_path, "GENERATED")
    assert list(folder.names) == ["00000.png", "masks/photo.png"]


def test_a_class_may_be_called_masks(tmp_path):
    """Images of generate.py in folders of classes are no masks: none lies beside their folder."""
    text = PngInfo()
    for key in ("seed", "sampler"):
        text.add_text(key, "1")
    for name in ("faces/00000.png", "faces/00001.png", "masks/00002.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (8, 8)).save(tmp_path / name, pnginfo=text)
    folder = open_folder(tmp_path, "GENERATED")
    assert len(folder.names) == 3


@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_nor_is_an_overview_of_images_that_are_called_like_their_conditions(tmp_path, ending):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    picture = Image.new("L", (8, 8))
    for name in ("a/x.png", "b/y.png"):
        save_image(picture, tmp_path / name, {"seed": 1, "sampler": "ddim"})
    save_image(picture, tmp_path / f"grid.{ending}")
    folder = open_folder(tmp_path, "GENERATED")
    assert list(folder.names) == ["a/x.png", "b/y.png"] and folder.class_names == ["a", "b"]
    save_image(picture, tmp_path / "a/x.png")  # of somebody's own
    assert len(open_folder(tmp_path, "GENERATED")) == 3


def feature_set(count):
    """Feature i is the number i."""
    rows = torch.arange(count)[:, None].float()
    return FeatureSet(rows, np.arange(count), Facts(), [b""] * count)


@pytest.mark.parametrize(
    ("real", "generated", "asked", "expected"),
    [  # expected: real, generated, the two halves
        (40, 15, None, (range(15), range(15), range(15), range(15, 30))),
        (20, 15, None, (range(10), range(10), range(10), range(10, 20))),
        (20, 15, 12, (range(12), range(12), range(10), range(10, 20))),
        (40, 15, 12, (range(12), range(12), range(12), range(12, 24))),
        (21, 15, ALL_IMAGES, (range(21), range(15), range(10), range(10, 20))),
    ],
)
def test_the_floor_is_between_two_halves(tmp_path, real, generated, asked, expected):
    one = open_folder(make(tmp_path / "one", a=real), "REAL")
    two = open_folder(make(tmp_path / "two", a=generated), "GENERATED")
    plan = plan_comparison(one, two, asked)
    sets = feature_set(len(plan.real)), feature_set(len(plan.generated))
    chosen = choose_rows(*sets, plan, torch.device("cpu"))
    found = (chosen.real, chosen.generated, chosen.first, chosen.second)
    assert [part.features()[:, 0].tolist() for part in found] == [list(part) for part in expected]
    assert set(plan.real) <= set(range(real)) and len(set(plan.real)) == len(plan.real)


def test_broken_images_lessen_n_on_both_sides():
    plan = Plan(np.arange(40), np.arange(20), 20, is_default=True)
    chosen = choose_rows(feature_set(37), feature_set(19), plan, torch.device("cpu"))
    sizes = [len(part) for part in (chosen.real, chosen.generated, chosen.first, chosen.second)]
    assert sizes == [18] * 4
    with pytest.raises(TooFewImages, match="11 of REAL and 20 of GENERATED"):
        choose_rows(feature_set(11), feature_set(20), plan, torch.device("cpu"))


def test_classes_in_proportion(tmp_path):
    labels = in_proportion([60, 30, 10], 50)
    assert np.bincount(labels).tolist() == [30, 15, 5]
    assert np.abs(np.bincount(labels[:10], minlength=3) - [6, 3, 1]).max() <= 1
    assert np.bincount(in_proportion([1, 1, 1], 50)).tolist() in ([17, 17, 16], [17, 16, 17])
    assert len(in_proportion([5, 0, 7], 13)) == 13 and 1 not in in_proportion([5, 0, 7], 13)
    folder = open_folder(make(tmp_path / "real", b=9, a=1), "REAL")
    labels, remark = labels_like(folder, ["b", "a"], 20)  # the network's own order
    assert np.bincount(labels).tolist() == [18, 2] and remark == ""
    labels, remark = labels_like(folder, ["a", "c"], 4)
    assert labels == [0, 1, 0, 1] and "the classes take turns" in remark
    assert labels_like(folder, [], 4) == (None, "")


def test_a_class_name_chooses_no_path():
    names = ["ship", "../up", "a\0b", "x" * 300, "..", ".hidden", "鞋", " ", "__MACOSX"]
    expected = ["ship", *(f"class {i}" for i in range(1, 6)), "鞋", "class 7", "class 8"]
    assert class_folder_names(names) == expected


def test_no_two_classes_have_one_folder():
    assert class_folder_names(["class 1", "a/b", "class 1_"]) == [
        "class 1",
        "class 1__",
        "class 1_",
    ]


def test_images_of_one_size_share_a_batch():
    batches = SameSizeBatches(batch_size=2, largest_waiting=10 * 3 * 16)
    small = np.zeros((4, 4, 3), np.uint8)
    large = np.zeros((8, 16, 3), np.uint8)
    found = []
    for row, image in enumerate([small, large, small, small, large, large]):
        found += [[place for place, _ in batch] for batch in batches.add(row, image)]
    found += [[place for place, _ in batch] for batch in batches.rest()]
    assert found == [[0, 2], [1, 4], [3], [5]]
    crowd = SameSizeBatches(batch_size=100, largest_waiting=3 * small.nbytes)
    found = [len(batch) for row in range(9) for batch in crowd.add(row, small)]
    assert found == [4, 4]


def test_nearest_neighbours():
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(1500, 7, generator=generator)
    references = torch.randn(2300, 7, generator=generator)
    distances, rows = nearest(queries, references)
    exact = torch.cdist(queries.double(), references.double())
    assert (rows == exact.argmin(1)).all()
    assert (distances - exact.min(1).values).abs().max() < 1e-4
