"""The numbers of a run, a row per step: metrics.csv, and the same in TensorBoard."""

import contextlib
import csv
import io
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from utils.errors import UserError
from utils.runs.failures import Failures
from utils.runs.names import METRICS, POSITION

TENSORBOARD = "TensorBoard"
LONGEST_ROW = 2**16  # bytes


class MetricsLog:
    """Appends rows to metrics.csv and to TensorBoard's event files in the same folder."""

    def __init__(self, folder: Path, failures: Failures):
        self.folder = folder
        self.file = folder / METRICS
        self._failures = failures
        self._writer: SummaryWriter | None = None
        self._has_utf8_path = is_utf8(folder)
        # TensorBoard hides what earlier event files hold from this step on; None: nothing.
        self._purge_step: int | None = None

    def cut_back(self, step: int) -> None:
        """Drop all rows after `step`, and rows that a kill or a power failure damaged, so that a
        resumed run has no step twice. OSError where that cannot be written.
        """
        self._purge_step = step + 1
        if not self.file.exists():
            return
        text = self.file.read_text(encoding="utf-8", errors="replace")
        header, *rows = text.splitlines(keepends=True) or [""]
        kept = [row for row in rows if is_up_to(row, step)]
        whole = header.endswith("\n")
        self._replace("".join([header, *kept]) if whole else "")

    def append(self, rows: Sequence[dict[str, float]]) -> None:
        """Add rows, each with "step" and "epoch"; NaN is left empty. A name that is new becomes a
        new column. A full or failing disk is said once, and tried again the next time.
        """
        if not rows:
            return
        with self._failures.tolerated(METRICS):
            self._append_to_csv(rows)
        # After a failure, not before the next good save: each try would begin another event file.
        if TENSORBOARD not in self._failures:
            with self._failures.tolerated(TENSORBOARD):
                self._append_to_tensorboard(rows)

    def amend(self, row: dict[str, float]) -> None:
        """Add values to the last row, which is of the same "step"; where it is not, as a row."""
        with self._failures.tolerated(METRICS):
            self._amend_csv(row)
        if TENSORBOARD not in self._failures:
            with self._failures.tolerated(TENSORBOARD):
                self._append_to_tensorboard([row])

    def add_image(self, name: str, picture: Image.Image, step: int) -> None:
        """Show a picture in TensorBoard, unless that has failed."""
        if TENSORBOARD in self._failures:
            return
        pixels = np.atleast_3d(np.asarray(picture))  # (H, W, C)
        with self._failures.tolerated(TENSORBOARD), self._renewed_after_failure():
            self._board().add_image(name, pixels, step, dataformats="HWC")

    def try_again(self) -> None:
        """There is room on the disk again: TensorBoard begins a new event file at the next row."""
        if self._has_utf8_path:
            self._failures.forget(TENSORBOARD)

    def close(self) -> None:
        """Write what TensorBoard still has in memory."""
        with self._failures.tolerated(TENSORBOARD):
            if self._writer is not None:
                self._writer.close()

    def _append_to_csv(self, rows: Sequence[dict[str, float]]) -> None:
        names = list(dict.fromkeys(name for row in rows for name in row))  # each once, in order
        columns = self._columns(names)
        size = self._size()
        try:
            with open(self.file, "a", newline="", encoding="utf-8") as stream:
                writer = csv.DictWriter(stream, columns, lineterminator="\n")
                if size == 0:
                    writer.writeheader()
                writer.writerows([without_nan(row) for row in rows])
        except OSError:
            with contextlib.suppress(OSError):
                os.truncate(self.file, size)  # no half rows
            raise

    def _amend_csv(self, row: dict[str, float]) -> None:
        columns = self._columns(list(row)) if self._size() > 0 else []
        last = self._last_line()
        if not last.startswith(f"{int(row['step'])},"):
            self._append_to_csv([row])
            return
        before = dict(zip(columns, next(csv.reader([last])), strict=False))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writerow(before | without_nan(row))
        # In place: a kill leaves a row or half a row, which a resumed run drops, and none of the
        # rows before it is touched.
        start = self._size() - len(last.encode())
        try:
            self._overwrite(start, text.getvalue())
        except OSError:
            with contextlib.suppress(OSError):
                self._overwrite(start, last)
            raise

    def _overwrite(self, start: int, text: str) -> None:
        """Have metrics.csv end with this text, from byte `start` on."""
        with open(self.file, "r+b") as stream:
            stream.seek(start)
            stream.write(text.encode())
            stream.truncate()

    def _last_line(self) -> str:
        """The last line of metrics.csv with its end; "" where there is none."""
        size = self._size()
        if size == 0:
            return ""
        with open(self.file, "rb") as stream:
            stream.seek(max(0, size - LONGEST_ROW))
            lines = stream.read().splitlines(keepends=True)
        return lines[-1].decode(errors="replace")

    def _size(self) -> int:
        """Bytes of metrics.csv; 0 where it is not there."""
        return self.file.stat().st_size if self.file.exists() else 0

    def _columns(self, names: Sequence[str]) -> list[str]:
        """The columns of metrics.csv, which first gets those of the names that are new."""
        if self._size() == 0:
            return list(names)
        with open(self.file, newline="", encoding="utf-8", errors="replace") as stream:
            before = next(csv.reader(stream), [])
        new = [name for name in names if name not in before]
        if new:
            self._add_columns(new)
        return before + new

    def _add_columns(self, names: Sequence[str]) -> None:
        """Widen the table: the rows before are empty there."""
        header, *rows = self.file.read_text(encoding="utf-8", errors="replace").splitlines()
        wider = [",".join([header, *names])]
        wider += [row + "," * len(names) for row in rows]
        self._replace("\n".join(wider) + "\n")

    def _replace(self, text: str) -> None:
        """Have metrics.csv hold this text; a kill leaves the old file or the new one."""
        temporary = self.file.with_suffix(".tmp")
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, self.file)

    def _append_to_tensorboard(self, rows: Sequence[dict[str, float]]) -> None:
        """The curves; where a row belongs is none."""
        with self._renewed_after_failure():
            for row in rows:
                for name, value in row.items():
                    if name not in POSITION and not is_nan(value):
                        self._board().add_scalar(name, value, int(row["step"]))

    @contextlib.contextmanager
    def _renewed_after_failure(self) -> Iterator[None]:
        """Drop a writer that has failed: it cannot be used any more."""
        try:
            yield
        except OSError:
            self._writer = None
            raise

    def _board(self) -> SummaryWriter:
        """TensorBoard's writer; a new one where the last has failed. UserError where it writes
        nothing.
        """
        if not self._has_utf8_path:
            raise UserError("the path of the run is not UTF-8")
        if self._writer is None:
            self._writer = SummaryWriter(str(self.folder), purge_step=self._purge_step)
            self._purge_step = None
        return self._writer


def is_utf8(path: Path) -> bool:
    """Whether the path is text that can be written as UTF-8."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def is_up_to(row: str, step: int) -> bool:
    """Whether this line of metrics.csv is whole, and of a step up to this one."""
    number = row.split(",")[0]
    return row.endswith("\n") and number.isdecimal() and int(number) <= step


def without_nan(row: dict[str, float]) -> dict[str, float | str]:
    """The row with empty cells in the place of NaN."""
    return {name: "" if is_nan(value) else value for name, value in row.items()}


def is_nan(value: object) -> bool:
    """Whether the value is the float that stands for "nothing was measured"."""
    return isinstance(value, float) and math.isnan(value)
