"""How long a run is: in epochs, or in minutes that its steps are fitted into."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from utils.errors import UserError
from utils.start import seconds_since_start

FORWARD_SHARE = 1 / 3  # of a training step: one row of a network call without gradients
PREVIEW_SHARE = 0.05  # of the steps' time, for all previews but the last one
MOST_PREVIEWS = 10  # in a run, where nobody says how often
SECONDS_AT_THE_END = 3.0  # for the last checkpoint, and for the process to end
SAVED_BYTES_PER_SECOND = 2e8  # of a checkpoint that is written
SAVE_SHARE = 0.1  # of the time between two saves that one may take
SHORT_SAVE = 0.05  # seconds: what is saved so fast may be saved at any time
FEWEST_STEPS = 10
LONG_START = 0.2  # of the minutes, before the first step
SECONDS_PER_MINUTE = 60


@dataclass(frozen=True)
class RunLength:
    """How long a run is."""

    total_steps: int
    steps_per_epoch: int
    global_batch: int  # images that an optimizer step sees, on all processes
    minutes: float | None = None  # that the steps were fitted into; None: whole epochs

    @property
    def epochs(self) -> float:
        return self.total_steps / self.steps_per_epoch

    @property
    def whole_epochs(self) -> int:
        """Epochs that the run begins."""
        return math.ceil(self.epochs)

    def record(self) -> dict:
        """For the checkpoint."""
        record = {"epochs": self.whole_epochs, "total_steps": self.total_steps}
        return record if self.minutes is None else {**record, "minutes": self.minutes}

    def in_words(self) -> str:
        if self.total_steps % self.steps_per_epoch == 0:
            return f"{self.whole_epochs:,} epochs x {self.steps_per_epoch:,}"
        return f"{self.epochs:,.2f} epochs of {self.steps_per_epoch:,}"


@dataclass(frozen=True)
class Pace:
    """What a run's parts take."""

    seconds_per_step: float
    images_per_step: int  # of this process
    rows_per_preview: float  # of network calls
    bytes_per_save: float = 0.0
    steps_per_save: int = 0  # besides those at ends of epochs; 0: none
    # Whether a save takes no time from the steps meanwhile: those of a GPU
    saves_beside_steps: bool = False
    rows_at_the_end: float = 0.0  # of network calls after the last step, those of a preview apart

    @property
    def steps_per_preview(self) -> float:
        """The training steps that take as long as a preview."""
        return self._steps_per_rows(self.rows_per_preview)

    @property
    def steps_at_the_end(self) -> float:
        """The training steps that take as long as what follows the last one."""
        return self._steps_per_rows(self.rows_at_the_end)

    def _steps_per_rows(self, rows: float) -> float:
        return rows * FORWARD_SHARE / self.images_per_step


def usual_preview_epochs(total_steps: int, steps_per_epoch: int, steps_per_preview: float) -> int:
    """Epochs between previews where nobody says how many: at most 10 previews, and besides the last
    one at most 5% of the run's time.

    A function of the options alone, not of measured times.
    """
    affordable = MOST_PREVIEWS
    if steps_per_preview > 0:
        affordable = int(PREVIEW_SHARE * total_steps / steps_per_preview)
    count = max(1, min(MOST_PREVIEWS, affordable + 1))
    return max(1, math.ceil(total_steps / (count * steps_per_epoch)))


def usual_save_epochs(bytes_per_save: float, seconds_per_epoch: float) -> int:
    """Epochs between saves: one, or where they are short so many that a save takes at most a tenth
    of their time.
    """
    seconds = bytes_per_save / SAVED_BYTES_PER_SECOND
    if seconds <= SHORT_SAVE:
        return 1
    return max(1, math.ceil(seconds / (SAVE_SHARE * seconds_per_epoch)))


