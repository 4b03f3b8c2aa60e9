"""The file of a run's evaluations."""

import errno
import io
import json

import numpy as np
import pytest

from utils.runs.evaluations import (
    Evaluation,
    append_evaluation,
    cut_back_evaluations,
    evaluations_up_to,
    read_evaluations,
)
from utils.runs.names import EVALUATIONS


def evaluation(step: int, **scores: float) -> Evaluation:
    generator = np.random.default_rng(step)
    losses = (generator.random((4, 2)), generator.random((4, 2)))
    return Evaluation(step, [3, 70], *losses, scores, "m", [4, 5, 6, 7], [0, 1, 2, 3])


def test_what_is_written_is_read(tmp_path):
    assert read_evaluations(tmp_path) == ([], 0)
    for step in (10, 20, 30):
        append_evaluation(tmp_path, evaluation(step, kid=0.25, kid_se=0.5))
    found, damaged = read_evaluations(tmp_path)
    assert damaged == 0
    assert [each.step for each in found] == [10, 20, 30]
    for each in found:
        expected = evaluation(each.step)
        assert each.time_steps == [3, 70] and each.scores == {"kid": 0.25, "kid_se": 0.5}
        assert np.abs(each.held_out - expected.held_out).max() < 1e-6
        assert np.abs(each.training - expected.training).max() < 1e-6


def test_a_resumed_run_drops_what_comes_later_and_what_is_damaged(tmp_path):
    for step in (10, 20, 30):
        append_evaluation(tmp_path, evaluation(step))
    file = tmp_path / EVALUATIONS
    file.write_bytes(file.read_bytes() + b'{"step": 40, "time_st')  # a kill
    assert [each.step for each in evaluations_up_to(tmp_path, 20)] == [10, 20]
    cut_back_evaluations(tmp_path, 20)
    assert len(file.read_text().splitlines()) == 2
    append_evaluation(tmp_path, evaluation(30))
    assert [each.step for each in read_evaluations(tmp_path)[0]] == [10, 20, 30]


def test_scalars():
    one = evaluation(10, kid=0.5, kid_se=0.25)
    values = one.scalars()
    assert values["held_out_loss"] == one.held_out.mean()
    assert values["training_loss_t70"] == one.training[:, 1].mean()
    assert values["kid"] == 0.5 and len(values) == 8
    scores = {"kid": 0.5, "kid_se": 0.25}
    nothing = Evaluation(10, [], np.empty((0, 0)), np.empty((0, 0)), scores)
    assert nothing.scalars() == scores
    assert Evaluation.from_line(nothing.to_line()).scalars() == scores


DAMAGES = {
    "step": [0, -1, "x", None, float("inf"), 1e400],
    "time_steps": [[1], [1, 2, 3], "x", None],
    "held_out": [[], [1.0, 2.0], [[1.0, float("nan")]] * 4, [[1.0, 2.0]], None, {}],
    "training": [[[1.0]] * 4, "x"],
    "scores": [{"kid": 0.5}, {"kid": 0.5, "kid_se": float("nan")}, [], None, {"other": 1.0}],
    "held_out_images": [[1], None, ["a"] * 4],
    "training_images": [[], 5],
}


@pytest.mark.parametrize("name", DAMAGES)
def test_lines_that_make_no_sense_are_left_out_and_counted(tmp_path, name):
    for damage in DAMAGES[name]:
        append_evaluation(tmp_path, evaluation(10))
        record = json.loads(evaluation(20).to_line()) | {name: damage}
        with open(tmp_path / EVALUATIONS, "a") as file:
            file.write(json.dumps(record) + "\n")
            file.write("[" * 100_000 + "\n")
        found, damaged = read_evaluations(tmp_path)
        assert [each.step for each in found] == [10] and damaged == 2, damage
        (tmp_path / EVALUATIONS).unlink()


def test_a_full_disk_leaves_no_half_line(tmp_path, monkeypatch):
    append_evaluation(tmp_path, evaluation(10))
    before = (tmp_path / EVALUATIONS).read_bytes()

    class Full(io.TextIOWrapper):
        def write(self, text):
            super().write(text[:50])
            self.flush()
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(
            "utils.runs.evaluations.open",
            lambda file, mode, encoding: Full(open(file, "ab"), encoding=encoding),
            raising=False,
        )
        with pytest.raises(OSError, match="No space"):
            append_evaluation(tmp_path, evaluation(20))
    assert (tmp_path / EVALUATIONS).read_bytes() == before
