"""labels.csv through the command lines: trained, resumed, fine-tuned and drawn."""

import csv
import shutil

import numpy as np
import pytest
from helpers import DEMO, TINY, assert_equal_states
from PIL import Image

from utils.runs.checkpoint import Checkpoint

SHORT = [*TINY, "--vis_interval_epochs", "1"]


@pytest.fixture
def folder(tmp_path):
    """12 images with labels and a number in a labels.csv."""
    root = tmp_path / "images"
    root.mkdir()
    files = [file for name in ("bag", "boot") for file in sorted((DEMO / name).iterdir())[:6]]
    with open(root / "labels.csv", "w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["file", "labels", "age"])
        for number, file in enumerate(files):
            name = f"{number}.png"
            shutil.copy(file, root / name)
            labels = [file.parent.name] + (["new"] if number % 3 == 0 else [])
            table.writerow([name, ",".join(labels), number if number % 2 else ""])
    return root


def pictures(folder):
    files = sorted(folder.glob("0*.png"))
    return np.stack([np.asarray(Image.open(file)).astype(int) for file in files])


def test_from_labels_to_images(script, folder, tmp_path):
    data = ["--dataset_path", folder, *SHORT, "--lr", "0.03", "--lr_func", "constant"]
    out = script("train", *data, "--epochs", 2).stdout
    assert "labels      3: bag, boot, new" in out
    assert "number      age: 6 +- 3.416, known of 6 images" in out
    run = tmp_path / "results/demo"
    assert (run / "samples/epoch_0002.png").exists()
    checkpoint = Checkpoint.read(run / "ema_last.pt")
    assert checkpoint.class_names == ["bag", "boot", "new"]
    assert checkpoint.numbers[0]["name"] == "age" and checkpoint.numbers[0]["mean"] == 6.0

    weights = ["--weight_path", run / "ema_last.pt", "--num_images", 2, "--sample_steps", 4]
    found = {}
    for name, options in {
        "both": ["--class_name", "new,bag"],
        "one": ["--class_name", "bag"],
        "old": ["--class_name", "bag", "--numbers", "age=11"],
        "young": ["--class_name", "bag", "--numbers", "age=1"],
        "all": [],
    }.items():
        script("generate", *weights, *options, "--generate_name", name)
        found[name] = pictures(tmp_path / "results" / name)
    assert Image.open(tmp_path / "results/both/00000.png").text["class"] == "new,bag"
    assert Image.open(tmp_path / "results/old/00000.png").text["numbers"] == "age=11.0"
    names = ["both", "one", "old", "young"]
    for i, name in enumerate(names):
        for other in names[:i]:
            assert np.abs(found[name] - found[other]).max() > 1, (name, other)


def test_a_labelled_run_resumes_to_the_bit(script, folder, tmp_path):
    data = ["--dataset_path", folder, *SHORT, "--lr_func", "constant"]
    script("train", *data, "--epochs", 3, "--run_name", "whole")
    script("train", *data, "--epochs", 1)
    script("train", *data, "--epochs", 3, "--resume")
    runs = tmp_path / "results"
    assert_equal_states(runs / "demo/ckpt_last.pt", runs / "whole/ckpt_last.pt")
    # other labels are other data
    text = (folder / "labels.csv").read_text()
    (folder / "labels.csv").write_text(text.replace("1.png,bag", "1.png,boot"))
    refused = script("train", *data, "--epochs", 4, "--resume", status=2).stderr
    assert "the images" in refused


@pytest.mark.fault
def test_two_processes_train_as_one(script, folder, tmp_path):
    data = ["--dataset_path", folder, *SHORT, "--epochs", 2, "--vis", "False"]
    data += ["--optim", "sgd", "--lr", 0.01]
    script("train", *data, "--batch_size", 4, "--run_name", "one")
    script("train", *data, "--batch_size", 2, "--distributed", "--run_name", "two")
    one, two = (
        Checkpoint.read(tmp_path / "results" / name / "ckpt_last.pt").network
        for name in ("one", "two")
    )
    assert max((one[name] - two[name]).abs().max() for name in one) < 1e-4


def test_fine_tuning_keeps_labels_of_the_same_name(script, folder, tmp_path):
    data = ["--dataset_path", folder, *SHORT, "--vis", "False", "--epochs", 1]
    script("train", *data)
    text = (folder / "labels.csv").read_text().replace("age", "size").replace("boot", "shoe")
    (folder / "labels.csv").write_text(text)
    weights = tmp_path / "results/demo/ema_last.pt"
    tuned = ["--pretrain", "--pretrain_path", weights, "--run_name", "tuned"]
    out = script("train", *data, *tuned).stdout
    assert "numbers that are new, and count nothing at first: size" in out
    without = ["--conditional", "False", "--run_name", "plain"]
    out = script("train", *data, *tuned, *without).stdout
    assert "this network is told no numbers" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--class_name", "bag,hat"], "known are 0 bag, 1 boot, 2 new"),
        (["--numbers", "weight=3"], "the network learned age"),
        (["--numbers", "age"], "names and numbers such as"),
    ],
)
def test_mistakes(script, folder, tmp_path, options, message):
    script("train", "--dataset_path", folder, *TINY, "--vis", "False", "--epochs", 1)
    weights = ["--weight_path", tmp_path / "results/demo/ema_last.pt"]
    assert message in script("generate", *weights, *options, status=2).stderr


def test_numbers_of_a_network_without(script):
    error = script("generate", "--numbers", "age=3", status=2).stderr
    assert "the network learned none" in error


def numbers_alone(folder):
    """The labels.csv without its labels."""
    with open(folder / "labels.csv", newline="") as stream:
        rows = list(csv.reader(stream))
    with open(folder / "labels.csv", "w", newline="") as stream:
        csv.writer(stream).writerows([name, age] for name, _, age in rows)


def test_images_are_guided_by_numbers_alone(script, folder, tmp_path):
    numbers_alone(folder)
    data = ["--dataset_path", folder, *TINY, "--vis", "False", "--epochs", 8, "--lr", 0.03]
    script("train", *data)
    script("train", *data, "--label_drop", 0, "--run_name", "undropped")
    runs = tmp_path / "results"
    assert Checkpoint.read(runs / "demo/ema_last.pt").class_names == []
    asked = ["--num_images", 2, "--sample_steps", 4, "--numbers", "age=11"]
    weights = ["--weight_path", runs / "demo/ema_last.pt"]
    for name, scale in {"usual": [], "1.5": ["--cfg_scale", 1.5], "1": ["--cfg_scale", 1]}.items():
        script("generate", *weights, *asked, *scale, "--generate_name", name)
    usual, guided, plain = (pictures(runs / name) for name in ("usual", "1.5", "1"))
    assert np.array_equal(usual, guided) and not np.array_equal(usual, plain)
    weights = ["--weight_path", runs / "undropped/ema_last.pt"]
    refused = script("generate", *weights, *asked, "--cfg_scale", 3, status=2).stderr
    assert "trained with --label_drop 0, without guidance" in refused
    script("generate", *weights, *asked)
