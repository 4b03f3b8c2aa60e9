"""What a run folder says of its run, also while the run writes it and after it was killed."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.runs.names import (
    BEST,
    BEST_SLIM,
    CONFIG,
    LAST,
    LOCK,
    LOG,
    METRICS,
    PREVIEW,
    PREVIOUS,
    SAMPLES,
    SLIM,
    STATUS,
    epochs_of,
    numbered_name,
)
from utils.serving.process_identity import LockHolder, lock_holder
from utils.serving.run_curves import Row, last_row
from utils.serving.run_record import OUTPUT, RECORD, RunRecord
from utils.serving.safe_files import (
    Stamp,
    names_in,
    open_below,
    read_json,
    read_tail,
    stamp_of,
    whole_number,
)

KINDS = ("diffusion", "upscaler", "autoencoder")  # of checkpoints, which runs make
CHECKPOINTS = (LAST, PREVIOUS, BEST, SLIM, BEST_SLIM)
PREVIEW_TYPES = {
    "png": "image/png",
    "jpg": "image/jpeg",
    "jpeg": "image/jpeg",
    "webp": "image/webp",
}
LONGEST_ERROR = 500  # characters
ERROR = "error: "


@dataclass(frozen=True)
class CheckpointFile:
    file: str
    epoch: int | None  # of those that are kept under their epoch's number
    bytes: int


@dataclass(frozen=True)
class PreviewFile:
    file: str
    epoch: int


class _Kept:
    """The contents of a file, read again only when the file has changed."""

    def __init__(self, read: Callable[[], Any], file: Path):
        self._read = read
        self._file = file
        self._stamp: Stamp | None = None
        self._contents: Any = None

    def get(self) -> Any:
        stamp = stamp_of(self._file)
        if self._contents is None or stamp != self._stamp:
            self._stamp, self._contents = stamp, self._read()
        return self._contents


class RunFacts:
    """The folder of one run. Reading is cheap where nothing has changed. Not for several threads at
    once.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.name = folder.name
        self._config = _Kept(lambda: read_json(folder, CONFIG), folder / CONFIG)
        self._status = _Kept(lambda: read_json(folder, STATUS), folder / STATUS)
        self._record = _Kept(lambda: RunRecord.read(folder), folder / RECORD)
        self._last_row = _Kept(lambda: last_row(folder), folder / METRICS)

    @property
    def record(self) -> RunRecord:
        """What the server has written of the process; empty for a run that it did not start."""
        return self._record.get()

    @property
    def status(self) -> dict:
        """status.json, for what it is worth: the run may have been killed since."""
        return self._status.get()

    @property
    def status_stamp(self) -> Stamp | None:
        return stamp_of(self.folder / STATUS)

    @property
    def is_run(self) -> bool:
        """Whether a training script or the server has made this folder for a run."""
        return self.kind is not None or not self.record.is_empty

    @property
    def kind(self) -> str | None:
        kind = self._config.get().get("kind")
        return kind if kind in KINDS else None

    @property
    def arguments(self) -> dict:
        """The options of the run's last start, as config.json has them."""
        return _dict(self._config.get(), "args")

    @property
    def total_steps(self) -> int | None:
        length = _dict(_dict(self._config.get(), "config"), "length")
        return whole_number(length.get("total_steps")) or whole_number(
            self.status.get("total_steps")
        )

    @property
    def last_row(self) -> Row:
        return self._last_row.get()

    @property
    def step(self) -> int | None:
        """How many steps are known to be done."""
        known = [int(self.last_row.get("step", 0)), whole_number(self.status.get("step")) or 0]
        return max(known) if self.last_row or self.status else None

    @property
    def seconds_left(self) -> float | None:
        """Until the last step, at the speed of the last steps; previews and evaluations come on
        top.
        """
        speed = self.last_row.get("images_per_second", 0.0)
        batch = whole_number(self.arguments.get("global_batch"))
        if speed <= 0 or not batch or self.step is None or self.total_steps is None:
            return None
        return max(0, self.total_steps - self.step) * batch / speed

    @property
    def verdict(self) -> dict:
        return _dict(self.status, "verdict")

    @property
    def started(self) -> float | None:
        """When the run was last started, in unix seconds, as far as it is known."""
        if self.record.started is not None:
            return self.record.started
        stamp = stamp_of(self.folder / CONFIG)
        return None if stamp is None else stamp.time / 1e9

    @property
    def can_be_continued(self) -> bool:
        """Whether there is a checkpoint to resume from."""
        return any(stamp_of(self.folder / name) is not None for name in (LAST, PREVIOUS))

    def writer(self) -> LockHolder | None:
        """Who writes into the folder at this moment."""
        return lock_holder(self.folder / LOCK)

    def checkpoints(self) -> list[CheckpointFile]:
        """The files of weights, those of an epoch last."""
        found = []
        names = names_in(self.folder)
        for name in [name for name in CHECKPOINTS if name in names]:
            found.append(self._checkpoint(name, None))
        for epoch in epochs_of(names):
            found.append(self._checkpoint(numbered_name(epoch), epoch))
        return [each for each in found if each is not None]

    def _checkpoint(self, name: str, epoch: int | None) -> CheckpointFile | None:
        try:
            with open_below(self.folder, name) as file:
                size = file.seek(0, os.SEEK_END)
        except OSError:
            return None
        return CheckpointFile(name, epoch, size)

    def previews(self) -> list[PreviewFile]:
        """By epoch."""
        found = []
        for name in names_in(self.folder / SAMPLES):
            match = PREVIEW.fullmatch(name)
            if match is not None and match[2] in PREVIEW_TYPES:
                found.append(PreviewFile(name, int(match[1])))
        return sorted(found, key=lambda each: each.epoch)

    def error(self) -> str | None:
        """The last sentence with which the run ended itself, with its paths; None: it said none."""
        for name in (OUTPUT, LOG):
            sentence = last_error(read_tail(self.folder, name))
            if sentence is not None:
                return sentence[:LONGEST_ERROR]
        return None

    def last_words(self) -> str | None:
        """The last line that the run printed."""
        lines = [
            line.strip() for line in read_tail(self.folder, OUTPUT).splitlines() if line.strip()
        ]
        return lines[-1][:LONGEST_ERROR] if lines else None


def last_error(text: str) -> str | None:
    """The last line of a text that reports an error, from "error: " on."""
    for line in reversed(text.splitlines()):
        _, found, sentence = line.partition(ERROR)
        if found and sentence.strip():
            return sentence.strip()
    return None


def _dict(values: dict, name: str) -> dict:
    found = values.get(name)
    return found if isinstance(found, dict) else {}
