"""results/<run_name>/: everything that a run writes, and the lock that keeps others out."""

import contextlib
import json
import os
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from utils.console import say
from utils.errors import UserError
from utils.pictures import save_image
from utils.ranks import Ranks
from utils.runs.evaluations import (
    Evaluation,
    append_evaluation,
    cut_back_evaluations,
    evaluations_up_to,
)
from utils.runs.failures import Failures
from utils.runs.files import (
    read_checkpoint,
    save_checkpoint,
    snapshot,
)
from utils.runs.metrics_log import MetricsLog
from utils.runs.names import (
    AVERAGES,
    BEST,
    BEST_SLIM,
    CONFIG,
    EVALUATIONS,
    LAST,
    LOCK,
    LOG,
    METRICS,
    PREVIOUS,
    SAMPLES,
    SLIM,
    STATUS,
    averages_name,
    can_be_resumed,
    epochs_of,
    holds_a_run,
    numbered_name,
    preview_name,
    step_of_averages,
)
from utils.runs.safeguards import FolderLock, add_name, reason, warn_once
from utils.text import printable

MOST_OF_ONE_NAME = 100_000  # folders name, name-2, ...
ONLY_TO_RESUME = (
    "network",
    "optimizer",
    "scaler",
    "averages",
)  # what the file for generation leaves out


