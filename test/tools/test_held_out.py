"""A run that holds images out, through its command line: what it says, keeps and resumes."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers import DEMO, TINY, assert_equal_states, metrics

from utils.data import load_image_set
from utils.runs.checkpoint import Checkpoint
from utils.runs.evaluations import read_evaluations

CLASSES = ("bag", "boot", "trouser")


@pytest.fixture
def many_images(tmp_path):
    """240 images of 28x28 in three classes."""
    for name in CLASSES:
        (tmp_path / "many" / name).mkdir(parents=True)
        for file in sorted((DEMO / name).glob("*.png"))[:80]:
            shutil.copy(file, tmp_path / "many" / name / file.name)
    return tmp_path / "many"


def options(images, *extra):
    """8 epochs of 14 steps or so."""
    usual = ["--dataset_path", images, *TINY, "--batch_size", 16, "--epochs", 8, "--vis", "False"]
    return [*usual, *extra]


def test_a_run_says_whether_it_is_done(script, many_images, tmp_path):
    often = ["--eval_interval_epochs", 2, "--optim", "adamw", "--lr", 2e-4]  # slow: not done yet
    out = script("train", *options(many_images, "--run_name", "a", *often)).stdout
    run = tmp_path / "results" / "a"
    evaluations, _ = read_evaluations(run)
    assert "of 240 images, to measure on" in out and "evaluation  every 2 epochs, 4 in all" in out
    assert len(evaluations) == 4 and evaluations[0].held_out.shape[1] == 8

    # Each time step has its columns, filled where it was measured and nowhere else.
    rows = {int(row["step"]): row for row in metrics(run)}
    measured = {step for step, row in rows.items() if row["held_out_loss"]}
    assert measured == {evaluation.step for evaluation in evaluations}
    assert len(rows) == max(rows)  # none twice
    for evaluation in evaluations:
        row = rows[evaluation.step]
        for name, value in evaluation.scalars().items():
            assert abs(float(row[name]) - value) < 1e-5
    columns = [name for name in rows[1] if name.startswith("training_loss_t")]
    assert len(columns) == 8

    # The best one is kept, and the last sentence names it.
    best = min(evaluations, key=lambda evaluation: evaluation.held_out_loss)
    for name in ("ckpt_best.pt", "ema_best.pt"):
        assert Checkpoint.read(run / name).state["step"] == best.step
    status = json.loads((run / "status.json").read_text())
    assert status["state"] == "finished" and status["step"] == max(rows)
    assert status["verdict"]["best_step"] == best.step and status["best_file"] == "ema_best.pt"
    assert status["sentence"] == out.splitlines()[-1]
    assert "not done" in status["sentence"] and "--epochs 16 --resume" in status["sentence"]
    assert status["sentence"] in (run / "log.txt").read_text()

    # The images that were held out are in no training step.
    config = json.loads((run / "config.json").read_text())["config"]
    assert config["data"]["images"] + len(config["data"]["held_out"]["images"]) <= 240
    assert config["data"]["images"] >= 200


def test_the_weights_do_not_depend_on_evaluations(script, many_images, tmp_path):
    for name, extra in (("often", ["--eval_interval_epochs", 1]), ("usual", [])):
        script("train", *options(many_images, "--run_name", name, "--epochs", 3, *extra))
    results = tmp_path / "results"
    assert_equal_states(results / "often" / "ckpt_last.pt", results / "usual" / "ckpt_last.pt")
    assert len(read_evaluations(results / "often")[0]) == 3


def test_resumed_at_an_evaluation_as_if_nothing_had_happened(script, many_images, tmp_path):
    """Killed after the save and before the evaluation, and after the evaluation: the same rows."""
    evaluate = ["--eval_interval_epochs", 2, "--save_model_interval", "True"]
    evaluate += ["--save_model_interval_epochs", 2]
    script("train", *options(many_images, "--run_name", "whole", *evaluate))
    whole = tmp_path / "results" / "whole"
    for is_measured in (False, True):
        cut = tmp_path / "results" / f"cut{is_measured}"
        shutil.copytree(whole, cut)
        if not is_measured:
            steps = [evaluation.step for evaluation in read_evaluations(whole)[0]]
            lines = (cut / "evaluations.jsonl").read_text().splitlines(keepends=True)
            (cut / "evaluations.jsonl").write_text(lines[0])
            table = (cut / "metrics.csv").read_text().splitlines(keepends=True)
            header = table[0].rstrip("\n").split(",")
            empty = header.index("held_out_loss")
            row = table[steps[1]].rstrip("\n").split(",")
            table[steps[1]] = ",".join(row[:empty] + [""] * (len(header) - empty)) + "\n"
            (cut / "metrics.csv").write_text("".join(table))
        again = ["--run_name", cut.name, "--resume", "--start_epoch", 4]
        script("train", *options(many_images, *evaluate, *again))
        assert_equal_states(whole / "ckpt_last.pt", cut / "ckpt_last.pt")
        assert (cut / "evaluations.jsonl").read_text() == (whole / "evaluations.jsonl").read_text()
        ours, theirs = metrics(cut), metrics(whole)
        for name in ("images_per_second",):
            for row in ours + theirs:
                row.pop(name)
        assert ours == theirs


def images_of(folder):
    return load_image_set(folder, (8, 8), conditional=True, cache="ram", quiet=True)


def pixels_of(folder, places) -> set[int]:
    """The checksums of the images at these places."""
    return set(images_of(folder).checksums[places].tolist())


def test_the_split_of_a_run_stays(script, many_images, tmp_path):
    """With its images, with more images, and where another share is asked for."""
    script("train", *options(many_images, "--run_name", "a", "--epochs", 1))
    run = tmp_path / "results" / "a"
    before = Checkpoint.read(run / "ckpt_last.pt").held_out
    held_out = pixels_of(many_images, before["images"])
    script("train", *options(many_images, "--run_name", "a", "--epochs", 2, "--resume"))
    assert Checkpoint.read(run / "ckpt_last.pt").held_out == before

    refused = ["--run_name", "a", "--epochs", 3, "--resume", "--val_fraction", 0.3]
    done = script("train", *options(many_images, *refused), status=2)
    assert f"val_fraction {before['share']} before, 0.3 now" in done.stderr

    for file in sorted((DEMO / "bag").glob("*.png"))[80:120]:
        shutil.copy(file, many_images / "bag" / file.name)
    again = ["--run_name", "a", "--epochs", 3, "--resume"]
    done = script("train", *options(many_images, *again), status=2)
    assert "the images" in done.stderr
    script("train", *options(many_images, *again, "--allow_changes"))
    after = Checkpoint.read(run / "ckpt_last.pt").held_out
    assert held_out <= pixels_of(many_images, after["images"])
    assert after["share"] == before["share"]

    # A held-out file that is lost is noticed, although the training images are the same.
    Path(many_images / images_of(many_images).files[after["images"][0]]).unlink()
    again = ["--run_name", "a", "--epochs", 4, "--resume"]
    done = script("train", *options(many_images, *again), status=2)
    assert "the images held out" in done.stderr and "the images " in done.stderr
    out = script("train", *options(many_images, *again, "--allow_changes")).stdout
    assert "other images are held out than before" in out


def test_runs_of_earlier_versions_go_on_with_all_their_images(script, many_images, tmp_path):
    script("train", *options(many_images, "--run_name", "a", "--epochs", 1, "--val_fraction", 0))
    run = tmp_path / "results" / "a"
    contents = torch.load(run / "ckpt_last.pt", weights_only=True)
    del contents["config"]["data"]["held_out"]
    torch.save(contents, run / "ckpt_last.pt")
    script("train", *options(many_images, "--run_name", "a", "--epochs", 2, "--resume"))
    data = Checkpoint.read(run / "ckpt_last.pt").config["data"]
    assert data["images"] == 240 and data["held_out"]["images"] == []


def test_few_images_and_none_held_out(script, images, many_images, tmp_path):
    out = script(
        "train", "--dataset_path", images, *TINY, "--run_name", "few", "--epochs", 1
    ).stdout
    assert "held out    no images" in out
    assert out.splitlines()[-1].startswith("Whether it is done is not known")
    idle = ["--val_fraction", 0, "--plan", "True", "--eval_interval_epochs", 2]
    out = script("train", *options(many_images, "--run_name", "n", *idle)).stdout
    assert "held out    no images" in out and "--eval_interval_epochs 2 has no effect" in out
    done = script("train", *options(many_images, "--eval_images", 2), status=2)
    assert "--eval_images 2 is too few for a KID" in done.stderr
    done = script("train", *options(images, "--run_name", "b", "--val_fraction", 0.1), status=2)
    assert "--val_fraction 0.1 of 13 images holds out" in done.stderr


@pytest.mark.parametrize("field", ["share", "images", "unused"])
def test_a_split_that_makes_no_sense_is_refused(script, many_images, tmp_path, field):
    script("train", *options(many_images, "--run_name", "a", "--epochs", 1))
    file = tmp_path / "results" / "a" / "ckpt_last.pt"
    contents = torch.load(file, weights_only=True)
    contents["config"]["data"]["held_out"][field] = "nonsense"
    torch.save(contents, file)
    done = script(
        "train", *options(many_images, "--run_name", "a", "--epochs", 2, "--resume"), status=2
    )
    assert "held_out" in done.stderr


def test_evaluate_reads_the_verdict_of_a_run(script, many_images, tmp_path):
    often = ["--eval_interval_epochs", 2, "--optim", "adamw", "--lr", 2e-4]  # slow: not done yet
    trained = script("train", *options(many_images, "--run_name", "a", *often)).stdout
    run = tmp_path / "results" / "a"
    before = {path.name for path in run.iterdir()}
    done = script("evaluate", "--run", run, "--json", tmp_path / "verdict.json").stdout
    assert trained.splitlines()[-1] in done.splitlines()
    assert json.loads((tmp_path / "verdict.json").read_text())["sentence"] in done
    assert (tmp_path / "results" / "evaluation" / "curves.png").exists()
    assert {path.name for path in run.iterdir()} == before
    assert "is no folder of a run" in script("evaluate", "--run", many_images, status=2).stderr


@pytest.mark.metrics
def test_kid_at_each_evaluation(script, many_images, tmp_path):
    """Also on two processes, and in the place of the held-out loss where nothing is held out."""
    kid = ["--eval_images", 12, "--eval_interval_epochs", 4, "--val_fraction", 0]
    kid += ["--optim", "sgd", "--lr", 0.01]  # muon makes more of what rounding does
    out = script("train", *options(many_images, "--run_name", "a", *kid)).stdout
    assert "the KID of 12 generated images" in out
    found, _ = read_evaluations(tmp_path / "results" / "a")
    assert len(found) == 2 and all(each.time_steps == [] for each in found)
    again = ["--run_name", "b", "--distributed", "--world_size", 2, "--batch_size", 8]
    script("train", *options(many_images, *kid, *again))
    for one, two in zip(found, read_evaluations(tmp_path / "results" / "b")[0], strict=True):
        for name in ("kid", "kid_se"):
            assert abs(one.scores[name] - two.scores[name]) < 1e-3
    rows = metrics(tmp_path / "results" / "a")
    assert {int(row["step"]) for row in rows if row["kid"]} == {each.step for each in found}
    best = min(found, key=lambda each: each.scores["kid"])
    assert Checkpoint.read(tmp_path / "results" / "a" / "ema_best.pt").state["step"] == best.step
