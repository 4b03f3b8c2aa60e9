"""Is it done? What the evaluations of a run say, in one sentence."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from utils.runs.evaluations import Evaluation

SIGNIFICANT = 3.0  # standard errors
FALLING = 0.003  # of the held-out loss, in the last quarter of a run: less is no reason to go on
LAST_QUARTER = 0.75
FEWEST_EVALUATIONS = 3  # for a verdict

MEMORISES = "memorises"
NOT_DONE = "not done"
DONE = "done"
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Change:
    """Of the held-out loss between two evaluations, image by image."""

    mean: float
    standard_error: float

    @property
    def z(self) -> float:
        if self.standard_error == 0:
            return math.copysign(math.inf, self.mean) if self.mean else 0.0
        return self.mean / self.standard_error

    def beyond(self, other: "Change") -> float:
        """By how many standard errors this change is above another, of other images."""
        error = math.hypot(self.standard_error, other.standard_error)
        return Change(self.mean - other.mean, error).z


@dataclass(frozen=True)
class Rise:
    """At one time step the held-out loss has risen above the best value that it had, and that of
    training images has not.
    """

    time_step: int
    best_step: int  # of training, where it was best
    since_step: int  # of training, from which on it is significantly above that
    before: float
    now: float
    z: float


@dataclass(frozen=True)
class Verdict:
    """What a run's evaluations say of it."""

    kind: str
    best_step: int | None  # of training, by the criterion
    criterion: str
    best_value: float | None
    rise: Rise | None = None
    fall: float | None = None  # of the held-out loss in the last quarter, as a part of it
    fall_z: float | None = None
    gap: float | None = None  # held-out minus training loss at the end, as a part of the latter
    gap_z: float | None = None

    def to_dict(self) -> dict:
        return asdict(self)


def judge(evaluations: Sequence[Evaluation]) -> Verdict:
    """The verdict on a run with these evaluations, by step."""
    criterion = criterion_of(evaluations)
    if criterion is None:
        return Verdict(UNKNOWN, None, "none", None)
    best = min(evaluations, key=lambda each: score(each, criterion))
    value = score(best, criterion)
    measured = [each for each in evaluations if each.time_steps]
    if len(measured) < FEWEST_EVALUATIONS:
        return Verdict(UNKNOWN, best.step, criterion, value)
    gap, gap_z = gap_between(measured[-1])
    rise = find_rise(measured)
    fall, fall_z = fall_in_last_quarter(measured)
    kind = DONE
    if rise is not None:
        kind = MEMORISES
    elif fall > FALLING and fall_z > SIGNIFICANT:
        kind = NOT_DONE
    return Verdict(kind, best.step, criterion, value, rise, fall, fall_z, gap, gap_z)


def criterion_of(evaluations: Sequence[Evaluation]) -> str | None:
    """What the best checkpoint is chosen by; lower is better."""
    if evaluations and all("kid" in each.scores for each in evaluations):
        return "kid"
    if evaluations and all(each.time_steps for each in evaluations):
        return "held_out_loss"
    return None


def score(evaluation: Evaluation, criterion: str) -> float:
    if criterion == "kid":
        return evaluation.scores["kid"]
    return evaluation.held_out_loss


def change(before: np.ndarray, after: np.ndarray) -> Change:
    """Between the losses (m,) of the same images with the same noise. Two evaluations may have
    measured different numbers of images; the first are the same.
    """
    common = min(len(before), len(after))
    differences = after[:common] - before[:common]
    error = differences.std(ddof=1) / math.sqrt(common) if common > 1 else math.inf
    return Change(float(differences.mean()), float(error))


def find_rise(evaluations: Sequence[Evaluation]) -> Rise | None:
    """The time step at which the held-out loss rose first: by more than 3 standard errors above
    its best, and above what the loss of training images did meanwhile, at two evaluations in a row
    and since then. Of several, the one at which it is clearest.
    """
    rises = [_rise_at(evaluations, i) for i in range(len(evaluations[0].time_steps))]
    found = [rise for rise in rises if rise is not None]
    return min(found, key=lambda rise: (rise.since_step, -rise.z), default=None)


