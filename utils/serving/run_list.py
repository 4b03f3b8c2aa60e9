"""The runs in a folder of results, as clients see them."""

from pathlib import Path

from utils.serving.data_folders import DataFolders
from utils.serving.run_facts import RunFacts
from utils.serving.run_queue import RunQueue, WaitingTraining
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
from utils.serving.safe_files import is_folder, is_plain_name, names_in
from utils.serving.training_form import TRAINED_KIND, TrainingForm

LATER_THAN_ALL = 1e12  # unix seconds


class RunList:
    """What the folders say, and what waits. Not for several threads at once.

    Folders whose names are no text, hidden ones and links are no runs here: they could not be
    named, are the server's own, or lead elsewhere.
    """

    def __init__(
        self, results: Path, data: DataFolders, form: TrainingForm, queue: RunQueue, grace: float
    ):
        self.results = results
        self._data = data
        self._form = form
        self._queue = queue
        self._grace = grace
        self._facts: dict[str, RunFacts] = {}

    @property
    def roots(self) -> list[Path]:
        """Folders that no text for clients names."""
        return [self.results, self._data.root]

    def all(self) -> list[Run]:
        """All runs and what waits, newest first."""
        names = names_in(self.results)
        names += [each.name for each in self._queue if each.name not in names]
        found = [self.find(name) for name in names]
        self._facts = {name: self._facts[name] for name in names if name in self._facts}
        runs = [run for run in found if run is not None]
        return sorted(runs, key=_newest_first)

    def find(self, name: str) -> Run | None:
        """The run of this name; None where there is none."""
        facts = self.facts(name)
        waiting = self._queue.find(name)
        if facts is not None:
            return self._described(facts, waiting)
        return None if waiting is None else self._announced(waiting)

    def facts(self, name: str) -> RunFacts | None:
        """What the folder of this name says; None where it is no run's."""
        if not is_plain_name(name) or not is_folder(self.results / name):
            self._facts.pop(name, None)
            return None
        if name not in self._facts:
            self._facts[name] = RunFacts(self.results / name)
        facts = self._facts[name]
        return facts if facts.is_run else None

    def number_running(self) -> int:
        """Of all runs in the folder of results, whoever has started them."""
        found = [self.facts(name) for name in names_in(self.results)]
        return sum(find_liveness(facts).is_alive for facts in found if facts is not None)

    def _announced(self, waiting: WaitingTraining) -> Run:
        """A run that has no folder yet."""
        return Run(
            folder=self.results / waiting.name,
            name=waiting.name,
            state=QUEUED,
            kind=TRAINED_KIND,
            queue_position=self._queue.place(waiting.name),
            dataset=waiting.dataset,
            options=waiting.options,
        )

    def _described(self, facts: RunFacts, waiting: WaitingTraining | None) -> Run:
        alive = find_liveness(facts)
        state = find_state(facts, alive)
        if waiting is not None and not alive.is_alive:
            state = QUEUED
        dataset = self._dataset_of(facts)
        verdict, best_step = verdict_of(facts)
        can_be_resumed = facts.kind == TRAINED_KIND and facts.can_be_continued
        has_ended = waiting is None and not alive.is_alive
        return Run(
            folder=facts.folder,
            name=facts.name,
            state=state,
            kind=facts.kind or TRAINED_KIND,
            queue_position=self._queue.place(facts.name),
            step=facts.step,
            total_steps=facts.total_steps,
            progress=progress_of(facts),
            seconds_left=facts.seconds_left if alive.is_alive else None,
            sentence=sentence_of(facts, self.roots),
            verdict=verdict,
            best_step=best_step,
            started=facts.started,
            dataset=dataset,
            can_resume=can_be_resumed and has_ended and dataset is not None,
            can_stop=alive.process is not None,
            kill_after=self._kill_after(facts, alive),
            error=find_error(facts, state, self.roots),
            checkpoints=facts.checkpoints(),
            previews=facts.previews(),
            options=self._form.recorded_texts(facts.arguments) or facts.record.options,
        )

    def _kill_after(self, facts: RunFacts, alive: Liveness) -> float | None:
        """From when on a second stop kills, of a run that was asked to stop."""
        record = facts.record
        if record.stop_asked is None or not alive.is_alive or alive.process != record.process:
            return None
        return record.stop_asked + self._grace

    def _dataset_of(self, facts: RunFacts) -> str | None:
        """The data folder that the run trains on; None where it is not among those served."""
        recorded = facts.arguments.get("dataset_path")
        if recorded is not None:
            return self._data.name_of(recorded)
        return facts.record.dataset


def _newest_first(run: Run) -> tuple[float, str]:
    """What waits comes first, the last in the queue at the top."""
    if run.queue_position is not None:
        return (-LATER_THAN_ALL - run.queue_position, run.name)
    return (-(run.started or 0.0), run.name)
