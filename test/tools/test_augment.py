"""--augment through the command line: what is told, resumed, fine-tuned and drawn."""

import json

import pytest
from helpers import TINY, assert_equal_states, copy_some

from model.augmentation import NUMBERS
from utils.runs.checkpoint import Checkpoint
from utils.training.recipe import AUGMENTATION, FEW_IMAGES, usual_augmentation

WEIGHT = "condition.augmentation.weight"
SHORT = [*TINY, "--vis", "False"]


@pytest.fixture
def data(tmp_path):
    return ["--dataset_path", copy_some(tmp_path / "images"), *SHORT]


def test_small_sets_are_augmented_and_the_config_says_so(script, data, tmp_path):
    out = script("train", *data, "--epochs", 1).stdout
    run = tmp_path / "results" / "demo"
    config = json.loads((run / "config.json").read_text())["config"]
    assert config["network"]["augmentation"] == NUMBERS
    assert config["training"]["augment"] == AUGMENTATION
    assert f"augment     {AUGMENTATION:g}: images are mirrored" in out
    assert Checkpoint.read(run / "ema_last.pt").ema[WEIGHT].abs().max() > 0
    script("generate", "--weight_path", run / "ema_last.pt", "--num_images", 2)
    assert usual_augmentation(FEW_IMAGES) == 0


def test_an_augmented_run_resumes_to_the_bit(script, data, tmp_path):
    whole = ["--augment", 0.5, "--epochs", 3, "--lr_func", "constant"]
    script("train", *data, *whole, "--run_name", "whole")
    script("train", *data, "--augment", 0.5, "--epochs", 1, "--lr_func", "constant")
    script("train", *data, "--epochs", 3, "--lr_func", "constant", "--resume")
    runs = tmp_path / "results"
    assert_equal_states(runs / "demo/ckpt_last.pt", runs / "whole/ckpt_last.pt")


def test_another_augmentation_is_refused_on_resume(script, data):
    script("train", *data, "--augment", 0.5, "--epochs", 1)
    refused = script("train", *data, "--augment", 0.2, "--epochs", 2, "--resume", status=2)
    assert "augment 0.5 before, 0.2 now" in refused.stderr


@pytest.mark.parametrize(("before", "now"), [(0.0, 0.3), (0.3, 0.0)])
def test_fine_tuning_adds_it_or_takes_it_away(script, data, tmp_path, before, now):
    script("train", *data, "--augment", before, "--epochs", 1)
    weights = tmp_path / "results/demo/ema_last.pt"
    options = ["--augment", now, "--epochs", 1, "--run_name", "tuned"]
    out = script("train", *data, *options, "--pretrain", "--pretrain_path", weights).stdout
    assert ("without --augment" in out) == (now > 0)
    assert ("with --augment" in out) == (now == 0)
    tuned = Checkpoint.read(tmp_path / "results/tuned/ema_last.pt")
    assert (WEIGHT in tuned.ema) == (now > 0)
