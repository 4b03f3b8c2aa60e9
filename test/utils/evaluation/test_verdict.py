"""Is it done? On evaluations made up for the purpose."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from utils.evaluation.verdict import (
    DONE,
    MEMORISES,
    NOT_DONE,
    UNKNOWN,
    WORSE,
    Circumstances,
    change,
    gap_between,
    judge,
    sentence,
    significant,
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
        numbers = list(range(IMAGES))
        step = 100 * (i + 1)
        found.append(
            Evaluation(step, TIME_STEPS, held_out, training, scores, "m", numbers, numbers)
        )
    return found


def said(verdict, best_file="results/a/ema_best.pt", epochs=25, finished=True, holds_out=True):
    file = best_file and Path(best_file)
    return sentence(
        verdict, Circumstances("diffusion", file, f"--epochs {2 * epochs}", finished, holds_out)
    )


def falling(to: float, count: int = 12) -> list[list[float]]:
    """The loss at all time steps, from 1 down to `to`, evenly in the logarithm."""
    return [[float(level)] * 3 for level in np.geomspace(1, to, count)]


def test_still_falling_is_not_done():
    verdict = judge(evaluations(*falling(0.5)))
    assert verdict.kind == NOT_DONE and verdict.best_step == 1200
    assert verdict.fall == pytest.approx(0.5 ** (-3 / 11) - 1, rel=0.05)
    text = said(verdict)
    assert "It is not done" in text and "continue with --epochs 50 --resume." in text


def test_levelled_off_is_done():
    levels = falling(0.5, 6) + [[0.5] * 3] * 8
    verdict = judge(evaluations(*levels))
    assert verdict.kind == DONE and abs(verdict.fall) < 0.003
    assert "It is done" in said(verdict)


def test_a_rise_at_one_time_step_is_memorising():
    levels = [[x[0], x[0], x[0]] for x in falling(0.5, 8)]
    levels += [[0.5, 0.53, 0.5], [0.5, 0.56, 0.5], [0.49, 0.6, 0.49]]
    verdict = judge(evaluations(*levels, seen=falling(0.3, 11)))
    assert verdict.kind == MEMORISES
    rise = verdict.rise
    assert (rise.time_step, rise.best_step, rise.since_step) == (300, 800, 900)
    assert rise.z > 3 and rise.now == pytest.approx(0.6, rel=0.1)
    text = said(verdict)
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
    assert change(before, before).z == 0


def test_the_gap_is_named_with_its_error():
    one = evaluations([1.0, 1.0, 1.0], spread=0.01)[0]
    one.held_out[:] *= 1.2
    gap, z = gap_between(one)
    assert gap == pytest.approx(0.2, rel=0.05) and z > 3
    text = said(judge(evaluations(*falling(0.5))))
    assert "which may be chance" in text and "overfit" not in text


def test_the_criterion_is_kid_where_it_was_measured():
    kid = [0.5, 0.2, 0.1, 0.3]
    verdict = judge(evaluations(*falling(0.8, 4), kid=kid))
    assert verdict.criterion == "kid" and verdict.best_step == 300 and verdict.best_value == 0.1
    assert "has the lowest KID" in said(judge(evaluations(*[[1.0] * 3] * 4, kid=kid)))


def test_nothing_is_known_without_measurements():
    verdict = judge([])
    assert verdict.kind == UNKNOWN and verdict.best_step is None
    assert "no images are held out" in said(verdict, holds_out=False)
    assert "it has not been evaluated yet" in said(verdict, holds_out=True)
    verdict = judge(evaluations(*falling(0.5, 2)))
    assert verdict.kind == UNKNOWN and verdict.best_step == 200
    assert "it was evaluated 2 times only" in said(verdict)
    only_kid = [Evaluation(100, [], np.empty((0, 0)), np.empty((0, 0)), {"kid": 0.1})]
    assert judge(only_kid).best_step == 100


# --- What an attack found ---


def test_a_rise_that_ended_is_no_rise():
    levels = falling(0.5, 8) + [[0.5, 0.56, 0.5]] * 2 + [[0.5, 0.501, 0.5]] * 6
    assert judge(evaluations(*levels, seen=[[0.4] * 3] * 16)).rise is None


def test_worse_on_all_images_is_not_done():
    levels = falling(0.5, 8) + [[level] * 3 for level in (0.5, 0.5, 0.6, 0.7, 0.8)]
    verdict = judge(evaluations(*levels))
    assert verdict.kind == WORSE and verdict.best_step <= 1000
    assert "It has become worse" in said(verdict) and "--lr" in said(verdict)


def test_only_what_measures_the_same_compares():
    """Other noise or time steps: what came before them says nothing."""
    found = evaluations(*falling(0.5))
    other = [replace(each, measure="other", time_steps=[1, 2, 3]) for each in found[:8]]
    verdict = judge([*other, *found[8:]])
    assert verdict.evaluations == 4 and verdict.best_step == 1200
    few = [replace(each, time_steps=[7], held_out=each.held_out[:, :1]) for each in found[:10]]
    few = [replace(each, training=each.training[:, :1], measure="t") for each in few]
    assert judge([*few, *found[10:]]).kind == UNKNOWN


def test_images_are_paired_by_their_numbers():
    """In another order, and after some were lost, the change is still that of each image."""
    found = evaluations(*falling(0.9))
    order = np.random.default_rng(1).permutation(IMAGES)[:25]
    last = replace(
        found[-1],
        held_out=found[-1].held_out[order],
        held_out_images=[found[-1].held_out_images[i] for i in order],
    )
    verdict, whole = judge([*found[:-1], last]), judge(found)
    assert verdict.fall == pytest.approx(whole.fall, rel=0.1) and verdict.fall_z > 10


def test_the_best_is_the_best_of_the_same_images():
    """More images are measured at the end, and they are harder: that makes nothing worse."""
    found = evaluations(*falling(0.8))
    easy = np.argsort(found[0].held_out.mean(1))[:20]
    for i in range(6):
        found[i] = replace(
            found[i],
            held_out=found[i].held_out[easy],
            held_out_images=[found[i].held_out_images[k] for k in easy],
        )
    assert judge(found).best_step == 1200


def test_weights_that_were_not_kept_are_not_named():
    text = said(judge(evaluations(*falling(0.5))), best_file=None)
    assert "but its weights were not kept" in text and "ema_best" not in text


@pytest.mark.parametrize("images, expected", [(8, 4.53), (24, 3.35), (256, 3.03)])
def test_few_images_need_more_standard_errors(images, expected):
    """Quantiles of Student's t at the probability of 3 standard errors, from a table."""
    assert abs(significant(images) - expected) < 0.03
