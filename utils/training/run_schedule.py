"""What is due when in a run, by its options and its length."""

from functools import partial

from utils.ranks import Ranks
from utils.training.learning_rate import allowed_warmup, learning_rate
from utils.training.length import Pace, usual_preview_epochs, usual_save_epochs
from utils.training.plan import size_of_checkpoint
from utils.training.run_options import RunOptions
from utils.training.schedule import Schedule
from utils.training.work import Work


def schedule_of(options: RunOptions, work: Work, seconds_per_step: float, ranks: Ranks) -> Schedule:
    """The length of the run, its learning rate, and what is due when. All processes call it
    together.
    """
    total_steps = work.length.total_steps
    return Schedule(
        total_steps=total_steps,
        steps_per_epoch=work.length.steps_per_epoch,
        learning_rate=partial(rate_at, options, total_steps),
        log_interval=options.log_interval,
        save_epochs=_save_epochs(work, seconds_per_step, ranks),
        save_steps=options.save_every_steps,
        preview_epochs=_preview_epochs(options, work),
        numbered_epochs=options.save_model_interval_epochs if options.save_model_interval else 0,
        first_numbered_epoch=options.start_model_interval,
        evaluation_steps=work.evaluations.interval if work.evaluations else 0,
        averages=options.ema_snapshots,
    )


def rate_at(options: RunOptions, total_steps: int, step: int) -> float:
    """The learning rate at a step of a run of this length."""
    warmup = allowed_warmup(options.warmup_steps, total_steps)
    return learning_rate(step, total_steps, options.lr, options.lr_func, warmup)


def _preview_epochs(options: RunOptions, work: Work) -> int:
    """Epochs between previews; 0: there are none."""
    if work.previews is None:
        return 0
    if options.vis_interval_epochs is not None:
        return options.vis_interval_epochs
    length = work.length
    pace = Pace(0.0, options.images_per_process, work.previews.network_rows)
    return usual_preview_epochs(length.total_steps, length.steps_per_epoch, pace.steps_per_preview)


def _save_epochs(work: Work, seconds_per_step: float, ranks: Ranks) -> int:
    """Epochs between saves; the main process's clock counts."""
    seconds_per_epoch = work.length.steps_per_epoch * seconds_per_step
    mine = usual_save_epochs(size_of_checkpoint(work.state), seconds_per_epoch)
    return ranks.gather(mine)[ranks.main_rank]
