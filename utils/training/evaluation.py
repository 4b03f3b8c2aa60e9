"""When a run is evaluated, on how many images, and what is measured then."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import nn

from utils.runs.evaluations import Evaluation
from utils.training.held_out import HeldOutLoss
from utils.training.length import FORWARD_SHARE
from utils.training.sample_score import SampleScore

USUAL_COUNT = 20  # evaluations in a run
FEWEST = 4  # evaluations, which a verdict needs, as long as FEWEST_IMAGES fit
LARGEST_SHARE = 0.02  # of the run's time
ENOUGH_IMAGES = 24  # of each kind; where fewer fit, the evaluations become rarer
FEWEST_IMAGES = 8
MANY_EPOCHS = 5  # between two evaluations: from here on they coincide with ends of epochs


# (the averaged network, the step) -> what all processes measure together
EvaluateFunction = Callable[[nn.Module, int], Evaluation]


@dataclass
class RunEvaluation:
    """Measures what there is to measure. The processes of a run call it together."""

    held_out_loss: HeldOutLoss | None
    sample_score: SampleScore | None

    def __call__(self, network: nn.Module, step: int) -> Evaluation:
        scores = {} if self.sample_score is None else self.sample_score(network)
        loss = self.held_out_loss
        if loss is None:
            nothing = np.empty((0, 0))
            return Evaluation(step, [], nothing, nothing, scores)
        held_out, training = loss(network)
        return Evaluation(
            step,
            loss.time_steps,
            held_out,
            training,
            scores,
            loss.measure,
            loss.held_out_images,
            loss.training_images,
        )


@dataclass(frozen=True)
class EvaluationPlan:
    """How often a run is evaluated, and on how much."""

    interval: int  # steps between evaluations; one more is at the end
    count: int  # evaluations in the whole run
    images: int  # held-out images that are measured, and as many training images
    share: float  # of the run's time, about
    generated: int = 0  # images whose KID is measured
    figures: str = "the loss"  # that are measured of each image


def plan_evaluations(
    total_steps: int,
    steps_per_epoch: int,
    global_batch: int,
    held_out: int,
    passes: float,
    interval_epochs: int | None = None,
    generated: int = 0,
    rows_per_generated: int = 0,
) -> EvaluationPlan:
    """About 20 evaluations, of `passes` forward passes an image, in at most 2% of the run's time.

    Where they would take longer, first fewer images are measured, down to 24, then the evaluations
    become rarer, down to 4, then there are fewer images again, down to 8. The plan is a function of
    the options alone, not of measured times, so that a resumed run has the same one. With
    `interval_epochs` only the number of images adapts. The time for `generated` images, each of so
    many rows of network calls, comes on top: who asks for them wants them.
    """
    budget = LARGEST_SHARE * total_steps * global_batch / FORWARD_SHARE  # rows of forward passes
    rows_per_image = 2 * passes  # a training image is measured for each held-out one

    def images_within(count: int, at_least: int) -> int:
        fitting = int(budget / (count * rows_per_image))
        return min(held_out, max(at_least, fitting))

    if interval_epochs is not None:
        interval = min(total_steps, interval_epochs * steps_per_epoch)
        images = images_within(math.ceil(total_steps / interval), ENOUGH_IMAGES)
    elif held_out == 0:
        images = 0
        interval = _rounded(total_steps / USUAL_COUNT, steps_per_epoch)
    else:
        images = images_within(USUAL_COUNT, ENOUGH_IMAGES)
        count = min(USUAL_COUNT, int(budget / (images * rows_per_image)))
        if count < FEWEST:
            images = images_within(FEWEST, FEWEST_IMAGES)
            count = min(FEWEST, int(budget / (images * rows_per_image)))
        interval = _rounded(total_steps / max(1, count), steps_per_epoch)
    count = math.ceil(total_steps / interval)
    rows = images * rows_per_image + generated * rows_per_generated
    share = count * rows * FORWARD_SHARE / (total_steps * global_batch)
    return EvaluationPlan(interval, count, images, share, generated)


def _rounded(steps: float, steps_per_epoch: int) -> int:
    """Up to whole steps; beyond some epochs, to whole epochs, which end with a save anyway."""
    if steps <= MANY_EPOCHS * steps_per_epoch:
        return math.ceil(steps)
    return math.ceil(steps / steps_per_epoch) * steps_per_epoch
