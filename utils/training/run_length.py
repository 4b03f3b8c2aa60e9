"""The length of a run: as before, as it was asked for, or fitted into its minutes."""

from collections.abc import Callable

from utils.data import steps_per_epoch
from utils.ranks import Ranks
from utils.training.evaluation import EvaluationPlan
from utils.training.length import Pace, RunLength, kept_steps, steps_within
from utils.training.run_options import RunOptions

# What is measured when in a run of that length; None: nothing is
EvaluationsOf = Callable[[RunLength], EvaluationPlan | None]


def known_length(
    options: RunOptions, before: dict | None, images: int, global_batch: int
) -> RunLength | None:
    """The length of a run on so many images, or None where it is yet to be measured. `before`: the
    length of the run that is resumed, as its checkpoint has it.

    Raises UserError where a run of epochs is resumed with minutes.
    """
    per_epoch = steps_per_epoch(images, global_batch)
    if before is not None:
        steps, minutes = kept_steps(before, options.minutes)
        if steps is not None:
            return RunLength(steps, per_epoch, global_batch, minutes)
    if options.minutes is not None:
        return None
    return RunLength(options.epochs * per_epoch, per_epoch, global_batch)


def fitted_length(
    options: RunOptions,
    images: int,
    global_batch: int,
    pace: Pace,
    evaluations_of: EvaluationsOf,
    ranks: Ranks,
    seconds_ahead: float = 0.0,
) -> RunLength:
    """As many steps as fit into the minutes at this pace, by the main process's clock, where so
    many seconds go by before the first one.
    """
    minutes = options.minutes
    assert minutes is not None
    per_epoch = steps_per_epoch(images, global_batch)

    def evaluation_share(steps: int) -> float:
        plan = evaluations_of(RunLength(steps, per_epoch, global_batch, minutes))
        return 0.0 if plan is None else plan.share

    mine = steps_within(
        minutes, pace, options.vis_interval_epochs, per_epoch, evaluation_share, seconds_ahead
    )
    steps = ranks.gather(mine)[ranks.main_rank]
    return RunLength(steps, per_epoch, global_batch, minutes)
