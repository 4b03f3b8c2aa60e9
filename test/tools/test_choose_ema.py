"""--ema_snapshots and choose_ema.py through their command lines."""

import shutil

import pytest
import torch
from helpers import TINY, assert_equal_states, copy_some

from utils.evaluation.averages import average_of, snapshots_of
from utils.runs.checkpoint import Checkpoint
from utils.runs.files import read_checkpoint

SHORT = [*TINY, "--vis", "False"]
KEPT = ["--ema_snapshots", 4]


@pytest.fixture
def data(tmp_path):
    return ["--dataset_path", copy_some(tmp_path / "images"), *SHORT]


def test_a_run_keeps_snapshots_and_resumes_to_the_bit(script, data, tmp_path):
    runs = tmp_path / "results"
    options = [*KEPT, "--lr_func", "constant"]
    script("train", *data, *options, "--epochs", 4, "--run_name", "whole")
    kept = sorted(file.name for file in (runs / "whole/averages").iterdir())
    assert kept == [f"step_{step:09d}.pt" for step in (4, 8, 12, 16)]
    assert read_checkpoint(runs / "whole/ema_last.pt").keys().isdisjoint({"averages", "optimizer"})
    # interrupted after two epochs
    script("train", *data, *options, "--epochs", 4, "--save_model_interval", "True",
           "--save_model_interval_epochs", 2)  # fmt: skip
    shutil.rmtree(runs / "demo/averages")
    script("train", *data, *options, "--epochs", 4, "--resume", "--start_epoch", 2)
    assert_equal_states(runs / "demo/ckpt_last.pt", runs / "whole/ckpt_last.pt")
    for name in kept[1:]:
        ours, theirs = (
            read_checkpoint(runs / run / "averages" / name)["averages"] for run in ("demo", "whole")
        )
        for length, weights in ours.items():
            for key, value in weights.items():
                assert torch.equal(value, theirs[length][key])


def test_averages_of_an_abandoned_end_are_not_mixed_in(script, data, tmp_path):
    """A run that goes back to an earlier epoch, and on from there otherwise."""
    numbered = ["--save_model_interval", "True", "--save_model_interval_epochs", 1]
    script("train", *data, *KEPT, *numbered, "--epochs", 4)
    again = ["--resume", "--start_epoch", 1, "--allow_changes", "--lr", 0.01, "--epochs", 3]
    script("train", *data, *KEPT, *again)
    assert {each.step for each in snapshots_of(tmp_path / "results/demo")} == {4, 6, 9, 12}


def test_the_average_of_a_kept_length_is_that_one(script, data, tmp_path):
    script("train", *data, *KEPT, "--epochs", 4, "--ema_length", 0.1)
    run = tmp_path / "results/demo"
    snapshots = snapshots_of(run)
    assert len(snapshots) == 8
    rebuilt = average_of(snapshots, 0.1)
    kept = Checkpoint.read(run / "ema_last.pt").ema
    assert max((rebuilt[name] - kept[name]).abs().max() for name in kept) < 1e-5
    other = average_of(snapshots, 0.2)
    assert max((other[name] - kept[name]).abs().max() for name in kept) > 1e-5


def test_runs_without_snapshots_are_as_before(script, data, tmp_path):
    script("train", *data, "--epochs", 1)
    run = tmp_path / "results/demo"
    assert not (run / "averages").exists()
    assert "averages" not in read_checkpoint(run / "ckpt_last.pt")
    done = script("choose_ema", run, tmp_path / "images", status=2)
    assert "--ema_snapshots 8" in done.stderr or "requirements-metrics" in done.stderr


def test_a_run_may_begin_to_keep_them(script, data):
    script("train", *data, "--epochs", 1)
    out = script("train", *data, *KEPT, "--epochs", 2, "--resume").stdout
    assert "they start from its EMA" in out


@pytest.mark.metrics
def test_the_best_length_is_written(script, data, tmp_path):
    script("train", *data, *KEPT, "--epochs", 4)
    run = tmp_path / "results/demo"
    options = ["--num_images", 6, "--sample_steps", 2, "--lengths", 0.05, 0.2, "--use_gpu", -1]
    results = tmp_path / "results"
    out = script("choose_ema", run, tmp_path / "images", *options, "--result_path", results).stdout
    assert "ema_chosen.pt" in out
    chosen = Checkpoint.read(run / "ema_chosen.pt")
    length = chosen.config["training"]["ema_length"]
    assert length in (0.05, 0.2)
    expected = average_of(snapshots_of(run), length)
    assert max((chosen.ema[name] - expected[name]).abs().max() for name in expected) == 0
    assert (results / "ema/ema.png").exists()
    assert "| 0.05 |" in (results / "ema/ema.md").read_text().replace("**", "")
    script("generate", "--weight_path", run / "ema_chosen.pt", "--num_images", 1)
