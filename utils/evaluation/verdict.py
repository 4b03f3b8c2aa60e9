"""Is it done? What the evaluations of a run say, in one sentence."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from utils.runs.evaluations import Evaluation

SIGNIFICANT = 3.0  # standard errors, as far as they are known exactly
FALLING = 0.003  # of the held-out loss, in the last quarter of a run: less is no reason to go on
LAST_QUARTER = 0.75
FEWEST_EVALUATIONS = 3  # for a verdict
FEWEST_IMAGES = 8  # that two evaluations must have in common

MEMORISES = "memorises"
WORSE = "worse"
NOT_DONE = "not done"
DONE = "done"
UNKNOWN = "unknown"


def significant(images: int) -> float:
    """How many standard errors are significant, where the error itself is known from so many images
    only: the quantile of Student's t that is as rare as 3 standard errors of a normal distribution
    (Abramowitz & Stegun 26.7.5).
    """
    z, degrees = SIGNIFICANT, max(1, images - 1)
    return (
        z
        + (z**3 + z) / (4 * degrees)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * degrees**3)
    )


@dataclass(frozen=True)
class Change:
    """Of the held-out loss between two evaluations, image by image."""

    mean: float
    standard_error: float
    images: int

    @property
    def is_rise(self) -> bool:
        return self.z > significant(self.images)

    @property
    def is_fall(self) -> bool:
        return self.z < -significant(self.images)

    @property
    def z(self) -> float:
        if self.standard_error == 0:
            return math.copysign(math.inf, self.mean) if self.mean else 0.0
        return self.mean / self.standard_error

    def beyond(self, other: "Change") -> "Change":
        """By how much this change is above another, of other images."""
        error = math.hypot(self.standard_error, other.standard_error)
        return Change(self.mean - other.mean, error, min(self.images, other.images))


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
    evaluations: int = 0  # that say something of the loss
    rise: Rise | None = None
    fall: float | None = None  # of the held-out loss in the last quarter, as a part of it
    fall_z: float | None = None
    gap: float | None = None  # held-out minus training loss at the end, as a part of the latter
    gap_z: float | None = None

    def to_dict(self) -> dict:
        return asdict(self)


def judge(evaluations: Sequence[Evaluation]) -> Verdict:
    """The verdict on a run with these evaluations, by step."""
    measured = comparable(evaluations)
    best, criterion, value = find_best(evaluations, measured)
    if len(measured) < FEWEST_EVALUATIONS:
        return Verdict(UNKNOWN, best, criterion, value, len(measured))
    gap, gap_z = gap_between(measured[-1])
    rise = find_rise(measured)
    latest = last_quarter(measured)
    fall = -latest.mean / measured[-1].held_out_loss
    kind = DONE
    if rise is not None:
        kind = MEMORISES
    elif has_become_worse(measured):
        kind = WORSE
    elif fall > FALLING and latest.is_fall:
        kind = NOT_DONE
    return Verdict(kind, best, criterion, value, len(measured), rise, fall, -latest.z, gap, gap_z)


def comparable(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """The latest evaluations that measured the same: with the losses of the images that all of them
    have in common, in one order.
    """
    chosen: list[Evaluation] = []
    held_out: set[int] = set()
    training: set[int] = set()
    for evaluation in reversed([each for each in evaluations if each.time_steps]):
        if not chosen:
            held_out = set(evaluation.held_out_images)
            training = set(evaluation.training_images)
        elif evaluation.measure != chosen[0].measure:
            break
        common = held_out & set(evaluation.held_out_images)
        common_training = training & set(evaluation.training_images)
        if chosen and min(len(common), len(common_training)) < FEWEST_IMAGES:
            break
        held_out, training = common, common_training
        chosen.append(evaluation)
    return [_of_images(each, held_out, training) for each in reversed(chosen)]


def _of_images(evaluation: Evaluation, held_out: set[int], training: set[int]) -> Evaluation:
    """Only these images, by their numbers; of equal images, one."""
    rows = {number: row for row, number in enumerate(evaluation.held_out_images)}
    training_rows = {number: row for row, number in enumerate(evaluation.training_images)}
    return replace(
        evaluation,
        held_out=evaluation.held_out[[rows[number] for number in sorted(held_out)]],
        training=evaluation.training[[training_rows[number] for number in sorted(training)]],
        held_out_images=sorted(held_out),
        training_images=sorted(training),
    )


def find_best(
    evaluations: Sequence[Evaluation], measured: Sequence[Evaluation]
) -> tuple[int | None, str, float | None]:
    """The step that is best, by which criterion, and its value: by KID where all evaluations have
    it, else by the held-out loss of those that compare.
    """
    if evaluations and all("kid" in each.scores for each in evaluations):
        best = min(evaluations, key=lambda each: each.scores["kid"])
        return best.step, "kid", best.scores["kid"]
    if measured:
        best = min(measured, key=lambda each: each.held_out_loss)
        return best.step, "held_out_loss", best.held_out_loss
    return None, "none", None


def change(before: np.ndarray, after: np.ndarray) -> Change:
    """Between the losses (m,) of the same images with the same noise."""
    differences = after - before
    count = len(differences)
    error = differences.std(ddof=1) / math.sqrt(count) if count > 1 else math.inf
    return Change(float(differences.mean()), float(error), count)


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
    rise: Rise | None = None
    for evaluation in evaluations[1:]:
        difference = change(best.held_out[:, level], evaluation.held_out[:, level])
        seen = change(best.training[:, level], evaluation.training[:, level])
        # Early in training, the loss at a time step may rise for all images.
        if not difference.is_rise or not difference.beyond(seen).is_rise:
            was_above = rise = None
            if difference.mean < 0:
                best = evaluation
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


def last_quarter(evaluations: Sequence[Evaluation]) -> Change:
    """Of the held-out loss from the last evaluation in the first three quarters to the end."""
    last = evaluations[-1]
    earlier = [each for each in evaluations[:-1] if each.step <= LAST_QUARTER * last.step]
    before = earlier[-1] if earlier else evaluations[-2]
    return change(before.held_out.mean(1), last.held_out.mean(1))


def has_become_worse(evaluations: Sequence[Evaluation]) -> bool:
    """Whether the held-out loss is significantly above the best that it was."""
    last = evaluations[-1]
    best = min(evaluations, key=lambda each: each.held_out_loss)
    difference = change(best.held_out.mean(1), last.held_out.mean(1))
    return difference.is_rise and difference.mean > FALLING * best.held_out_loss


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


@dataclass(frozen=True)
class Circumstances:
    """What a sentence needs to know of a run, beside its evaluations."""

    kind: str  # of checkpoint
    best_file: Path | None  # the weights of the best step; None: they were not kept
    twice_as_long: str  # the option that gives the run twice its length
    is_finished: bool
    holds_out: bool  # whether images are held out


def sentence(verdict: Verdict, run: Circumstances) -> str:
    """The verdict for people: what happened, which file is best, what to do next."""
    if verdict.kind == UNKNOWN:
        return _unknown(verdict, run)
    best = _best(verdict, run)
    if verdict.kind == MEMORISES:
        rise = verdict.rise
        assert rise is not None
        is_diffusion = run.kind == "diffusion"
        place = f"at t = {rise.time_step} " if is_diffusion else ""
        remedy = "More images, --flip or --dropout delay this"
        if not is_diffusion:
            remedy = "More images or a smaller network delay this"
        return (
            f"It has started to memorise: {place}the loss on held-out images was "
            f"lowest at step {rise.best_step:,} ({rise.before:.4g}) and is significantly higher "
            f"since step {rise.since_step:,} (now {rise.now:.4g}, z = {rise.z:.1f}); {best}. "
            f"{remedy}, longer training does not help."
        )
    assert verdict.fall is not None
    if verdict.kind == WORSE:
        return (
            "It has become worse: the loss on held-out images is significantly above its lowest "
            f"value, and not because it memorises; {best}. A lower --lr may help."
        )
    if verdict.kind == NOT_DONE:
        advice = f"continue with {run.twice_as_long} --resume" if run.is_finished else "go on"
        return (
            f"It is not done: the loss on held-out images still fell by {verdict.fall:.1%} in the "
            f"last quarter (z = {verdict.fall_z:.1f}); {_gap(verdict)}; {best}; {advice}."
        )
    return (
        f"It is done: the loss on held-out images changed by only {-verdict.fall:+.1%} in the last "
        f"quarter; {_gap(verdict)}; {best}."
    )


def _best(verdict: Verdict, run: Circumstances) -> str:
    lowest = CRITERIA[verdict.criterion]
    if run.best_file is None:
        return f"step {verdict.best_step:,} had {lowest}, but its weights were not kept"
    return f"{run.best_file}, of step {verdict.best_step:,}, has {lowest}"


def _gap(verdict: Verdict) -> str:
    assert verdict.gap is not None and verdict.gap_z is not None
    side = "above" if verdict.gap >= 0 else "below"
    text = f"it is {abs(verdict.gap):.1%} {side} that on training images (z = {verdict.gap_z:.1f}"
    if abs(verdict.gap_z) < SIGNIFICANT:
        return text + ", which may be chance)"
    return text + ")"


def _unknown(verdict: Verdict, run: Circumstances) -> str:
    if not run.holds_out:
        why = "no images are held out (--val_fraction); look at the samples"
    elif verdict.evaluations == 0:
        why = "it has not been evaluated yet"
    else:
        times = "once" if verdict.evaluations == 1 else f"{verdict.evaluations} times"
        why = (
            f"it was evaluated {times} only, {FEWEST_EVALUATIONS} are needed "
            "(--eval_interval_epochs)"
        )
    text = f"Whether it is done is not known: {why}"
    return f"{text}; {_best(verdict, run)}." if verdict.best_step is not None else f"{text}."
