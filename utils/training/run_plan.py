"""What is said of a run before its first step."""

from utils.data import describe
from utils.devices import Precision
from utils.ranks import Ranks
from utils.training.learning_rate import allowed_warmup
from utils.training.plan import Cost, PreviewCost, evaluation_lines, length_remarks, plan_lines
from utils.training.run_options import RunOptions
from utils.training.schedule import Schedule
from utils.training.work import Work


def lines_of_run(
    options: RunOptions,
    work: Work,
    schedule: Schedule,
    seconds_per_step: float,
    precision: Precision,
    ranks: Ranks,
) -> list[str]:
    """What the run will do and cost, in lines."""
    state, evaluations = work.state, work.evaluations
    kept = schedule.numbered_checkpoints()
    if options.keep:
        kept = min(kept, options.keep)
    cost = Cost(
        seconds_per_step=seconds_per_step,
        images_per_step=options.images_per_process,
        steps_left=schedule.total_steps - state.step,
        previews=PreviewCost.of(work.previews, schedule.previews_left(state.step)),
        rows_at_the_end=work.rows_at_the_end,
        checkpoints_kept=kept,
        evaluation_share=evaluations.share if evaluations else 0.0,
        has_best=evaluations is not None,
        averages_kept=options.ema_snapshots,
        save_epochs=schedule.save_epochs,
    )
    return [
        *describe(work.images, all_classes=options.plan),
        *evaluation_lines(work.split, len(work.images), evaluations, work.length.steps_per_epoch),
        *work.plan_lines,
        *plan_lines(state, precision, ranks, cost, work.length, options.result_path),
    ]


def schedule_remarks(options: RunOptions, schedule: Schedule) -> list[str]:
    """On options that the length of the run, or what it measures, leaves without effect."""
    remarks = []
    if options.eval_interval_epochs is not None and schedule.evaluation_steps == 0:
        remarks.append(
            f"--eval_interval_epochs {options.eval_interval_epochs} has no effect: there is "
            "nothing to measure, since no images are held out (--val_fraction)"
        )
    asked = 0
    if options.lr_func == "warmup_cosine" and options.warmup_steps is not None:
        asked = options.warmup_steps
    used = allowed_warmup(asked, schedule.total_steps)
    return remarks + length_remarks(schedule.total_steps, asked, used)
