"""What a run folder does with metrics, checkpoints, evaluations and previews. Only the main process
writes.
"""

from collections.abc import Callable
from typing import Protocol

from PIL import Image

from utils.console import Progress
from utils.errors import NotSaved, UserError
from utils.evaluation.restoration import restoration_in_words
from utils.evaluation.verdict import Circumstances, Verdict, judge, sentence
from utils.ranks import Ranks
from utils.runs.evaluations import Evaluation
from utils.runs.folder import RunFolder
from utils.runs.names import BEST_SLIM, SLIM
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

    def averages(self, state: TrainState) -> None:
        """Keep the averages of this step, from which one is chosen afterwards."""

    def preview(self, state: TrainState, epoch: int, resumed: bool) -> None:
        """Draw and write a preview of the averaged network; all processes call it together."""

    def has_evaluation(self, step: int) -> bool:
        """Whether this step was evaluated before; the same answer on all processes."""

    def evaluation(self, evaluation: Evaluation, epoch: int) -> None:
        """What was measured of the checkpoint that was saved last."""

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

    def averages(self, state: TrainState) -> None:
        pass

    def preview(self, state: TrainState, epoch: int, resumed: bool) -> None:
        while self._has_previews and self._ranks.main_is_busy(False):
            pass

    def has_evaluation(self, step: int) -> bool:
        return self._ranks.told_by_main(False)

    def evaluation(self, evaluation: Evaluation, epoch: int) -> None:
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
        twice_as_long: str = "",  # the option that gives the run twice its length
        holds_out: bool = False,  # images, to measure on
        kind: str = "diffusion",  # of checkpoint
    ):
        self._run = run
        self._ranks = ranks
        self._preview_fn = preview_fn
        self._keep = keep
        self._image_format = image_format
        self._twice_as_long = twice_as_long
        self._holds_out = holds_out
        self._kind = kind
        self._last_loss = ""
        self._step = first_step
        self._total_steps = total_steps
        self._progress = Progress(total_steps, initial=first_step, unit="step", title="training")
        self._state = "running"
        self._write_status("running", judge(run.evaluations))

    def step_done(self) -> None:
        self._step += 1
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
        if wait and not self._run.finish_saving(is_last=True):
            problem = f"no checkpoint can be written into {self._run.path}"
            self.error(problem)
            if state.step == 0:
                self._run.free_name()
            raise UserError(problem)
        if wait:
            self._run.drop_later(state.step)
        self._run.keep_config(state.record())

    def averages(self, state: TrainState) -> None:
        contents = state.checkpoint(0).to_dict()
        kept = {name: contents[name] for name in ("format_version", "kind", "state", "averages")}
        self._run.write_averages(kept, state.step)

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

    def has_evaluation(self, step: int) -> bool:
        found = any(evaluation.step == step for evaluation in self._run.evaluations)
        is_best = found and judge(self._run.evaluations).best_step == step
        if is_best and self._run.best_step != step:
            self._run.keep_as_best(step)  # the run went back to its best step
        return self._ranks.told_by_main(found)

    def evaluation(self, evaluation: Evaluation, epoch: int) -> None:
        if not evaluation.is_finite:
            self._run.log(f"warning: epoch {epoch}: what was measured is not finite, and left out")
            return
        evaluation = Evaluation.from_line(evaluation.to_line())  # rounded, as a resumed run sees it
        verdict = judge([*self._run.evaluations, evaluation])
        is_best = verdict.best_step == evaluation.step
        self._run.write_evaluation(evaluation, epoch, is_best)
        was_kept = is_best and self._run.best_step == evaluation.step
        text = f"epoch {epoch}: " + ", ".join(self._in_words(evaluation))
        self._run.log(text + (", the best so far" if was_kept else ""))
        self._write_status("running", verdict)

    def _in_words(self, evaluation: Evaluation) -> list[str]:
        parts = []
        if evaluation.time_steps:
            parts.append(f"loss on held-out images {evaluation.held_out_loss:.4f}")
            parts.append(f"on training images {evaluation.training.mean():.4f}")
        if "kid" in evaluation.scores:
            scores = evaluation.scores
            parts.append(f"KID {scores['kid']:.4f} +- {scores['kid_se']:.4f}")
        if "psnr" in evaluation.scores:
            parts.append(restoration_in_words(evaluation.scores))
        return parts

    def _write_status(self, state: str, verdict: Verdict) -> None:
        """`state`: running, finished, stopped or failed."""
        self._state = state
        self._run.write_status(
            {
                "state": state,
                "step": self._step,
                "total_steps": self._total_steps,
                "verdict": verdict.to_dict(),
                "sentence": self._sentence(verdict),
                "best_file": BEST_SLIM if self._has_best(verdict) else None,
            }
        )

    def _has_best(self, verdict: Verdict) -> bool:
        """Whether ema_best.pt holds the weights of the best step."""
        return verdict.best_step is not None and verdict.best_step == self._run.best_step

    def _sentence(self, verdict: Verdict) -> str:
        circumstances = Circumstances(
            kind=self._kind,
            best_file=self._run.path / BEST_SLIM if self._has_best(verdict) else None,
            twice_as_long=self._twice_as_long,
            is_finished=self._step >= self._total_steps,
            holds_out=self._holds_out,
        )
        return sentence(verdict, circumstances)

    def _sign_of_life(self, busy: bool) -> None:
        self._ranks.main_is_busy(busy)

    def error(self, text: str) -> None:
        self._progress.close()
        self._write_status("failed", judge(self._run.evaluations))
        self._run.log(f"error: {text}", shown=False)  # the script prints it where it ends

    def ended_by(self, error: Exception, step: int) -> None:
        self._progress.close()
        if self._run.finish_saving(is_last=True):
            saved = f"saved at step {step:,}; --resume continues from here"
        else:
            saved = "the last checkpoint could not be written"
        self._write_status("failed", judge(self._run.evaluations))
        self._run.log(f"error: {error}", shown=False)
        self._run.log(f"step {step:,} of {self._total_steps:,}: {saved}")

    def finished(self, step: int) -> None:
        self._end(step, "finished", f"finished; the weights are in {self._run.path / SLIM}")
        last = self._run.evaluations[-1] if self._run.evaluations else None
        if last is not None and "psnr" in last.scores:
            figures = restoration_in_words(last.scores)
            self._run.log(f"Held-out images: {figures} ({last.convention}).")
        self._run.log(self._sentence(judge(self._run.evaluations)))

    def stopped(self, step: int) -> None:
        self._end(step, "stopped", "stopped, saved; --resume continues from here")

    def close(self) -> None:
        self._progress.close()
        if self._state == "running" and self._run.is_own():  # an error that nobody has foreseen
            self._write_status("failed", judge(self._run.evaluations))
        self._run.close()

    def _end(self, step: int, state: str, how: str) -> None:
        self._progress.close()
        is_safe = self._run.finish_saving(is_last=True)
        self._write_status(state if is_safe else "failed", judge(self._run.evaluations))
        if not is_safe:
            how = "the last checkpoint could not be written"
        self._run.log(f"step {step:,} of {self._total_steps:,}: {how}")
        if not is_safe:
            raise NotSaved(f"{how} into {self._run.path}")
