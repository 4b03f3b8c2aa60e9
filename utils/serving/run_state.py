"""Whether a run is running, and what else there is to say of it: from its folder, the server's
record, and the processes that there are.
"""

import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from utils.runs.names import SLIM
from utils.serving.process_identity import ProcessIdentity
from utils.serving.run_facts import CheckpointFile, PreviewFile, RunFacts
from utils.serving.safe_files import whole_number, without_paths

QUEUED = "queued"
STARTING = "starting"  # the process runs, and does not train yet
RUNNING = "running"
STOPPING = "stopping"  # it was asked to stop, or has come to its end
STOPPED = "stopped"
FINISHED = "finished"
FAILED = "failed"
INTERRUPTED = "interrupted"  # it was killed, or the machine was switched off
ENDED_BY_ITSELF = (STOPPED, FINISHED, FAILED)
VERDICTS = ("unknown", "not done", "done", "memorises", "worse")


@dataclass(frozen=True)
class Liveness:
    """Whether somebody works on the run. `process` is None where it cannot be told who."""

    is_alive: bool
    process: ProcessIdentity | None = None
    is_own: bool = False  # the server has started it


@dataclass(frozen=True)
class Run:
    """A run as clients see it. No text here holds a path."""

    folder: Path  # for the server
    name: str
    state: str
    kind: str | None = None
    queue_position: int | None = None
    step: int | None = None
    total_steps: int | None = None
    progress: float | None = None
    seconds_left: float | None = None
    sentence: str | None = None
    verdict: str | None = None
    best_step: int | None = None
    started: float | None = None
    dataset: str | None = None
    can_resume: bool = False
    can_stop: bool = False
    kill_after: float | None = None  # unix seconds; from then on a second stop kills
    error: str | None = None
    checkpoints: list[CheckpointFile] = field(default_factory=list)
    previews: list[PreviewFile] = field(default_factory=list)
    options: dict[str, str] = field(default_factory=dict)

    @property
    def is_alive(self) -> bool:
        return self.state in (STARTING, RUNNING, STOPPING)

    @property
    def has_weights(self) -> bool:
        return any(each.file == SLIM for each in self.checkpoints)


def find_liveness(facts: RunFacts) -> Liveness:
    """By the record, and where its process has ended, by the lock of the folder."""
    process = facts.record.process
    if process is not None and process.is_alive:
        return Liveness(True, process, is_own=not facts.record.is_foreign)
    holder = facts.writer()
    if holder is None:
        return Liveness(False)
    return Liveness(True, holder.process)


def find_state(facts: RunFacts, alive: Liveness) -> str:
    """The state of a run that does not wait."""
    record = facts.record
    said = facts.status.get("state")
    says_of_this_start = record.is_of_this_process(facts.status_stamp)
    if alive.is_alive:
        was_asked = record.process == alive.process and record.stop_asked is not None
        if was_asked:
            return STOPPING
        if says_of_this_start and said == RUNNING:
            return RUNNING
        has_ended = alive.is_own and says_of_this_start and said in ENDED_BY_ITSELF
        return STOPPING if has_ended else STARTING
    if record.error is not None:
        return FAILED
    if not says_of_this_start and record.process is not None:
        return _ended_before_training(facts)
    if said in ENDED_BY_ITSELF:
        return str(said)
    has_failed = record.exit_status is not None and record.exit_status > 0
    return FAILED if has_failed else INTERRUPTED


def _ended_before_training(facts: RunFacts) -> str:
    """The state of a run whose process ended before it wrote status.json."""
    record = facts.record
    if record.stop_asked is not None:
        return STOPPED
    if record.exit_status is None:  # nobody waited for it
        return FAILED if facts.error() is not None else INTERRUPTED
    return FAILED if record.exit_status >= 0 else INTERRUPTED


def find_error(facts: RunFacts, state: str, roots: Sequence[Path]) -> str | None:
    """Why a run has failed or was cut off, as far as it is known."""
    record = facts.record
    if state not in (FAILED, INTERRUPTED):
        return None
    if record.error is not None:
        return without_paths(record.error, roots)
    if state == INTERRUPTED:
        status = record.exit_status
        if status is not None and status < 0:
            return f"the process was ended by {_signal_name(-status)}"
        return "the process ended without a word: it was killed, or the machine was switched off"
    sentence = facts.error() or facts.last_words()
    return None if sentence is None else without_paths(sentence, roots)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def progress_of(facts: RunFacts) -> float | None:
    """The part of the steps that is done, 0 to 1."""
    if facts.step is None or not facts.total_steps:
        return None
    return min(1.0, facts.step / facts.total_steps)


def verdict_of(facts: RunFacts) -> tuple[str | None, int | None]:
    """The verdict in a word, and the step that is best."""
    kind = facts.verdict.get("kind")
    best = whole_number(facts.verdict.get("best_step"))
    return (kind if kind in VERDICTS else None), best


def sentence_of(facts: RunFacts, roots: Sequence[Path]) -> str | None:
    """The verdict for people, in which the run's files have their names."""
    sentence = facts.status.get("sentence")
    if not isinstance(sentence, str):
        return None
    own = facts.arguments.get("result_path")
    if isinstance(own, str) and own.startswith("/"):
        roots = [*roots, Path(own)]
    return without_paths(sentence, roots)
