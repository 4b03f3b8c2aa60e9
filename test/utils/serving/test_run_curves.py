"""The curves of a run while it writes them."""

import csv
import math
import os

import numpy as np
import pytest

from utils.runs.evaluations import Evaluation, append_evaluation
from utils.runs.failures import Failures
from utils.runs.metrics_log import MetricsLog
from utils.serving import run_curves
from utils.serving.run_curves import EvaluationCurve, MetricsCurve, last_row


def row(step: int, **more: float) -> dict[str, float]:
    return {"step": step, "epoch": 1 + step // 10, "loss": 1 / step, "grad_norm": math.nan, **more}


def test_rows_appear_as_the_run_writes_them(tmp_path):
    log, curve = MetricsLog(tmp_path, Failures(tmp_path)), MetricsCurve(tmp_path)
    curve.update()
    assert curve.columns(100) == {}
    log.append([row(step) for step in range(1, 6)])
    curve.update()
    found = curve.columns(100)
    assert found["step"] == [1, 2, 3, 4, 5] and found["epoch"] == [1] * 5
    assert found["loss"] == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4, 1 / 5], rel=1e-5)
    assert found["grad_norm"] == [None] * 5
    # An evaluation adds to the last row in its place, and adds a column to the whole table.
    log.amend({"step": 5, "epoch": 1, "held_out_loss": 0.7})
    curve.update()
    assert curve.columns(100)["held_out_loss"] == [None] * 4 + [0.7]
    log.append([row(6)])
    curve.update()
    log.amend({"step": 6, "epoch": 1, "held_out_loss": 0.6})
    curve.update()
    assert curve.columns(100)["held_out_loss"] == [None] * 4 + [0.7, 0.6]
    log.cut_back(3)  # as a run that is resumed
    curve.update()
    assert curve.columns(100)["step"] == [1, 2, 3]
    log.append([row(4)])
    curve.update()
    assert curve.columns(100)["step"] == [1, 2, 3, 4]
    assert last_row(tmp_path)["step"] == 4
    log.close()


def test_half_a_row_and_damaged_rows_are_left_out(tmp_path):
    file, curve = tmp_path / "metrics.csv", MetricsCurve(tmp_path)
    file.write_bytes(b"step,epoch,lo")
    curve.update()
    assert curve.columns(10) == {} and last_row(tmp_path) == {}
    damaged = b"\x00\x00\n2,1,x,1\n3,1\n,1,0.3\n-4,1,0.1\n5,1,inf\n6,1,0.5,7\n"
    file.write_bytes(b"step,epoch,loss\n1,1,0.5\n" + damaged + b"7,1,0.25\n8,1,0.")
    curve.update()
    assert curve.columns(10)["step"] == [1, 5, 7]
    assert curve.columns(10)["loss"] == [0.5, None, 0.25]
    assert last_row(tmp_path)["step"] == 7
    with open(file, "ab") as stream:
        stream.write(b"125\n")
    curve.update()
    assert curve.columns(10)["loss"] == [0.5, None, 0.25, 0.125]


def test_a_long_run_is_averaged(tmp_path, monkeypatch):
    monkeypatch.setattr(run_curves, "MOST_POINTS", 50)
    losses = np.random.default_rng(0).random(1003)
    file, curve = tmp_path / "metrics.csv", MetricsCurve(tmp_path)
    for start in range(0, 1003, 100):  # in pieces, as it grows
        with open(file, "a", newline="") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            if start == 0:
                writer.writerow(["step", "epoch", "loss"])
            for step in range(start, min(start + 100, 1003)):
                writer.writerow([step + 1, 1, losses[step]])
        curve.update()
    found = curve.columns(20)
    assert len(found["step"]) <= 20 and found["step"][-1] == 1003
    assert found["loss"][-1] == pytest.approx(losses[-1], rel=1e-5)
    # Each point is the mean of all steps since the one before.
    start = 0
    for step, loss in zip(found["step"], found["loss"], strict=True):
        assert loss == pytest.approx(losses[start:step].mean(), rel=1e-5)
        start = step
    assert len(curve._groups) <= 100


def test_evaluations_without_single_images(tmp_path):
    curve = EvaluationCurve(tmp_path)
    curve.update()
    assert curve.all() == []
    losses = np.full((4, 2), 0.5)
    numbers = [0, 1, 2, 3]
    for step in (10, 20):
        scores = {"kid": 0.1, "kid_se": 0.01}
        evaluation = Evaluation(step, [3, 70], losses, 2 * losses, scores, "m", numbers, numbers)
        append_evaluation(tmp_path, evaluation)
        with open(tmp_path / "evaluations.jsonl", "a") as stream:
            stream.write('{"step": 15}\n[]\n')
        curve.update()
    first, second = curve.all()
    assert (first.step, second.step) == (10, 20) and second.scores["kid"] == 0.1
    assert (second.held_out_loss, second.training_loss) == (0.5, 1.0)


def test_a_metrics_file_that_is_a_link_is_not_read(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (tmp_path / "other.csv").write_text("step,epoch,loss\n1,1,1\n2,1,1\n")
    os.symlink(tmp_path / "other.csv", run / "metrics.csv")
    curve = MetricsCurve(run)
    curve.update()
    assert curve.columns(10) == {} and last_row(run) == {}
