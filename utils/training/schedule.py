"""What is due at which step."""

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """The length of a run, its learning rate, and when it logs, saves, evaluates and previews."""

    total_steps: int
    steps_per_epoch: int
    learning_rate: Callable[[int], float]  # of a step
    log_interval: int = 10  # steps
    save_epochs: int = 1  # epochs between checkpoints
    save_steps: int = 0  # steps between extra ones, besides those at ends of epochs; 0: none
    preview_epochs: int = 1  # epochs between previews; 0: none
    numbered_epochs: int = 0  # a numbered checkpoint every so many epochs; 0: none
    first_numbered_epoch: int = 0
    evaluation_steps: int = 0  # steps between evaluations; 0: none
    averages: int = 0  # snapshots of the averages in the whole run; 0: none

    def epoch(self, step: int) -> int:
        """Whole epochs completed after `step` steps."""
        return step // self.steps_per_epoch

    def epoch_of(self, step: int) -> int:
        """The epoch, counted from 1, that the last of `step` steps belongs to."""
        return math.ceil(step / self.steps_per_epoch)

    def ends_epoch(self, step: int) -> bool:
        """Whether an epoch ends, or the run begins, after so many steps."""
        return step % self.steps_per_epoch == 0

    def is_finished(self, step: int) -> bool:
        return step >= self.total_steps

    def log_is_due(self, step: int) -> bool:
        return step % self.log_interval == 0

    def save_is_due(self, step: int) -> bool:
        if self.is_finished(step) or self.number(step) is not None:
            return True
        if self.ends_epoch(step) and self.epoch(step) % self.save_epochs == 0:
            return True
        if self.evaluation_is_due(step) or self.preview_is_due(step) or self.averages_are_due(step):
            return True
        return self.save_steps > 0 and step % self.save_steps == 0

    def averages_are_due(self, step: int) -> bool:
        """Whether the averages are kept after so many steps; the last time at the end."""
        if step == 0 or self.averages == 0:
            return False
        numbers = range(1, self.averages + 1)
        return step in {round(self.total_steps * number / self.averages) for number in numbers}

    def evaluation_is_due(self, step: int) -> bool:
        if step == 0 or self.evaluation_steps == 0:
            return False
        return self.is_finished(step) or step % self.evaluation_steps == 0

    def preview_is_due(self, step: int) -> bool:
        if step == 0 or self.preview_epochs == 0:
            return False
        if self.is_finished(step):
            return True
        return self.ends_epoch(step) and self.epoch(step) % self.preview_epochs == 0

    def previews_left(self, step: int) -> int:
        """How many previews are still to come after so many steps."""
        if self.preview_epochs == 0 or self.is_finished(step):
            return 0
        between = self.preview_epochs * self.steps_per_epoch
        before_the_last = (self.total_steps - 1) // between - step // between
        return before_the_last + 1

    def numbered_checkpoints(self) -> int:
        """How many checkpoints the whole run keeps under their epochs' numbers."""
        if self.numbered_epochs == 0:
            return 0
        first = max(1, self.first_numbered_epoch)
        before_the_first = (first - 1) // self.numbered_epochs
        return max(0, self.epoch(self.total_steps) // self.numbered_epochs - before_the_first)

    def number(self, step: int) -> int | None:
        """The epoch under whose number the checkpoint at this step is kept, or None."""
        epoch = self.epoch(step)
        if self.numbered_epochs == 0 or epoch == 0 or not self.ends_epoch(step):
            return None
        if epoch % self.numbered_epochs or epoch < self.first_numbered_epoch:
            return None
        return epoch
