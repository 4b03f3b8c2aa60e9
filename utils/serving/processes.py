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
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from utils.errors import UserError
from utils.runs.names import holds_a_run
from utils.runs.safeguards import LOCK_IS_HELD, FolderLock, reason
from utils.serving.child_processes import ChildProcesses
from utils.serving.data_folders import DataFolders
from utils.serving.process_identity import ProcessIdentity, kill_group, send_signal
from utils.serving.refusal import INVALID_REQUEST, SERVER_ERROR, UNAVAILABLE, Refusal, not_found
from utils.serving.run_curves import CurvesInMemory
from utils.serving.run_evaluation import (
    RUNNING as EVALUATION_RUNNING,
)
from utils.serving.run_evaluation import (
    RunEvaluation,
    find_evaluation,
    start_evaluation,
    weights_to_evaluate,
)
from utils.serving.run_facts import RunFacts
from utils.serving.run_queue import RunQueue, WaitingTraining
from utils.serving.run_record import OUTPUT, RunRecord, mark_of
from utils.serving.run_state import (
    QUEUED,
    Liveness,
    Run,
    find_error,
    find_liveness,
    find_state,
    progress_of,
    sentence_of,
    verdict_of,
)
from utils.serving.safe_files import is_folder, is_text, names_in
from utils.serving.training_form import JsonValue, TrainingForm, check_run_name

OWN_FOLDER = ".serving"  # below the folder of results: the queue, and what is being deleted
LOCK = "lock"
TRASH = "trash"
RESUMED_KIND = "diffusion"  # what tools/train.py trains
SECONDS_BETWEEN_LOOKS = 1.0

logger = logging.getLogger("serve")


