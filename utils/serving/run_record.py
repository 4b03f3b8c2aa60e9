"""process.json in a run folder: which process the server has started for the run, and with what."""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from utils.serving.process_identity import ProcessIdentity
from utils.serving.safe_files import Stamp, read_json, write_json

RECORD = "process.json"
OUTPUT = "output.txt"  # what the process prints


@dataclass(frozen=True)
class RunRecord:
    """What is known of the process of a run, besides what the run itself writes."""

    process: ProcessIdentity | None = None
    started: float | None = None  # unix seconds
    dataset: str | None = None
    options: dict[str, str] = field(default_factory=dict)
    status_before: list[int] | None = None  # which status.json was there when it was started
    stop_asked: float | None = None  # unix seconds
    exit_status: int | None = None  # negative: the signal that killed it; None: not known
    is_foreign: bool = False  # somebody else has started the process
    error: str | None = None  # why it could not be started

    @property
    def is_empty(self) -> bool:
        return self == RunRecord()

    def is_of_this_process(self, status: Stamp | None) -> bool:
        """Whether status.json was written since the process was started."""
        return status is not None and self.status_before != mark_of(status)

    def changed(self, **values: Any) -> "RunRecord":
        return replace(self, **values)

    def of_foreign(self, process: ProcessIdentity) -> "RunRecord":
        """The record of a process that somebody else has started for the same run."""
        return replace(
            self,
            process=process,
            started=None,
            is_foreign=True,
            stop_asked=None,
            status_before=None,
            exit_status=None,
            error=None,
        )

    def write(self, folder: Path) -> None:
        """OSError where that fails."""
        write_json(asdict(self), folder / RECORD)

    @classmethod
    def read(cls, folder: Path) -> "RunRecord":
        """What is there; an empty record where there is none or it is damaged."""
        found = read_json(folder, RECORD)
        options = found.get("options")
        if not isinstance(options, dict):
            options = {}
        return cls(
            process=ProcessIdentity.from_dict(found.get("process")),
            started=_number(found.get("started")),
            dataset=_text(found.get("dataset")),
            options={str(key): str(value) for key, value in options.items()},
            status_before=_mark(found.get("status_before")),
            stop_asked=_number(found.get("stop_asked")),
            exit_status=_status(found.get("exit_status")),
            is_foreign=found.get("is_foreign") is True,
            error=_text(found.get("error")),
        )


def mark_of(stamp: Stamp | None) -> list[int] | None:
    """A state of a file, as a record keeps it."""
    return None if stamp is None else [stamp.inode, stamp.size, stamp.time]


def _mark(value: Any) -> list[int] | None:
    is_mark = isinstance(value, list) and all(type(number) is int for number in value)
    return value if is_mark else None


def _number(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and 0 <= value < 1e12 else None


def _status(value: Any) -> int | None:
    return value if type(value) is int and -128 <= value < 256 else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
