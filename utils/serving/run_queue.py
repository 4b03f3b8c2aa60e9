"""The trainings that wait for their turn, in a file that survives the server."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from utils.serving.safe_files import is_plain_name, read_json, write_json

QUEUE = "queue.json"


@dataclass(frozen=True)
class WaitingTraining:
    """A training that is to be started."""

    name: str
    dataset: str
    options: dict[str, str]  # as texts of the command line
    since: float  # unix seconds
    resume: bool = False
    allow_changes: bool = False  # of a training that is resumed


class RunQueue:
    """In order of their turns. Not for several threads at once."""

    def __init__(self, folder: Path):
        self._file = folder / QUEUE
        self._waiting = list(_read(folder))

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[WaitingTraining]:
        return iter(list(self._waiting))

    @property
    def next(self) -> WaitingTraining | None:
        return self._waiting[0] if self._waiting else None

    def find(self, name: str) -> WaitingTraining | None:
        return next((each for each in self._waiting if each.name == name), None)

    def place(self, name: str) -> int | None:
        """0: it is next; None: it does not wait."""
        names = [each.name for each in self._waiting]
        return names.index(name) if name in names else None

    def add(self, training: WaitingTraining) -> None:
        """OSError where the file cannot be written; then nothing has changed."""
        waiting = [*self._waiting, training]
        self._write(waiting)
        self._waiting = waiting

    def remove(self, name: str) -> None:
        """OSError where the file cannot be written; then only the next server sees it again."""
        self._waiting = [each for each in self._waiting if each.name != name]
        self._write(self._waiting)

    def _write(self, waiting: list[WaitingTraining]) -> None:
        write_json({"waiting": [asdict(each) for each in waiting]}, self._file)


def _read(folder: Path) -> Iterator[WaitingTraining]:
    """What waits by the file; entries that make no sense, and second ones of a name, are left
    out.
    """
    names = set()
    entries = read_json(folder, QUEUE).get("waiting")
    for entry in entries if isinstance(entries, list) else []:
        training = _parsed(entry)
        if training is not None and training.name not in names:
            names.add(training.name)
            yield training


def _parsed(entry: Any) -> WaitingTraining | None:
    if not isinstance(entry, dict):
        return None
    name, dataset, options = (entry.get(key) for key in ("name", "dataset", "options"))
    if not isinstance(name, str) or not is_plain_name(name):
        return None
    if not isinstance(dataset, str) or not isinstance(options, dict):
        return None
    texts = {str(key): str(value) for key, value in options.items()}
    since = entry.get("since")
    since = float(since) if isinstance(since, int | float) else 0.0
    return WaitingTraining(
        name=name,
        dataset=dataset,
        options=texts,
        since=since,
        resume=entry.get("resume") is True,
        allow_changes=entry.get("allow_changes") is True,
    )