class RunFolder:
    """The folder of one run, opened for writing by one process.

    UserError where the folder cannot be written, is in use by another process, or holds an earlier
    run while `resume` is False.
    """

    def __init__(self, path: Path, resume: bool):
        self.path = path
        if resume and not path.is_dir():
            raise UserError(f"--resume: there is no run {path}; leave --resume out to start it")
        try:
            (path / SAMPLES).mkdir(parents=True, exist_ok=True)
            self._lock = FolderLock(path)
            if not resume and holds_a_run(path):
                self._lock.close()
                raise UserError(_holds_a_run(path))
        except OSError as error:
            raise cannot_be_written(path, error) from None
        self._failures = Failures(path)
        self._metrics = MetricsLog(path, self._failures)
        self._saving: threading.Thread | None = None
        self._save_error: Exception | None = None  # that has not been reported yet
        self._save_failed = False  # the last one
        self._is_saved = (path / LAST).exists()  # an earlier one
        self._may_replace_previous = True
        self._config = ""  # the text of config.json
        self.evaluations: list[Evaluation] = []  # of the whole run, by step
        self.best_step: int | None = None  # of ema_best.pt

    def start(self, config: dict, step: int, source: Path | None = None) -> None:
        """Write config.json, and look at what the run has measured up to `step`, where it begins or
        resumes; what is there of later steps stays until `drop_later`.

        Where it resumes from ckpt_prev.pt (`source`), the last checkpoint is damaged and must not
        take that one's place. UserError where the folder cannot be written.
        """
        try:
            self._lock.claim()
            self._may_replace_previous = self._last_may_become_previous(source)
            for folder in (self.path, self.path / SAMPLES, self.path / AVERAGES):
                for half in folder.glob("*.tmp"):  # of a save that a kill cut short
                    half.unlink(missing_ok=True)
            self._write_config(json.dumps(config, indent=2) + "\n")
            self.evaluations = evaluations_up_to(self.path, step)
            best_step = self._step_of_best()
            self.best_step = None if best_step is None or best_step > step else best_step
        except OSError as error:
            raise cannot_be_written(self.path, error) from None

    def keep_config(self, config: dict) -> None:
        """Write config.json anew where it has changed: some of it is known after the last step."""
        text = json.dumps(config, indent=2) + "\n"
        if text != self._config:
            with self._failures.tolerated(CONFIG):
                self._write_config(text)

    def _write_config(self, text: str) -> None:
        temporary = self.path / f"{CONFIG}.tmp"
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, self.path / CONFIG)
        self._config = text

    def _last_may_become_previous(self, source: Path | None) -> bool:
        """Not where it is damaged, nor where the run resumes from it or the previous one: that is
        about to be written again.
        """
        if source is None:
            return True
        if source.name in (LAST, PREVIOUS):
            return False
        try:
            read_checkpoint(self.path / LAST)
        except UserError:
            return False
        return True

    def drop_later(self, step: int) -> None:
        """Cut metrics and evaluations back to `step`, and remove the best checkpoint and the
        averages of later steps, which are not of this run. Only when the checkpoint of `step` is
        safe: before that, a run that cannot save would lose them for nothing. UserError where that
        cannot be written.
        """
        try:
            self._metrics.cut_back(step)
            cut_back_evaluations(self.path, step)
            best_step = self._step_of_best()
            if best_step is not None and best_step > step:
                (self.path / BEST).unlink(missing_ok=True)
                (self.path / BEST_SLIM).unlink(missing_ok=True)
            self._remove_later_averages(step)
        except OSError as error:
            raise cannot_be_written(self.path, error) from None

    def log(self, text: str, shown: bool = True) -> None:
        """Print the text (if `shown`) above the progress bar; add it to log.txt with the time."""
        text = printable(text)
        if shown:
            say(text)
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        with self._failures.tolerated(LOG):
            with open(self.path / LOG, "a", encoding="utf-8") as file:
                file.write(f"{now} {text}\n")

    def write_metrics(self, rows: Sequence[dict[str, float]]) -> None:
        """Add one row per step to metrics.csv and to TensorBoard; NaN is left empty."""
        self._metrics.append(rows)

    def _step_of_best(self) -> int | None:
        """Which step the best checkpoint is of; None where there is none that can be read."""
        try:
            found = read_checkpoint(self.path / BEST_SLIM)
            return int(found["state"]["step"])
        except (UserError, KeyError, TypeError, ValueError):
            return None

    def _remove_later_averages(self, step: int) -> None:
        """Those from after `step`."""
        for file in (self.path / AVERAGES).glob("*"):
            kept_at = step_of_averages(file.name)
            if kept_at is not None and kept_at > step:
                file.unlink(missing_ok=True)

    def write_evaluation(self, evaluation: Evaluation, epoch: int, is_best: bool) -> None:
        """Add what it measured to the row of its step in metrics.csv and to TensorBoard; where it
        is the best so far, keep the checkpoint that was saved last as the best one too; then add it
        to evaluations.jsonl. In this order: a run that is resumed without that line does all again.
        """
        self._metrics.amend({"step": evaluation.step, "epoch": epoch, **evaluation.scalars()})
        if is_best:
            self.keep_as_best(evaluation.step)
        self.evaluations.append(evaluation)
        with self._failures.tolerated(EVALUATIONS):
            append_evaluation(self.path, evaluation)

    def write_status(self, status: dict) -> None:
        """Write status.json, for programs that watch the run."""
        with self._failures.tolerated(STATUS):
            temporary = self.path / f"{STATUS}.tmp"
            temporary.write_text(json.dumps(status, indent=2) + "\n", encoding="utf-8")
            os.replace(temporary, self.path / STATUS)

    def keep_as_best(self, step: int) -> None:
        """Keep the checkpoint that was saved last, of this step, as ckpt_best.pt and ema_best.pt
        too. `best_step` says whether that could be done.
        """
        if not self.finish_saving():
            return
        with self._failures.tolerated(BEST):
            add_name(self.path / LAST, self.path / BEST)
            add_name(self.path / SLIM, self.path / BEST_SLIM)
            self.best_step = step

    def write_preview(self, picture: Image.Image, epoch: int, step: int, image_format: str) -> Path:
        """Save a grid of samples as samples/epoch_<n>.<format>, and show it in TensorBoard."""
        file = self.path / SAMPLES / f"{preview_name(epoch)}.{image_format}"
        with self._failures.tolerated(SAMPLES):
            save_image(picture, file)
        self._metrics.add_image("samples", picture, step)
        return file

    def has_preview(self, epoch: int) -> bool:
        """Whether a preview of this epoch has been written, in whatever format."""
        return any((self.path / SAMPLES).glob(f"{preview_name(epoch)}.*"))

    def write_checkpoint(self, contents: dict, epoch: int | None, keep: int) -> None:
        """Write ckpt_last.pt, ema_last.pt, and for an epoch ckpt_<epoch>.pt, of which the newest
        `keep` stay (0: all).

        The files are written in the background from a copy, while training continues. A failure is
        reported by the next `check_saving`.
        """
        self.finish_saving()
        self._save_failed = False
        self._saving = threading.Thread(
            target=self._save_in_background, args=(snapshot(contents), epoch, keep)
        )
        self._saving.start()

    def write_averages(self, contents: dict, step: int) -> None:
        """Write averages/step_<n>.pt, of which an average is put together afterwards."""
        with self._failures.tolerated(AVERAGES):
            (self.path / AVERAGES).mkdir(exist_ok=True)
            save_checkpoint(contents, self.path / AVERAGES / averages_name(step))

    def check_saving(self, is_last: bool = False) -> bool:
        """Whether the last checkpoint is safe, as far as is known.

        A full or failing disk is reported, once per save; any other error of a save is raised here.
        `is_last`: no training follows.
        """
        error, self._save_error = self._save_error, None
        if error is None:
            return not self._save_failed
        if not isinstance(error, OSError):
            raise error
        before = "; the previous one is intact" if self._is_saved else ""
        ending = "" if is_last else "; training continues"
        self.log(f"warning: the checkpoint could not be written ({reason(error)}){before}{ending}")
        return False

    def finish_saving(self, is_last: bool = False) -> bool:
        """Wait for the checkpoint that is being written; whether it is safe."""
        if self._saving is not None:
            self._saving.join()
        return self.check_saving(is_last)

    def is_own(self) -> bool:
        """Whether the folder is still this run's, as far as can be told."""
        try:
            self._lock.check()
        except (OSError, UserError):
            return False
        return True

    def free_name(self) -> None:
        """Where nothing has been trained: remove what would look like a run, so that another one
        can have the name.
        """
        for name in (LAST, SLIM, METRICS):
            with self._failures.tolerated(name):
                (self.path / name).unlink(missing_ok=True)

    def close(self) -> None:
        """Wait for the last save, then let other processes write into the folder."""
        if self._saving is not None:
            self._saving.join()
        self._metrics.close()
        self._lock.close()

    def _save_in_background(self, contents: dict, epoch: int | None, keep: int) -> None:
        """What the thread does: errors are kept for `check_saving`."""
        try:
            self._save(contents, epoch, keep)
        except Exception as error:
            self._save_failed = True
            self._save_error = error

    def _save(self, contents: dict, epoch: int | None, keep: int) -> None:
        self._lock.check()
        save_checkpoint(contents, self.path / LAST, keep_previous=self._may_replace_previous)
        self._may_replace_previous = True
        slim = {key: value for key, value in contents.items() if key not in ONLY_TO_RESUME}
        save_checkpoint(slim, self.path / SLIM)
        if epoch is not None:
            save_checkpoint(contents, self.path / numbered_name(epoch))
            if keep:
                self._remove_older(epoch, keep)
        self._is_saved = True
        self._metrics.try_again()

    def _remove_older(self, epoch: int, keep: int) -> None:
        """Remove numbered checkpoints up to this epoch, but for the newest `keep`."""
        earlier = [number for number in numbered_epochs(self.path) if number <= epoch]
        for old in earlier[:-keep]:
            file = self.path / numbered_name(old)
            try:
                file.unlink(missing_ok=True)
            except OSError as error:
                warn_once("remove", f"{file} could not be removed: {reason(error)}")


