"""The curves of a run: metrics.csv and evaluations.jsonl, read while they grow.

A long run has a million rows, a chart has a few hundred points. Rows are therefore averaged in
groups as they come, and memory does not grow with the run.
"""

import math
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from utils.runs.evaluations import Evaluation
from utils.runs.names import EVALUATIONS, METRICS, POSITION
from utils.serving.safe_files import GrowingLines, open_below
from utils.text import printable

MOST_POINTS = 2000  # groups of rows that are kept at least, once there are as many
MOST_COLUMNS = 500
MOST_RUNS = 8  # whose curves are in memory
LONGEST_ROW = 2**16  # bytes
DIGITS = 6  # of each number
STEP = POSITION[0]

Row = dict[str, float]


class RowParser:
    """Rows of metrics.csv by the names in its first line."""

    def __init__(self, header: bytes):
        names = printable(header.decode("utf-8", "replace")).split(",")
        self.names = names[:MOST_COLUMNS]
        self._count = len(names)

    def row(self, line: bytes) -> Row | None:
        """The numbers in a line; None for one that is damaged or of no step."""
        cells = line.decode("utf-8", "replace").split(",")
        if len(cells) != self._count:
            return None
        try:
            pairs = zip(self.names, cells, strict=False)
            numbers = {name: float(cell) for name, cell in pairs if cell}
        except ValueError:
            return None
        row = {name: value for name, value in numbers.items() if math.isfinite(value)}
        return row if row.get(STEP, -1) >= 0 else None


@dataclass
class Group:
    """Neighbouring rows: where the last one belongs, and sums of the others' numbers."""

    rows: int = 0
    position: Row = field(default_factory=dict)
    sums: Row = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, row: Row) -> None:
        self.rows += 1
        for name, value in row.items():
            if name in POSITION:
                self.position[name] = value
            else:
                self.sums[name] = self.sums.get(name, 0.0) + value
                self.counts[name] = self.counts.get(name, 0) + 1

    def join(self, other: "Group") -> None:
        """Add the rows of a group that follows this one."""
        self.rows += other.rows
        self.position |= other.position
        for name, value in other.sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + other.counts[name]

    def value(self, name: str) -> float | int | None:
        """The mean in a column; of a position the last, which is whole."""
        if name in POSITION:
            position = self.position.get(name)
            return None if position is None else int(position)
        if name not in self.sums:
            return None
        return _rounded(self.sums[name] / self.counts[name])


class MetricsCurve:
    """metrics.csv as a curve. Not for several threads at once."""

    def __init__(self, folder: Path):
        self._lines = GrowingLines(folder, METRICS)
        self._begin()

    def _begin(self) -> None:
        self._parser: RowParser | None = None
        self._groups: list[Group] = []
        self._rows_per_group = 1
        self._last: Row | None = None  # it may still be added to in its place

    def update(self) -> None:
        """Read what is new."""
        while True:
            began_anew, lines = self._lines.read()
            if began_anew:
                self._begin()
            if not lines:
                return
            *whole, last = lines
            self._lines.put_back(last)
            for line in whole:
                self._take(line)
            self._last = None if self._parser is None else self._parser.row(last)
            if not whole:
                return

    def columns(self, most: int) -> dict[str, list[float | int | None]]:
        """Columns of equal length, of at most so many points; the last row is the last point."""
        groups = [] if self._last is None else [Group()]
        if self._last is not None:
            groups[0].add(self._last)
        groups = _thinned(self._groups, most - len(groups)) + groups
        names = self._parser.names if self._parser else []
        return {name: [group.value(name) for group in groups] for name in dict.fromkeys(names)}

    def _take(self, line: bytes) -> None:
        if self._parser is None:
            self._parser = RowParser(line)
            return
        row = self._parser.row(line)
        if row is None:
            return
        if not self._groups or self._groups[-1].rows >= self._rows_per_group:
            self._make_room()
            self._groups.append(Group())
        self._groups[-1].add(row)

    def _make_room(self) -> None:
        """Join neighbours where there are many groups."""
        if len(self._groups) < 2 * MOST_POINTS:
            return
        for first, second in zip(self._groups[::2], self._groups[1::2], strict=True):
            first.join(second)
        self._groups = self._groups[::2]
        self._rows_per_group *= 2


