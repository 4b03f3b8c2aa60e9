"""The verdict on a run, read from its folder."""

import json

import numpy as np
import pytest
from PIL import Image

from utils.errors import UserError
from utils.evaluation.curves import HELD_OUT, TRAINING, draw_curves
from utils.evaluation.run_report import MOST_ROWS, read_run, thinned
from utils.runs.evaluations import Evaluation, append_evaluation
from utils.runs.files import save_checkpoint


def evaluation(step: int, level: float, **scores: float) -> Evaluation:
    spread = np.linspace(0.9, 1.1, 12)[:, None] * np.ones((1, 2))
    numbers = list(range(12))
    losses = (level * spread, 0.9 * level * spread)
    return Evaluation(step, [5, 300], *losses, scores, "m", numbers, numbers)


def write_run(path, evaluations, step=1000, best=None, state="finished"):
    path.mkdir()
    config = {"length": {"total_steps": 1000, "epochs": 10}}
    if evaluations:
        config["data"] = {"held_out": {"images": [1, 2, 3]}}
    (path / "config.json").write_text(json.dumps({"args": {}, "config": config}))
    (path / "status.json").write_text(json.dumps({"state": state, "step": step}))
    for each in evaluations:
        append_evaluation(path, each)
    if best is not None:
        save_checkpoint({"format_version": 2, "state": {"step": best}}, path / "ema_best.pt")
    return path


def test_a_finished_run(tmp_path):
    found = [evaluation(step, 1 / step) for step in range(100, 1001, 100)]
    report = read_run(write_run(tmp_path / "a", found, best=1000))
    lines = "\n".join(report.lines())
    assert "step 1,000 of 1,000, finished" in lines and "warning" not in lines
    assert "--epochs 20 --resume" in report.sentence
    assert [line for line in report.lines() if line.endswith("best")][0].split()[0] == "1,000"
    read = json.loads(json.dumps(report.to_dict()))
    assert read["best_file"] == "ema_best.pt" and len(read["evaluations"]) == 10
    assert read["evaluations"][0]["held_out_loss"] == pytest.approx(0.01)


def test_a_run_that_has_not_come_to_its_end(tmp_path):
    found = [evaluation(step, 1 / step) for step in range(100, 501, 100)]
    report = read_run(write_run(tmp_path / "a", found, step=523, best=500, state="running"))
    assert "step 523 of 1,000, running, or cut off" in report.lines()[0]
    assert "--resume" not in report.sentence and report.sentence.endswith("go on.")


def test_a_best_file_of_another_step_is_named(tmp_path):
    found = [evaluation(step, 1 / step) for step in range(100, 1001, 100)]
    report = read_run(write_run(tmp_path / "a", found, best=700))
    assert (
        "is of step 700, but the best one by the evaluations is of step 1000" in report.remarks[0]
    )
    report = read_run(write_run(tmp_path / "b", found))
    assert "ema_best.pt cannot be read" in report.remarks[0]


def test_a_run_without_evaluations(tmp_path):
    report = read_run(write_run(tmp_path / "a", []))
    assert "no images are held out" in report.sentence and len(report.lines()) == 2


def test_with_kid_alone(tmp_path):
    nothing = np.empty((0, 0))
    scores = [{"kid": 1 / step, "kid_se": 0.0} for step in (100, 200)]
    found = [Evaluation(100, [], nothing, nothing, scores[0])]
    found.append(Evaluation(200, [], nothing, nothing, scores[1]))
    report = read_run(write_run(tmp_path / "a", found, best=200))
    assert "1000 x KID" in report.lines()[2] and "5.00 +- 0.00" in report.lines()[4]
    draw_curves(report.evaluations, report.verdict)


@pytest.mark.parametrize(
    "contents, said",
    [(None, "is no folder of a run"), ("{", "is damaged"), ("[]", "holds no JSON object")],
)
def test_a_folder_that_is_none(tmp_path, contents, said):
    (tmp_path / "a").mkdir()
    if contents is not None:
        (tmp_path / "a" / "config.json").write_text(contents)
    with pytest.raises(UserError, match=said):
        read_run(tmp_path / "a")


def test_many_evaluations_are_thinned_out():
    found = [evaluation(step, 1.0) for step in range(1, 101)]
    some = thinned(found)
    assert len(some) <= MOST_ROWS and some[-1].step == 100
    assert thinned([]) == []


def test_the_curves_go_where_the_values_are():
    """The first half of a falling curve is in the upper half of its panel."""
    found = [evaluation(step, 1.1 - step / 1000) for step in range(100, 1001, 100)]
    picture = draw_curves(found, read_verdict(found))
    assert picture.size == (900, 210)  # the mean and two time steps
    pixels = np.asarray(picture.convert("RGB")).astype(int)
    for colour in (HELD_OUT, TRAINING):
        is_colour = np.abs(pixels[30:184, 58:286] - colour).max(axis=2) < 20
        rows, columns = np.nonzero(is_colour)
        left, right = rows[columns < 60].mean(), rows[columns > 180].mean()
        assert left < right - 40
    assert isinstance(picture, Image.Image)


def read_verdict(found):
    from utils.evaluation.verdict import judge

    return judge(found)
