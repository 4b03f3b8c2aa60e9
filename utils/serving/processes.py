"""Training runs as ordinary tools/train.py processes in ordinary run folders.

The server starts them one after the other, and they do not depend on it: each is in a session of
its own and writes to files, so it goes on when the server ends, and the next server finds it by
its number and start time. What waits is kept in a file. Runs that were started by hand are listed
too. No torch here.
"""

import fcntl
import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import IO, TypeVar

from utils.errors import UserError
from utils.runs.names import holds_a_run
from utils.runs.safeguards import LOCK_IS_HELD, FolderLock, reason
from utils.serving.child_processes import ChildProcesses
from utils.serving.data_folders import DataFolders
from utils.serving.process_identity import ProcessIdentity, kill_group, send_signal
from utils.serving.refusal import not_found
from utils.serving.run_curves import CurvesInMemory
from utils.serving.run_evaluation import (
    RunEvaluation,
    find_evaluation,
    start_evaluation,
    weights_to_evaluate,
)
from utils.serving.run_facts import RunFacts
from utils.serving.run_list import RunList
from utils.serving.run_queue import RunQueue, WaitingTraining
from utils.serving.run_starter import RunStarter
from utils.serving.run_state import QUEUED, Run, find_liveness
from utils.serving.training_form import TRAINED_KIND, JsonValue, TrainingForm, check_run_name
from utils.serving.training_refusals import conflict, failed, invalid

OWN_FOLDER = ".serving"  # below the folder of results: the queue, and what is being deleted
LOCK = "lock"
TRASH = "trash"
SECONDS_BETWEEN_LOOKS = 1.0
OF_EVALUATION = ("cfg_scale", "use_gpu", "amp")  # options of a run that its evaluation has too

Found = TypeVar("Found")

logger = logging.getLogger("serve")