def _thinned(groups: Sequence[Group], most: int) -> list[Group]:
    """Copies of the groups, joined until there are at most so many."""
    together = max(1, math.ceil(len(groups) / max(1, most)))
    thinned = []
    for start in range(0, len(groups), together):
        joined = Group()
        for group in groups[start : start + together]:
            joined.join(group)
        thinned.append(joined)
    return thinned


def _rounded(value: float) -> float | None:
    rounded = float(f"{value:.{DIGITS}g}")
    return rounded if math.isfinite(rounded) else None


def last_row(folder: Path) -> Row:
    """The last whole row of metrics.csv; empty where there is none."""
    try:
        with open_below(folder, METRICS) as file:
            header = file.readline(LONGEST_ROW)
            size = file.seek(0, os.SEEK_END)
            file.seek(max(len(header), size - LONGEST_ROW))
            lines = file.read(LONGEST_ROW).split(b"\n")[:-1]
    except OSError:
        return {}
    if not header.endswith(b"\n"):
        return {}
    parser = RowParser(header.rstrip(b"\n"))
    for line in reversed(lines):
        row = parser.row(line)
        if row is not None:
            return row
    return {}


# --- Evaluations ---


@dataclass(frozen=True)
class EvaluationFacts:
    """One evaluation without the losses of single images."""

    step: int
    held_out_loss: float | None
    training_loss: float | None
    scores: dict[str, float]


class EvaluationCurve:
    """evaluations.jsonl. Not for several threads at once."""

    def __init__(self, folder: Path):
        self._lines = GrowingLines(folder, EVALUATIONS)
        self._by_step: dict[int, EvaluationFacts] = {}

    def update(self) -> None:
        """Read what is new; damaged lines are left out."""
        while True:
            began_anew, lines = self._lines.read()
            if began_anew:
                self._by_step = {}
            if not lines:
                return
            for line in lines:
                facts = _facts_of(line)
                if facts is not None:
                    self._by_step[facts.step] = facts

    def all(self) -> list[EvaluationFacts]:
        """By step."""
        return [self._by_step[step] for step in sorted(self._by_step)]


def _facts_of(line: bytes) -> EvaluationFacts | None:
    try:
        evaluation = Evaluation.from_line(line.decode("utf-8", "replace"))
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None
    scalars = evaluation.scalars()
    return EvaluationFacts(
        step=evaluation.step,
        held_out_loss=scalars.get("held_out_loss"),
        training_loss=scalars.get("training_loss"),
        scores=dict(evaluation.scores),
    )


# --- Both, of several runs ---


class RunCurves:
    """The curves of one run. Threads take the lock."""

    def __init__(self, folder: Path):
        self.lock = threading.Lock()
        self.metrics = MetricsCurve(folder)
        self.evaluations = EvaluationCurve(folder)

    def read(self, most: int) -> tuple[dict[str, list[float | int | None]], list[EvaluationFacts]]:
        """The columns of the metrics, of at most so many points, and the evaluations, by step."""
        with self.lock:
            self.metrics.update()
            self.evaluations.update()
            return self.metrics.columns(most), self.evaluations.all()


class CurvesInMemory:
    """The curves of the runs that were looked at last: a few megabytes each."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._curves: OrderedDict[Path, RunCurves] = OrderedDict()

    def of(self, folder: Path) -> RunCurves:
        with self._lock:
            curves = self._curves.pop(folder, None) or RunCurves(folder)
            self._curves[folder] = curves
            if len(self._curves) > MOST_RUNS:
                self._curves.popitem(last=False)
            return curves