def _rise_at(evaluations: Sequence[Evaluation], level: int) -> Rise | None:
    best = evaluations[0]
    was_above: Evaluation | None = None
    rise = None
    for evaluation in evaluations[1:]:
        difference = change(best.held_out[:, level], evaluation.held_out[:, level])
        seen = change(best.training[:, level], evaluation.training[:, level])
        # Early in training, the loss at a time step may rise for all images.
        if difference.z <= SIGNIFICANT or difference.beyond(seen) <= SIGNIFICANT:
            was_above = None
            if difference.mean < 0:
                best = evaluation
                rise = None
            continue
        if was_above is not None:
            rise = Rise(
                time_step=evaluation.time_steps[level],
                best_step=best.step,
                since_step=rise.since_step if rise else was_above.step,
                before=float(best.held_out[:, level].mean()),
                now=float(evaluation.held_out[:, level].mean()),
                z=difference.z,
            )
        was_above = evaluation
    return rise


def fall_in_last_quarter(evaluations: Sequence[Evaluation]) -> tuple[float, float]:
    """By how much the held-out loss fell, as a part of what it is, and by how many standard errors:
    from the last evaluation in the first three quarters to the end.
    """
    last = evaluations[-1]
    earlier = [each for each in evaluations[:-1] if each.step <= LAST_QUARTER * last.step]
    before = earlier[-1] if earlier else evaluations[-2]
    difference = change(before.held_out.mean(1), last.held_out.mean(1))
    return -difference.mean / last.held_out_loss, -difference.z


def gap_between(evaluation: Evaluation) -> tuple[float, float]:
    """How much larger the held-out loss is than that of training images, as a part of the latter,
    and by how many standard errors.
    """
    held_out, training = evaluation.held_out.mean(1), evaluation.training.mean(1)
    difference = held_out.mean() - training.mean()
    variance = held_out.var(ddof=1) / len(held_out) + training.var(ddof=1) / len(training)
    z = difference / math.sqrt(variance) if variance > 0 else 0.0
    return float(difference / training.mean()), float(z)


# --- In words ---

CRITERIA = {"held_out_loss": "the lowest loss on held-out images", "kid": "the lowest KID"}


def sentence(verdict: Verdict, best_file: object, epochs: int, is_finished: bool = True) -> str:
    """The verdict for people: what happened, which file is best, what to do next.

    `best_file` is the checkpoint that the criterion chose, `epochs` the length of the run, which
    may not have come to its end.
    """
    if verdict.kind == UNKNOWN:
        return _unknown(verdict, best_file)
    best = f"{best_file}, of step {verdict.best_step:,}, has {CRITERIA[verdict.criterion]}"
    if verdict.kind == MEMORISES:
        rise = verdict.rise
        assert rise is not None
        return (
            f"It has started to memorise: at t = {rise.time_step} the loss on held-out images was "
            f"lowest at step {rise.best_step:,} ({rise.before:.4g}) and is significantly higher "
            f"since step {rise.since_step:,} (now {rise.now:.4g}, z = {rise.z:.1f}); {best}. More "
            "images, --flip or --dropout delay this, longer training does not help."
        )
    assert verdict.fall is not None
    if verdict.kind == NOT_DONE:
        return (
            f"It is not done: the loss on held-out images still fell by {verdict.fall:.1%} in the "
            f"last quarter (z = {verdict.fall_z:.1f}); {_gap(verdict)}. "
            + (f"Continue with --epochs {2 * epochs} --resume." if is_finished else "Go on.")
        )
    direction = "fell" if verdict.fall >= 0 else "rose"
    return (
        f"It is done: the loss on held-out images {direction} by only {abs(verdict.fall):.1%} in "
        f"the last quarter; {_gap(verdict)}; {best}."
    )


def _gap(verdict: Verdict) -> str:
    assert verdict.gap is not None and verdict.gap_z is not None
    side = "above" if verdict.gap >= 0 else "below"
    text = f"it is {abs(verdict.gap):.1%} {side} that on training images (z = {verdict.gap_z:.1f}"
    if verdict.gap_z < SIGNIFICANT:
        return text + ", which may be chance)"
    return text + ")"


def _unknown(verdict: Verdict, best_file: object) -> str:
    if verdict.best_step is None:
        return (
            "Whether it is done is not known, as no images were held out (--val_fraction); look at "
            "the samples."
        )
    return (
        "Whether it is done is not known, as it was evaluated too few times "
        f"(--eval_interval_epochs); {best_file}, of step {verdict.best_step:,}, has "
        f"{CRITERIA[verdict.criterion]} so far."
    )