def conflict(message: str, code: str) -> Refusal:
    """What cannot be done now."""
    return Refusal(409, message, INVALID_REQUEST, code=code)


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
        self.form = form
        self.results = result_path.resolve()
        self.data = DataFolders(data_folder)
        self.curves = CurvesInMemory()
        self.at_once = at_once
        self.grace = grace
        self.most_waiting = most_waiting
        self.is_closing = threading.Event()
        self._evaluate_script = evaluate_script
        self._lock = threading.RLock()
        self._children = ChildProcesses()
        self._facts: dict[str, RunFacts] = {}
        self._thread: threading.Thread | None = None
        try:
            (self.results / OWN_FOLDER / TRASH).mkdir(parents=True, exist_ok=True)
            self._lock_file = _lock_alone(self.results / OWN_FOLDER / LOCK)
        except OSError as error:
            raise UserError(
                f"the results folder {self.results} cannot be written: {reason(error)}"
            ) from None
        self._queue = RunQueue(self.results / OWN_FOLDER)
        shutil.rmtree(self.results / OWN_FOLDER / TRASH, ignore_errors=True)

    @property
    def roots(self) -> list[Path]:
        """Folders that no text for clients names."""
        return [self.results, self.data.root]

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
            self._note_ended()
            self._start_next()

    # --- What there is ---

    def all(self) -> list[Run]:
        """All runs and what waits, newest first."""
        with self._lock:
            self._note_ended()
            names = [name for name in names_in(self.results) if is_text(name)]
            names += [each.name for each in self._queue if each.name not in names]
            found = [self._find(name) for name in names]
            self._facts = {name: self._facts[name] for name in names if name in self._facts}
        runs = [run for run in found if run is not None]
        return sorted(runs, key=_newest_first)

    def find(self, name: str) -> Run:
        """Raises Refusal where there is no such run."""
        with self._lock:
            self._note_ended()
            run = self._find(name)
        if run is None:
            raise not_found(f"there is no run {name[:80]!a}", "name", "no_such_run")
        return run

    def evaluation_of(self, run: Run) -> RunEvaluation | None:
        """What tools/evaluate.py found of the run."""
        return find_evaluation(run.folder, self.roots)

    # --- What can be done ---

    def enqueue(self, name: str, dataset: str, options: Mapping[str, JsonValue]) -> Run:
        """Have a new run trained when its turn comes. Raises Refusal where it cannot be."""
        path = self.data.path(dataset)
        check_run_name(name)
        texts = self.form.texts(options)
        with self._lock:
            self._note_ended()
            self._check_new(name)
            self.form.check_together(self.form.arguments(name, path, self.results, texts))
            self._add(WaitingTraining(name, dataset, texts, time.time()))
            return self.find(name)

    def resume(
        self, name: str, options: Mapping[str, JsonValue], allow_changes: bool = False
    ) -> Run:
        """Have a run continued when its turn comes, with other options where some are given.

        Raises Refusal where it cannot be.
        """
        with self._lock:
            run = self.find(name)
            if run.state == QUEUED:
                raise conflict(f"{name} waits for its turn already", "is_queued")
            if not run.can_resume or run.dataset is None:
                raise conflict(_why_not_resumed(run), "cannot_resume")
            texts = {**run.options, **self.form.texts(options)}
            training = WaitingTraining(
                name, run.dataset, texts, time.time(), resume=True, allow_changes=allow_changes
            )
            self.form.check_together(self._arguments(training))
            self._add(training)
            return self.find(name)

    def stop(self, name: str) -> Run:
        """Ask a run to save and end; where it was asked long enough ago, kill it.

        Raises Refusal where nothing can be stopped.
        """
        with self._lock:
            run = self.find(name)
            if run.state == QUEUED:
                raise conflict(f"{name} waits, and does not run: take it out of the queue", QUEUED)
            facts = self._facts[name]
            alive = find_liveness(facts)
            if not alive.is_alive:
                raise conflict(f"{name} does not run", "not_running")
            if alive.process is None:
                raise conflict(
                    f"{name} is not a process of this machine and user, so it cannot be stopped "
                    "from here",
                    "cannot_stop",
                )
            self._stop(facts, alive, alive.process)
            return self.find(name)

    def unqueue(self, name: str) -> None:
        """Take a training out of the queue. Raises Refusal where it does not wait."""
        with self._lock:
            if self._queue.find(name) is None:
                self.find(name)
                raise conflict(f"{name} does not wait", "not_queued")
            self._change_queue(lambda: self._queue.remove(name))

    def delete(self, name: str) -> None:
        """Remove the folder of a run that does not run. Raises Refusal where that cannot be."""
        with self._lock:
            run = self.find(name)
            if run.state == QUEUED:
                raise conflict(f"{name} waits: take it out of the queue first", "is_queued")
            evaluation = self.evaluation_of(run)
            is_evaluated = evaluation is not None and evaluation.state == EVALUATION_RUNNING
            if run.is_alive or is_evaluated:
                raise conflict(f"{name} is running: stop it first", "is_running")
            self._delete(run)

    def evaluate(self, name: str, num_images: int, sample_steps: int) -> Run:
        """Start tools/evaluate.py on the run's weights. Raises Refusal where that cannot be."""
        with self._lock:
            run = self.find(name)
            evaluation = self.evaluation_of(run)
            if evaluation is not None and evaluation.state == EVALUATION_RUNNING:
                raise conflict(f"{name} is being evaluated", "is_evaluated")
            file = weights_to_evaluate(run.folder)
            if file is None or run.kind != RESUMED_KIND:
                raise conflict(f"{name} has no weights that make images", "no_weights")
            if run.dataset is None:
                raise conflict(
                    f"the images that {name} was trained on are not in the data folder",
                    "no_dataset",
                )
            names = ("cfg_scale", "use_gpu", "amp")
            options = {key: run.options[key] for key in names if key in run.options}
            try:
                start_evaluation(
                    run.folder,
                    self._evaluate_script,
                    self.data.path(run.dataset),
                    file,
                    num_images,
                    sample_steps,
                    options,
                    self._children,
                )
            except OSError as error:
                raise _failed(f"the evaluation could not be started: {reason(error)}") from None
            return run

    # --- One run ---

    def _find(self, name: str) -> Run | None:
        """The run of this name; None where there is none."""
        waiting = self._queue.find(name) if is_text(name) else None
        facts = self._facts_of(name)
        if facts is None:
            if waiting is None:
                return None
            return Run(
                folder=self.results / name,
                name=name,
                state=QUEUED,
                queue_position=self._queue.place(name),
                dataset=waiting.dataset,
                options=waiting.options,
                kind=RESUMED_KIND,
            )
        return self._describe(facts, waiting)

    def _facts_of(self, name: str) -> RunFacts | None:
        """The facts of the run in this folder; None where it is none."""
        is_name = is_text(name) and not name.startswith(".") and not set("/\\\0") & set(name)
        if not name or not is_name or not is_folder(self.results / name):
            self._facts.pop(name, None)
            return None
        facts = self._facts.get(name)
        if facts is None:
            facts = RunFacts(self.results / name)
            self._facts[name] = facts
        return facts if facts.is_run else None

    def _describe(self, facts: RunFacts, waiting: WaitingTraining | None) -> Run:
        alive = find_liveness(facts)
        state = find_state(facts, alive)
        if waiting is not None and not alive.is_alive:
            state = QUEUED
        record = facts.record
        dataset = self._dataset_of(facts)
        verdict, best_step = verdict_of(facts)
        is_stopping = alive.process == record.process and record.stop_asked is not None
        can_be_resumed = facts.kind == RESUMED_KIND and facts.can_be_continued
        return Run(
            folder=facts.folder,
            name=facts.name,
            state=state,
            kind=facts.kind or RESUMED_KIND,
            queue_position=self._queue.place(facts.name),
            step=facts.step,
            total_steps=facts.total_steps,
            progress=progress_of(facts),
            seconds_left=facts.seconds_left if alive.is_alive else None,
            sentence=sentence_of(facts, self.roots),
            verdict=verdict,
            best_step=best_step,
            started=record.started or facts.started,
            dataset=dataset,
            can_resume=can_be_resumed and not alive.is_alive and dataset is not None,
            can_stop=alive.process is not None,
            kill_after=(record.stop_asked or 0) + self.grace if is_stopping else None,
            error=find_error(facts, state, self.roots),
            checkpoints=facts.checkpoints(),
            previews=facts.previews(),
            options=self.form.recorded_texts(facts.arguments) or record.options,
        )

    def _dataset_of(self, facts: RunFacts) -> str | None:
        """The data folder that the run trains on; None where it is not among those served."""
        recorded = facts.arguments.get("dataset_path")
        if recorded is not None:
            return self.data.name_of(recorded)
        return facts.record.dataset

    def _check_new(self, name: str) -> None:
        """Raise Refusal where a new run cannot have this name."""
        folder = self.results / name
        if self._queue.find(name) is not None:
            raise conflict(f"a training named {name} waits already", "run_exists")
        if not os.path.lexists(folder):
            return
        facts = self._facts_of(name)
        began = facts is not None and not facts.record.is_empty and not holds_a_run(folder)
        if facts is None or not began or find_liveness(facts).is_alive:
            raise conflict(
                f"{name} is in the results already: resume it, or choose another name",
                "run_exists",
            )

    def _stop(self, facts: RunFacts, alive: Liveness, process: ProcessIdentity) -> None:
        """Signal the process."""
        record = facts.record
        if record.process != process:
            record = record.changed(
                process=process,
                is_foreign=True,
                stop_asked=None,
                status_before=None,
                exit_status=None,
                error=None,
            )
        now = time.time()
        if record.stop_asked is None:
            self._write_record(facts, record.changed(stop_asked=now))
            send_signal(process, signal.SIGTERM)
        elif now >= record.stop_asked + self.grace:
            if alive.is_own:
                kill_group(process)
            else:
                send_signal(process, signal.SIGKILL)

    def _delete(self, run: Run) -> None:
        """Out of the way first: whoever looks sees the whole run or none."""
        trash = self.results / OWN_FOLDER / TRASH
        try:
            lock = FolderLock(run.folder)
            try:
                trash.mkdir(exist_ok=True)
                aside = trash / f"{time.time_ns()}"
                os.rename(run.folder, aside)
            finally:
                lock.close()
            shutil.rmtree(aside)
        except UserError:
            raise conflict(f"{run.name} is running: stop it first", "is_running") from None
        except OSError as error:
            raise _failed(f"{run.name} could not be deleted: {reason(error)}") from None

    def _write_record(self, facts: RunFacts, record: RunRecord) -> None:
        try:
            record.write(facts.folder)
        except OSError as error:
            raise _failed(f"the run's folder cannot be written: {reason(error)}") from None

    # --- The queue ---

    def _add(self, training: WaitingTraining) -> None:
        if len(self._queue) >= self.most_waiting:
            raise Refusal(
                503, f"{self.most_waiting} trainings wait already", UNAVAILABLE, code="queue_full"
            )
        self._change_queue(lambda: self._queue.add(training))
        self._start_next()

    def _change_queue(self, change) -> None:
        try:
            change()
        except OSError as error:
            raise _failed(f"the queue cannot be written: {reason(error)}") from None

    def _look_regularly(self) -> None:
        while not self.is_closing.wait(SECONDS_BETWEEN_LOOKS):
            try:
                self.look()
            except Exception:  # the next look may succeed, and a server without it is worse
                logger.exception("looking after the trainings failed")

    def _note_ended(self) -> None:
        """Record how processes have ended."""
        for key, process, status in self._children.ended():
            folder = self.results / key
            record = RunRecord.read(folder)
            if record.process != process:
                continue
            try:
                record.changed(exit_status=status).write(folder)
            except OSError as error:
                logger.warning("the end of a training could not be noted: %s", reason(error))

    def _start_next(self) -> None:
        """Start what waits, as far as there is room."""
        while self._queue.next is not None and self._number_running() < self.at_once:
            training = self._queue.next
            facts = self._facts_of(training.name)
            # A server that was killed between the two steps below has started it already.
            is_started = facts is not None and find_liveness(facts).is_alive
            if not is_started:
                self._start(training)
            self._queue.remove(training.name)

    def _number_running(self) -> int:
        """Of all runs in the folder of results, whoever has started them."""
        found = [self._facts_of(name) for name in names_in(self.results)]
        return sum(find_liveness(facts).is_alive for facts in found if facts is not None)

    def _start(self, training: WaitingTraining) -> None:
        """Start the process. Where that fails, the run's record says why."""
        folder = self.results / training.name
        record = RunRecord(started=time.time(), dataset=training.dataset, options=training.options)
        try:
            check_run_name(training.name)
            arguments = self._arguments(training)
            folder.mkdir(exist_ok=True)
            if not is_folder(folder):
                raise NotADirectoryError(f"{training.name} is a link")
            facts = RunFacts(folder)
            record = record.changed(status_before=mark_of(facts.status_stamp))
            record.write(folder)
            process = self._children.start(
                training.name, self.form.script, arguments, folder / OUTPUT, training.resume
            )
        except (OSError, Refusal) as error:
            why = str(error) if isinstance(error, Refusal) else reason(error)
            self._note_failed_start(folder, record, why)
            return
        try:
            record.changed(process=process).write(folder)
        except OSError as error:  # a run that cannot be found again is none
            kill_group(process)
            logger.warning("%s was not started: %s", training.name, reason(error))

    def _note_failed_start(self, folder: Path, record: RunRecord, why: str) -> None:
        logger.warning("%s was not started: %s", folder.name, why)
        try:
            if is_folder(folder):
                record.changed(error=f"it could not be started: {why}").write(folder)
        except OSError:
            return

    def _arguments(self, training: WaitingTraining) -> list[str]:
        """The command line of a training that waits, checked again: it comes from a file."""
        texts = self.form.texts(training.options)
        flags = ["--resume=True"] if training.resume else []
        if training.allow_changes:
            flags.append("--allow_changes=True")
        dataset = self.data.path(training.dataset)
        return self.form.arguments(training.name, dataset, self.results, texts, *flags)


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


def _newest_first(run: Run) -> tuple[float, str]:
    """What waits is newest, the last in the queue first."""
    if run.queue_position is not None:
        return (-1e12 - run.queue_position, run.name)
    return (-(run.started or 0.0), run.name)


def _why_not_resumed(run: Run) -> str:
    if run.is_alive:
        return f"{run.name} is running"
    if run.kind != RESUMED_KIND:
        return f"{run.name} is an {run.kind}: resume it in a terminal"
    if run.dataset is None:
        return (
            f"the images that {run.name} was trained on are not in the data folder: resume it in "
            "a terminal"
        )
    return f"{run.name} has no checkpoint to resume from: delete it, and start it again"


def _failed(message: str) -> Refusal:
    return Refusal(500, message, SERVER_ERROR)