def _holds_a_run(path: Path) -> str:
    """Why a new run cannot have the folder, and what would work."""
    if can_be_resumed(path):
        return f"{path} holds an earlier run: resume it with --resume, or choose another --run_name"
    return f"{path} holds files of an earlier run: choose another --run_name, or move them away"


def cannot_be_written(path: Path, error: OSError) -> UserError:
    return UserError(f"the results folder {path} cannot be written: {reason(error)}")


def new_folder(parent: Path, name: str) -> Path:
    """parent/name, or where that exists name-2, name-3, ...: earlier results stay."""
    for number in range(1, MOST_OF_ONE_NAME):
        folder = parent / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue
        except OSError as error:
            raise UserError(f"cannot make the folder {folder}: {error.strerror}") from None
    raise UserError(
        f"{parent} holds {MOST_OF_ONE_NAME:,} folders named {name}; choose another name"
    )


@contextlib.contextmanager
def writing_beside_runs(folder: Path) -> Iterator[None]:
    """A folder that may be a run's, while one of its files is changed. UserError where the run is
    being trained, which writes these files itself.
    """
    if not (folder / LOCK).exists():
        yield
        return
    try:
        lock = FolderLock(folder)
    except UserError:
        raise UserError(
            f"a run is being trained in {folder}, and writes its files itself: wait until it ends"
        ) from None
    except OSError as error:
        raise cannot_be_written(folder, error) from None
    try:
        yield
    finally:
        lock.close()


@contextlib.contextmanager
def results_folder(parent: Path, name: str) -> Iterator[Path]:
    """A new folder for results, made before the long work. Where that fails, none is left empty."""
    folder = new_folder(parent, name)
    try:
        yield folder
    finally:
        with contextlib.suppress(OSError):  # not empty: it stays
            folder.rmdir()


@contextlib.contextmanager
def shared_results_folder(parent: Path, name: str, ranks: Ranks) -> Iterator[Path]:
    """The same for several processes, of which the main one makes it."""
    with contextlib.ExitStack() as stack:
        own = stack.enter_context(results_folder(parent, name)) if ranks.is_main else None
        yield ranks.gather(own)[ranks.main_rank]


def numbered_epochs(path: Path) -> list[int]:
    """The epochs whose checkpoints are kept under their number, ascending."""
    return epochs_of(file.name for file in path.glob("ckpt_*.pt"))


def find_checkpoint(path: Path, start_epoch: int) -> tuple[dict, Path]:
    """The contents and the file of the checkpoint that --resume continues: that of an epoch, or
    (start_epoch -1) the last one that is whole. UserError where there is none.
    """
    if start_epoch >= 0:
        return find_numbered(path, start_epoch)
    last, previous = path / LAST, path / PREVIOUS
    if not can_be_resumed(path):
        instead = "leave --resume out to start the run"
        if numbered_epochs(path):
            instead = "--start_epoch resumes from a numbered one"
        elif holds_a_run(path):
            instead = "--run_name names another run"
        raise UserError(f"--resume: there is no checkpoint in {path}; {instead}")
    try:
        return read_checkpoint(last), last
    except UserError as error:
        if not previous.exists():
            raise
        say(f"warning: {error}; the run resumes from {previous} instead")
    return read_checkpoint(previous), previous


def find_numbered(path: Path, epoch: int) -> tuple[dict, Path]:
    """The contents and the file of an epoch's checkpoint."""
    file = path / numbered_name(epoch)
    if not file.exists():
        saved = ", ".join(str(number) for number in numbered_epochs(path)) or "none"
        raise UserError(f"--start_epoch {epoch}: there is no {file}; saved epochs: {saved}")
    return read_checkpoint(file), file