def kept_steps(record: dict, minutes: float | None) -> tuple[int | None, float | None]:
    """The steps of a run that is resumed, and its minutes, where it was to last some minutes; none
    where it was to last some epochs. `record` is its length in the checkpoint. Other minutes than
    before lengthen or shorten it in proportion.

    Raises UserError where minutes are asked for, and the run was to last some epochs.
    """
    before = record.get("minutes")
    if before is None:
        if minutes is not None:
            raise UserError(
                f"--minutes {minutes:g} sets the length of a new run, and this one is "
                f"{record.get('epochs')} epochs long; --epochs may raise that"
            )
        return None, None
    if minutes is None or minutes == before:
        return record["total_steps"], before
    steps = round(record["total_steps"] * minutes / before)
    return max(steps, min(FEWEST_STEPS, record["total_steps"])), minutes


def twice_as_long(epochs: int, minutes: float | None) -> str:
    """The option with which a run would have twice its length."""
    return f"--epochs {2 * epochs}" if minutes is None else f"--minutes {2 * minutes:g}"


def minutes_remarks(minutes: float, seconds_per_step: float) -> list[str]:
    """Remarks before the first step of a run that is to last some minutes."""
    asked, gone = minutes * SECONDS_PER_MINUTE, seconds_since_start()
    if gone + FEWEST_STEPS * seconds_per_step > asked:
        return [
            f"--minutes {minutes:g} is less than what has gone by ({gone:.0f} s) and the "
            f"{FEWEST_STEPS} steps that every run has"
        ]
    if gone > LONG_START * asked:
        return [
            f"{gone:.0f} s of --minutes have gone by before the first step: images were decoded, "
            "near copies looked for and steps timed; what is kept makes the next start faster"
        ]
    return []


def steps_within(
    minutes: float,
    pace: Pace,
    preview_epochs: int | None,
    per_epoch: int,
    evaluation_share: Callable[[int], float] = lambda steps: 0.0,
    seconds_ahead: float = 0.0,
) -> int:
    """The most steps with which a run, with what it has done so far, its evaluations, previews and
    saves, ends within `minutes` from its start; at least 10. `evaluation_share` says for a number
    of steps which share of their time evaluations take in addition, `seconds_ahead` what is still
    to be done before the first of them.
    """

    def seconds_of(steps: int) -> float:
        alone = _seconds_of(steps, pace, preview_epochs, per_epoch)
        return alone + steps * pace.seconds_per_step * evaluation_share(steps)

    budget = minutes * SECONDS_PER_MINUTE - seconds_since_start() - seconds_ahead
    budget -= SECONDS_AT_THE_END
    fewest, too_many = FEWEST_STEPS, FEWEST_STEPS + int(budget / pace.seconds_per_step) + 1
    while too_many - fewest > 1:
        middle = (fewest + too_many) // 2
        if seconds_of(middle) <= budget:
            fewest = middle
        else:
            too_many = middle
    return fewest


def _seconds_of(steps: int, pace: Pace, preview_epochs: int | None, per_epoch: int) -> float:
    """Seconds of so many steps, with their previews and saves."""
    if preview_epochs is None:
        preview_epochs = usual_preview_epochs(steps, per_epoch, pace.steps_per_preview)
    previews = math.ceil(steps / (preview_epochs * per_epoch))
    in_steps = steps + previews * pace.steps_per_preview + pace.steps_at_the_end
    return in_steps * pace.seconds_per_step + _seconds_of_saves(steps, pace, per_epoch)


def _seconds_of_saves(steps: int, pace: Pace, per_epoch: int) -> float:
    """Seconds by which saves lengthen a run of so many steps. They are written while it goes on,
    and wait for one another.
    """
    save_epochs = usual_save_epochs(pace.bytes_per_save, per_epoch * pace.seconds_per_step)
    saves = steps / (save_epochs * per_epoch)
    if pace.steps_per_save > 0:
        saves += steps / pace.steps_per_save
    seconds = pace.bytes_per_save / SAVED_BYTES_PER_SECOND
    if pace.saves_beside_steps:
        seconds = max(0.0, seconds - steps / saves * pace.seconds_per_step)
    return saves * seconds
