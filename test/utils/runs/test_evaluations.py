"""The file of a run's evaluations."""

import numpy as np

from utils.runs.evaluations import (
    EVALUATIONS,
    Evaluation,
    append_evaluation,
    cut_back_evaluations,
    read_evaluations,
)


def evaluation(step: int, **scores: float) -> Evaluation:
    generator = np.random.default_rng(step)
    return Evaluation(step, [3, 70], generator.random((4, 2)), generator.random((4, 2)), scores)


def test_what_is_written_is_read(tmp_path):
    assert read_evaluations(tmp_path) == []
    for step in (10, 20, 30):
        append_evaluation(tmp_path, evaluation(step, kid=0.25))
    found = read_evaluations(tmp_path)
    assert [each.step for each in found] == [10, 20, 30]
    for each in found:
        expected = evaluation(each.step)
        assert each.time_steps == [3, 70] and each.scores == {"kid": 0.25}
        assert np.abs(each.held_out - expected.held_out).max() < 1e-6
        assert np.abs(each.training - expected.training).max() < 1e-6


def test_a_resumed_run_drops_what_comes_later_and_what_is_damaged(tmp_path):
    for step in (10, 20, 30):
        append_evaluation(tmp_path, evaluation(step))
    file = tmp_path / EVALUATIONS
    file.write_bytes(file.read_bytes() + b'{"step": 40, "time_st')  # a kill
    assert [each.step for each in cut_back_evaluations(tmp_path, 20)] == [10, 20]
    assert len(file.read_text().splitlines()) == 2
    append_evaluation(tmp_path, evaluation(30))
    assert [each.step for each in read_evaluations(tmp_path)] == [10, 20, 30]


def test_scalars():
    one = evaluation(10, kid=0.5)
    values = one.scalars()
    assert values["held_out_loss"] == one.held_out.mean()
    assert values["training_loss_t70"] == one.training[:, 1].mean()
    assert values["kid"] == 0.5 and len(values) == 7
    nothing = Evaluation(10, [], np.empty((0, 0)), np.empty((0, 0)), {"kid": 0.5})
    assert nothing.scalars() == {"kid": 0.5}
    assert Evaluation.from_line(nothing.to_line()).scalars() == {"kid": 0.5}
