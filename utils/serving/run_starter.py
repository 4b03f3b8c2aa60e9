"""Starting what waits, as far as there is room, and noting how it ends."""

import logging
import time
from pathlib import Path

from utils.runs.names import holds_a_run
from utils.runs.safeguards import reason
from utils.serving.child_processes import ChildProcesses
from utils.serving.data_folders import DataFolders
from utils.serving.process_identity import kill_group
from utils.serving.refusal import RATE_LIMIT, Refusal
from utils.serving.run_facts import RunFacts
from utils.serving.run_list import RunList
from utils.serving.run_queue import RunQueue, WaitingTraining
from utils.serving.run_record import OUTPUT, RunRecord, mark_of
from utils.serving.run_state import find_liveness
from utils.serving.safe_files import is_folder
from utils.serving.training_form import TrainingForm, check_run_name
from utils.serving.training_refusals import failed

logger = logging.getLogger("serve")


class RunStarter:
    """Not for several threads at once."""

    def __init__(
        self,
        results: Path,
        data: DataFolders,
        form: TrainingForm,
        queue: RunQueue,
        runs: RunList,
        children: ChildProcesses,
        at_once: int,
        most_waiting: int,
    ):
        self._results = results
        self._data = data
        self._form = form
        self._queue = queue
        self._runs = runs
        self._children = children
        self._at_once = at_once
        self._most_waiting = most_waiting

    def add(self, training: WaitingTraining) -> None:
        """Have a training started when its turn comes: now, if there is room. Raises Refusal."""
        if len(self._queue) >= self._most_waiting:
            raise Refusal(
                429, f"{self._most_waiting} trainings wait already", RATE_LIMIT, code="queue_full"
            )
        try:
            self._queue.add(training)
        except OSError as error:
            raise failed(f"the queue cannot be written: {reason(error)}") from None
        self.start_next()

    def remove(self, name: str) -> None:
        """Take a training out of the queue. Raises Refusal."""
        try:
            self._queue.remove(name)
        except OSError as error:
            raise failed(f"the queue cannot be written: {reason(error)}") from None

    def arguments(self, training: WaitingTraining) -> list[str]:
        """The command line of a training, checked again since it may come from a file. Raises
        Refusal where it cannot be right.
        """
        check_run_name(training.name)
        texts = self._form.texts(training.options)
        flags = ["--resume=True"] if training.resume else []
        if training.allow_changes:
            flags.append("--allow_changes=True")
        dataset = self._data.path(training.dataset)
        return self._form.arguments(training.name, dataset, self._results, texts, *flags)

    def note_ended(self) -> bool:
        """Record how processes have ended. Whether any has since the last call."""
        ended = self._children.ended()
        for folder, process, status in ended:
            record = RunRecord.read(folder)
            if record.process != process:  # it was an evaluation, or the run has been deleted
                continue
            try:
                record.changed(exit_status=status).write(folder)
            except OSError as error:
                logger.warning("the end of a training could not be noted: %s", reason(error))
        return bool(ended)

    def start_next(self) -> None:
        """Start what waits, as far as there is room."""
        while self._queue.next is not None and self._runs.number_running() < self._at_once:
            training = self._queue.next
            if not self._was_started(training):
                self._start(training)
            try:
                self._queue.remove(training.name)
            except OSError as error:
                logger.warning("the queue cannot be written: %s", reason(error))

    def _was_started(self, training: WaitingTraining) -> bool:
        """Whether a server that was killed before it could note it has started the training."""
        facts = self._runs.facts(training.name)
        if facts is None:
            return False
        has_begun = not training.resume and holds_a_run(facts.folder)
        return has_begun or find_liveness(facts).is_alive

    def _start(self, training: WaitingTraining) -> None:
        """Start the process. Where that fails, the run's record says why."""
        folder = self._results / training.name
        record = RunRecord(started=time.time(), dataset=training.dataset, options=training.options)
        try:
            folder.mkdir(exist_ok=True)  # first: a failure is noted there
            arguments = self.arguments(training)
            if not is_folder(folder):
                raise NotADirectoryError(f"{training.name} is a link")
            record = record.changed(status_before=mark_of(RunFacts(folder).status_stamp))
            record.write(folder)
            process = self._children.start(
                folder, self._form.script, arguments, folder / OUTPUT, training.resume
            )
        except (OSError, Refusal) as error:
            why = str(error) if isinstance(error, Refusal) else reason(error)
            self._note_failure(folder, record, why)
            return
        try:
            record.changed(process=process).write(folder)
        except OSError as error:  # a process that cannot be found again must not go on
            kill_group(process)
            logger.warning("%s was not started: %s", training.name, reason(error))

    def _note_failure(self, folder: Path, record: RunRecord, why: str) -> None:
        logger.warning("%s was not started: %s", folder.name, why)
        try:
            if is_folder(folder):
                record.changed(error=f"it could not be started: {why}").write(folder)
        except OSError as error:
            logger.warning("nor could that be noted: %s", reason(error))