class Trainings:
    """All runs of a folder of results. Threads may use it.

    Raises UserError where another server looks after that folder, or it cannot be written.
    """

    def __init__(
        self,
        form: TrainingForm,
        result_path: Path,
        data_folder: Path,
        evaluate_script: Path,
        at_once: int = 1,  # trainings that run; started by hand or not
        grace: float = 10.0,  # seconds that a run has to save, before a second stop kills it
        most_waiting: int = 64,
    ):
        self.results = result_path.resolve()
        self.data = DataFolders(data_folder)
        self.form = replace(form, data=self.data)
        self.curves = CurvesInMemory()
        self.is_closing = threading.Event()
        self._grace = grace
        self._evaluate_script = evaluate_script
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None
        self._own = self.results / OWN_FOLDER
        try:
            self._own.mkdir(parents=True, exist_ok=True)
            self._lock_file = _lock_alone(self._own / LOCK)
        except OSError as error:
            raise UserError(
                f"the results folder {self.results} cannot be written: {reason(error)}"
            ) from None
        shutil.rmtree(self._own / TRASH, ignore_errors=True)
        self._queue = RunQueue(self._own)
        self._children = ChildProcesses()
        self._runs = RunList(self.results, self.data, self.form, self._queue, grace)
        self._starter = RunStarter(
            self.results,
            self.data,
            self.form,
            self._queue,
            self._runs,
            self._children,
            at_once,
            most_waiting,
        )

    @property
    def roots(self) -> list[Path]:
        """Folders that no text for clients names."""
        return self._runs.roots

    def start(self) -> None:
        """Begin to start what waits, in the background."""
        self._thread = threading.Thread(target=self._look_regularly, name="trainings", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop looking after the trainings. Those that run go on."""
        self.is_closing.set()
        if self._thread is not None:
            self._thread.join()
        self._lock_file.close()

    def look(self) -> None:
        """Note which processes have ended, and start what is next."""
        with self._lock:
            self._starter.note_ended()
            self._starter.start_next()

    def _look_regularly(self) -> None:
        while not self.is_closing.wait(SECONDS_BETWEEN_LOOKS):
            try:
                self.look()
            except Exception:  # the next look may succeed, and a server without it is worse
                logger.exception("looking after the trainings failed")

    # --- What there is ---

    def all(self) -> list[Run]:
        """All runs and what waits, newest first."""
        with self._lock:
            return self._look(self._runs.all)

    def find(self, name: str) -> Run:
        """Raises Refusal where there is no such run."""
        with self._lock:
            run = self._look(lambda: self._runs.find(name))
        if run is None:
            raise not_found(f"there is no run {name[:80]!a}", "name", "no_such_run")
        return run

    def evaluation_of(self, run: Run) -> RunEvaluation | None:
        """What tools/evaluate.py found of the run."""
        return find_evaluation(run.folder, self.roots)

    # --- What can be done ---

    def enqueue(self, name: str, dataset: str, options: Mapping[str, JsonValue]) -> Run:
        """Have a new run trained when its turn comes. Raises Refusal where it cannot be."""
        self.data.path(dataset)
        check_run_name(name)
        training = WaitingTraining(name, dataset, self.form.texts(options), time.time())
        with self._lock:
            self._starter.note_ended()
            self._check_new(name)
            self._add(training)
            return self.find(name)

    def resume(
        self, name: str, options: Mapping[str, JsonValue], allow_changes: bool = False
    ) -> Run:
        """Have a run continued when its turn comes, with other options where some are given.

        Raises Refusal where it cannot be.
        """
        with self._lock:
            run = self.find(name)
            if not run.can_resume or run.dataset is None:
                raise conflict(_why_not_resumed(run), "cannot_resume")
            given = self.form.texts(options)
            if "epochs" in given and "minutes" not in given and run.options.get("minutes"):
                raise invalid(
                    f"{name} was trained for so many minutes, and --epochs has no effect on its "
                    "length: more minutes make it longer",
                    "epochs",
                )
            training = WaitingTraining(
                name=name,
                dataset=run.dataset,
                options={**run.options, **given},
                since=time.time(),
                resume=True,
                allow_changes=allow_changes,
            )
            self._add(training)
            return self.find(name)

    def stop(self, name: str) -> Run:
        """Ask a run to save and end; where it was asked long enough ago, kill it.

        Raises Refusal where nothing can be stopped.
        """
        with self._lock:
            run = self.find(name)
            facts = self._runs.facts(name)
            alive = find_liveness(facts) if facts is not None else None
            if facts is None or alive is None or not alive.is_alive:
                waits = ": it waits for its turn" if run.state == QUEUED else ""
                raise conflict(f"{name} does not run{waits}", "not_running")
            if alive.process is None:
                raise conflict(
                    f"{name} is not a process of this machine and user, so it cannot be stopped "
                    "from here",
                    "cannot_stop",
                )
            self._stop(facts, alive.process)
            return self.find(name)

    def unqueue(self, name: str) -> None:
        """Take a training out of the queue. Raises Refusal where it does not wait."""
        with self._lock:
            if self._queue.find(name) is None:
                self.find(name)
                raise conflict(f"{name} does not wait", "not_queued")
            self._starter.remove(name)

    def delete(self, name: str) -> None:
        """Remove the folder of a run that does not run. Raises Refusal where that cannot be."""
        with self._lock:
            run = self.find(name)
            if self._queue.find(name) is not None:
                raise conflict(f"{name} waits: take it out of the queue first", "is_queued")
            evaluation = self.evaluation_of(run)
            if run.is_alive or (evaluation is not None and evaluation.is_alive):
                raise conflict(f"{name} is running: stop it first", "is_running")
            self._delete(run)

    def evaluate(self, name: str, num_images: int, sample_steps: int) -> Run:
        """Start tools/evaluate.py on the run's weights. Raises Refusal where that cannot be."""
        with self._lock:
            run = self.find(name)
            evaluation = self.evaluation_of(run)
            if evaluation is not None and evaluation.is_alive:
                raise conflict(f"{name} is being evaluated", "is_evaluated")
            file = weights_to_evaluate(run.folder)
            if file is None or run.kind != TRAINED_KIND:
                raise conflict(f"{name} has no weights that make images", "no_weights")
            if run.dataset is None:
                raise conflict(
                    f"the images that {name} was trained on are not in the data folder",
                    "no_dataset",
                )
            try:
                start_evaluation(
                    run.folder,
                    self._evaluate_script,
                    self.data.path(run.dataset),
                    file,
                    num_images,
                    sample_steps,
                    {key: run.options[key] for key in OF_EVALUATION if key in run.options},
                    self._children,
                )
            except OSError as error:
                raise failed(f"the evaluation could not be started: {reason(error)}") from None
            return run

    # --- How ---

    def _look(self, look: Callable[[], Found]) -> Found:
        """What a look at the runs finds. It is taken again where a process ended meanwhile, since
        that run would seem to have ended without an exit status.
        """
        self._starter.note_ended()
        found = look()
        while self._starter.note_ended():
            found = look()
        return found

    def _add(self, training: WaitingTraining) -> None:
        """To the queue, once the script's own checks have passed."""
        self.form.check_together(self._starter.arguments(training))
        self._starter.add(training)

    def _check_new(self, name: str) -> None:
        """Raise Refusal where a new run cannot have this name."""
        if self._queue.find(name) is not None:
            raise conflict(f"a training named {name} waits already", "run_exists")
        folder = self.results / name
        if not os.path.lexists(folder):
            return
        facts = self._runs.facts(name)
        never_trained = (
            facts is not None
            and not facts.record.is_empty
            and not holds_a_run(folder)
            and not find_liveness(facts).is_alive
        )
        if not never_trained:
            raise conflict(
                f"{name} is in the results already: resume it, or choose another name",
                "run_exists",
            )

    def _stop(self, facts: RunFacts, process: ProcessIdentity) -> None:
        """Signal the process of a run."""
        record = facts.record
        if record.process != process:
            record = record.of_foreign(process)
        now = time.time()
        if record.stop_asked is None:
            try:
                record.changed(stop_asked=now).write(facts.folder)
            except OSError as error:
                raise failed(f"the run's folder cannot be written: {reason(error)}") from None
            send_signal(process, signal.SIGTERM)
        elif now >= record.stop_asked + self._grace and record.is_foreign:
            send_signal(process, signal.SIGKILL)
        elif now >= record.stop_asked + self._grace:
            kill_group(process)

    def _delete(self, run: Run) -> None:
        """Out of the way first: whoever looks sees the whole run or none."""
        aside = self._own / TRASH / str(time.time_ns())
        try:
            lock = FolderLock(run.folder)
            try:
                aside.parent.mkdir(exist_ok=True)
                os.rename(run.folder, aside)
            finally:
                lock.close()
            shutil.rmtree(aside)
        except UserError:
            raise conflict(f"{run.name} is running: stop it first", "is_running") from None
        except OSError as error:
            raise failed(f"{run.name} could not be deleted: {reason(error)}") from None


def _lock_alone(file: Path) -> IO[str]:
    """The lock file, held until it is closed. UserError where another server holds it."""
    stream = open(file, "a")
    try:
        fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in LOCK_IS_HELD:
            stream.close()
            raise UserError(
                f"another server looks after the trainings in {file.parent.parent}; choose "
                "another --result_path"
            ) from None
        logger.warning("%s: the file system has no locks; start one server only", reason(error))
    return stream


def _why_not_resumed(run: Run) -> str:
    if run.is_alive or run.state == QUEUED:
        return f"{run.name} is {run.state}"
    if run.kind != TRAINED_KIND:
        return f"{run.name} is an {run.kind}: resume it in a terminal"
    if run.dataset is None:
        return (
            f"the images that {run.name} was trained on are not in the data folder: resume it in "
            "a terminal"
        )
    return f"{run.name} has no checkpoint to resume from: delete it, and start it again"
