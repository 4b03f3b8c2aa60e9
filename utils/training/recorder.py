"""What a run folder does with metrics, checkpoints and previews. Only the main process writes."""

from collections.abc import Callable
from typing import Protocol

from PIL import Image

from utils.console import Progress
from utils.errors import NotSaved, UserError
from utils.ranks import Ranks
from utils.runs.files import SLIM
from utils.runs.folder import RunFolder
from utils.training.state import TrainState

# (sign of life, called now and then) -> the picture
PreviewFunction = Callable[[Callable[[], None]], Image.Image]


class Recorder(Protocol):
    """What `fit` tells of its progress. Every process of a run has one."""

    def step_done(self) -> None:
        """One training step more is done."""

    def check_saving(self) -> None:
        """Report a checkpoint that could not be written in the background."""

    def metrics(self, rows: list[dict[str, float]]) -> None:
        """One row a step."""

    def save(self, state: TrainState, epoch: int, number: int | None, wait: bool) -> None:
        """Write the checkpoint, also under its epoch's number; `wait` until it is safe.

        Raises UserError where it was waited for and cannot be written.
        """

    def preview(self, state: TrainState, epoch: int, resumed: bool) -> None:
        """Draw and write a preview of the averaged network; all processes call it together."""

    def error(self, text: str) -> None:
        """The run ends with this error; nothing of the step is saved."""

    def ended_by(self, error: Exception, step: int) -> None:
        """The run ends with an error from outside; waits for the save of this step, if there is
        one, and says whether it is safe.
        """

    def finished(self, step: int) -> None:
        """The run is done. Raises NotSaved where the end could not be saved."""

    def stopped(self, step: int) -> None:
        """A signal stopped the run. Raises NotSaved where it could not be saved."""

    def close(self) -> None:
        """In any case at the end: wait for the last save, and let others write the folder."""


class SilentRecorder:
    """The recorder of the processes that do not write."""

    def __init__(self, ranks: Ranks, has_previews: bool):
        self._ranks = ranks
        self._has_previews = has_previews

    def step_done(self) -> None:
        pass

    def check_saving(self) -> None:
        pass

    def metrics(self, rows: list[dict[str, float]]) -> None:
        pass

    def save(self, state: TrainState, epoch: int, number: int | None, wait: bool) -> None:
        pass

    def preview(self, state: TrainState, epoch: int, resumed: bool) -> None:
        while self._has_previews and self._ranks.main_is_busy(False):
            pass

    def error(self, text: str) -> None:
        pass

    def ended_by(self, error: Exception, step: int) -> None:
        pass

    def finished(self, step: int) -> None:
        pass

    def stopped(self, step: int) -> None:
        pass

    def close(self) -> None:
        pass


class RunRecorder:
    """The recorder of the main process: run folder, TensorBoard and terminal."""

    def __init__(
        self,
        run: RunFolder,
        ranks: Ranks,
        preview_fn: PreviewFunction | None,
        total_steps: int,
        first_step: int,
        keep: int = 0,  # numbered checkpoints; 0: all
        image_format: str = "png",
    ):
        self._run = run
        self._ranks = ranks
        self._preview_fn = preview_fn
        self._keep = keep
        self._image_format = image_format
        self._last_loss = ""
        self._progress = Progress(total_steps, initial=first_step, unit="step", title="training")

    def step_done(self) -> None:
        self._progress.update()

    def check_saving(self) -> None:
        self._run.check_saving()

    def metrics(self, rows: list[dict[str, float]]) -> None:
        if not rows:
            return
        self._run.write_metrics(rows)
        last = rows[-1]
        self._last_loss = f"{last['loss']:.4f}"
        self._progress.update(
            0, loss=self._last_loss, images_per_second=f"{last['images_per_second']:.0f}"
        )

    def save(self, state: TrainState, epoch: int, number: int | None, wait: bool) -> None:
        self._run.write_checkpoint(state.checkpoint(epoch).to_dict(), number, self._keep)
        if wait and not self._run.finish_saving():
            raise UserError(f"no checkpoint can be written into {self._run.path}")

    def preview(self, state: TrainState, epoch: int, resumed: bool) -> None:
        if self._preview_fn is None:
            return
        # A resumed run draws only a preview that an interruption prevented.
        if not resumed or not self._run.has_preview(epoch):
            picture = self._preview_fn(lambda: self._sign_of_life(True))
            file = self._run.write_preview(picture, epoch, state.step, self._image_format)
            loss = f"loss {self._last_loss}, " if self._last_loss else ""
            self._run.log(f"epoch {epoch}: {loss}samples in {file}")
        self._sign_of_life(False)

    def _sign_of_life(self, busy: bool) -> None:
        self._ranks.main_is_busy(busy)

    def error(self, text: str) -> None:
        self._progress.close()
        self._run.log(f"error: {text}", shown=False)  # the script prints it where it ends

    def ended_by(self, error: Exception, step: int) -> None:
        self._progress.close()
        if self._run.finish_saving(is_last=True):
            saved = f"saved at step {step:,}; --resume continues from here"
        else:
            saved = "the last checkpoint could not be written"
        self._run.log(f"error: {error}", shown=False)
        self._run.log(f"step {step:,} of {self._progress.total:,}: {saved}")

    def finished(self, step: int) -> None:
        self._end(step, f"finished; the weights are in {self._run.path / SLIM}")

    def stopped(self, step: int) -> None:
        self._end(step, "stopped, saved; --resume continues from here")

    def close(self) -> None:
        self._progress.close()
        self._run.close()

    def _end(self, step: int, how: str) -> None:
        self._progress.close()
        is_safe = self._run.finish_saving(is_last=True)
        if not is_safe:
            how = "the last checkpoint could not be written"
        self._run.log(f"step {step:,} of {self._progress.total:,}: {how}")
        if not is_safe:
            raise NotSaved(f"{how} into {self._run.path}")
