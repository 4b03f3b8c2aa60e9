"""When a run is evaluated, and on how many images."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from utils.runs.evaluations import Evaluation

USUAL_COUNT = 20  # evaluations in a run
FEWEST = 4  # evaluations, which a verdict needs, as long as FEWEST_IMAGES fit
LARGEST_SHARE = 0.02  # of the run's time
FORWARD_SHARE = 1 / 3  # of a training step: a forward and a backward pass
ENOUGH_IMAGES = 24  # of each kind; where fewer fit, the evaluations become rarer
FEWEST_IMAGES = 8
MANY_EPOCHS = 5  # between two evaluations: from here on they coincide with ends of epochs


# (the averaged network, the step) -> what all processes measure together
EvaluateFunction = Callable[[nn.Module, int], Evaluation]


@dataclass(frozen=True)
class EvaluationPlan:
    """How often a run is evaluated, and on how much."""

    interval: int  # steps between evaluations; one more is at the end
    count: int  # evaluations in the whole run
    images: int  # held-out images that are measured, and as many training images
    share: float  # of the run's time, about


def plan_evaluations(
    total_steps: int,
    steps_per_epoch: int,
    global_batch: int,
    held_out: int,
    levels: int,
    interval_epochs: int | None = None,
) -> EvaluationPlan:
    """About 20 evaluations, at `levels` time steps each, in at most 2% of the run's time.

    Where they would take longer, first fewer images are measured, down to 24, then the evaluations
    become rarer, down to 4, then there are fewer images again, down to 8. The plan is a function of
    the options alone, not of measured times, so that a resumed run has the same one. With
    `interval_epochs` only the number of images adapts.
    """
    budget = LARGEST_SHARE * total_steps * global_batch / FORWARD_SHARE  # rows of forward passes
    rows_per_image = 2 * levels

    def images_within(count: int, at_least: int) -> int:
        fitting = int(budget / (count * rows_per_image))
        return min(held_out, max(at_least, fitting))

    if interval_epochs is not None:
        interval = min(total_steps, interval_epochs * steps_per_epoch)
        images = images_within(math.ceil(total_steps / interval), ENOUGH_IMAGES)
    else:
        images = images_within(USUAL_COUNT, ENOUGH_IMAGES)
        count = min(USUAL_COUNT, int(budget / (images * rows_per_image)))
        if count < FEWEST:
            images = images_within(FEWEST, FEWEST_IMAGES)
            count = min(FEWEST, int(budget / (images * rows_per_image)))
        interval = _rounded(total_steps / max(1, count), steps_per_epoch)
    count = math.ceil(total_steps / interval)
    share = count * images * rows_per_image * FORWARD_SHARE / (total_steps * global_batch)
    return EvaluationPlan(interval, count, images, share)


def _rounded(steps: float, steps_per_epoch: int) -> int:
    """Up to whole steps; beyond some epochs, to whole epochs, which end with a save anyway."""
    if steps <= MANY_EPOCHS * steps_per_epoch:
        return math.ceil(steps)
    return math.ceil(steps / steps_per_epoch) * steps_per_epoch
