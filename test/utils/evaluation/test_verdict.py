"""Is it done? On evaluations made up for the purpose."""

import numpy as np
import pytest

from utils.evaluation.verdict import (
    DONE,
    MEMORISES,
    NOT_DONE,
    UNKNOWN,
    change,
    gap_between,
    judge,
    sentence,
)
from utils.runs.evaluations import Evaluation

TIME_STEPS = [30, 300, 900]
IMAGES = 40


def evaluations(
    *levels: list[float], seen=None, spread: float = 0.3, wobble: float = 0.002, kid=None
):
    """One per entry: the mean loss at each of the time steps, from images that differ by `spread`
    and change from one evaluation to the next by `wobble`. Training images have the same loss, or
    that in `seen`.
    """
    generator = np.random.default_rng(0)
    of_image = 1 + spread * generator.standard_normal((IMAGES, 1))
    found = []
    for i, level in enumerate(levels):
        noise = wobble * generator.standard_normal((IMAGES, len(TIME_STEPS)))
        held_out = of_image * np.array(level) + noise
        training = (2 - of_image) * np.array(level if seen is None else seen[i])
        scores = {} if kid is None else {"kid": kid[i], "kid_se": 0.01}
        found.append(Evaluation(100 * (i + 1), TIME_STEPS, held_out, training, scores))
    return found


def falling(to: float, count: int = 12) -> list[list[float]]:
    """The loss at all time steps, from 1 down to `to`, evenly in the logarithm."""
    return [[float(level)] * 3 for level in np.geomspace(1, to, count)]


def test_still_falling_is_not_done():
    verdict = judge(evaluations(*falling(0.5)))
    assert verdict.kind == NOT_DONE and verdict.best_step == 1200
    assert verdict.fall == pytest.approx(0.5 ** (-3 / 11) - 1, rel=0.05)
    text = sentence(verdict, "results/a/ema_best.pt", epochs=25)
    assert "It is not done" in text and "Continue with --epochs 50 --resume." in text


def test_levelled_off_is_done():
    levels = falling(0.5, 6) + [[0.5] * 3] * 8
    verdict = judge(evaluations(*levels))
    assert verdict.kind == DONE and abs(verdict.fall) < 0.003
    assert "It is done" in sentence(verdict, "ema_best.pt", 25)


def test_a_rise_at_one_time_step_is_memorising():
    levels = [[x[0], x[0], x[0]] for x in falling(0.5, 8)]
    levels += [[0.5, 0.53, 0.5], [0.5, 0.56, 0.5], [0.49, 0.6, 0.49]]
    verdict = judge(evaluations(*levels, seen=falling(0.3, 11)))
    assert verdict.kind == MEMORISES
    rise = verdict.rise
    assert (rise.time_step, rise.best_step, rise.since_step) == (300, 800, 900)
    assert rise.z > 3 and rise.now == pytest.approx(0.6, rel=0.1)
    text = sentence(verdict, "results/a/ema_best.pt", 25)
    assert "started to memorise: at t = 300" in text and "step 800" in text
    assert f"results/a/ema_best.pt, of step {verdict.best_step:,}" in text


def test_a_rise_for_all_images_is_not_memorising():
    levels = falling(0.5, 8) + [[0.5, 0.53, 0.5], [0.5, 0.56, 0.5], [0.49, 0.6, 0.49]]
    assert judge(evaluations(*levels)).rise is None
    assert judge(evaluations(*levels, seen=falling(0.3, 11))).rise is not None


def test_one_evaluation_above_the_best_is_chance():
    levels = falling(0.5, 8) + [[0.5, 0.56, 0.5], [0.5, 0.5, 0.5], [0.5, 0.56, 0.5]]
    assert judge(evaluations(*levels, seen=falling(0.3, 11))).kind != MEMORISES


def test_a_rise_that_has_passed_is_forgotten():
    levels = falling(0.5, 8) + [[0.5, 0.56, 0.5]] * 2 + [[0.4, 0.4, 0.4]] * 8
    assert judge(evaluations(*levels, seen=[[0.4] * 3] * 18)).kind == DONE


def test_a_rise_within_its_error_is_none():
    """The images change by 0.3 either way, so that a mean of 40 is uncertain by 0.05."""
    levels = falling(0.5, 8) + [[0.5, 0.56, 0.5]] * 3
    assert judge(evaluations(*levels, wobble=0.3, seen=falling(0.3, 11))).rise is None


def test_the_change_is_paired_by_image():
    before = np.arange(10.0)
    assert change(before, before + 0.1).z > 1e6  # though the images differ by much more than 0.1
    shifted = change(before, before[:6] + 1)  # the later one measured fewer images
    assert shifted.mean == pytest.approx(1)
    assert change(before, before).z == 0


def test_the_gap_is_named_with_its_error():
    one = evaluations([1.0, 1.0, 1.0], spread=0.01)[0]
    one.held_out[:] *= 1.2
    gap, z = gap_between(one)
    assert gap == pytest.approx(0.2, rel=0.05) and z > 3
    text = sentence(judge(evaluations(*falling(0.5))), "x", 1)
    assert "which may be chance" in text and "overfit" not in text


def test_the_criterion_is_kid_where_it_was_measured():
    kid = [0.5, 0.2, 0.1, 0.3]
    verdict = judge(evaluations(*falling(0.8, 4), kid=kid))
    assert verdict.criterion == "kid" and verdict.best_step == 300 and verdict.best_value == 0.1
    assert "has the lowest KID" in sentence(
        judge(evaluations(*[[1.0] * 3] * 4, kid=kid)), "ema_best.pt", 1
    )


def test_nothing_is_known_without_measurements():
    verdict = judge([])
    assert verdict.kind == UNKNOWN and verdict.best_step is None
    assert "no images were held out" in sentence(verdict, "x", 1)
    verdict = judge(evaluations(*falling(0.5, 2)))
    assert verdict.kind == UNKNOWN and verdict.best_step == 200
    assert "too few times" in sentence(verdict, "x", 1)
    only_kid = [Evaluation(100, [], np.empty((0, 0)), np.empty((0, 0)), {"kid": 0.1})]
    assert judge(only_kid).best_step == 100
