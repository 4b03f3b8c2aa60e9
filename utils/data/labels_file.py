"""labels.csv in the folder of images: several labels for an image, and numbers.

    file,labels,age
    a.png,"red,large",3.5
    b/c.png,,
    d.png,red,

`file` is relative to the folder, with forward slashes. `labels` are separated by commas, an empty
cell is none. All further columns are numbers, and an empty cell is not known. An image that is seen
in training without a label, or without a number, is drawn where none is asked for.
"""

import csv
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.data.flat import readable
from utils.data.index import FolderIndex
from utils.errors import UserError, name_list
from utils.text import composed

LABELS_FILE = "labels.csv"
FILE_COLUMN, LABELS_COLUMN = "file", "labels"
WITHOUT_ROW = f"no row in {LABELS_FILE}"
SHOWN = 5  # names in a message
LONGEST_CELL = 2**24  # characters; more than that is no table
NO_LABEL = -1  # in a table of labels, where an image has fewer
MOST_NUMBERS = 1000
MOST_LABELS_OF_ONE = 256


@dataclass(frozen=True)
class LabelRow:
    """What labels.csv says of an image."""

    line: int
    labels: tuple[str, ...]  # in the order of their names, each once
    numbers: tuple[float, ...]  # NaN: not known


@dataclass
class LabelTable:
    """labels.csv, checked by itself."""

    rows: dict[str, LabelRow]  # by the file's name, composed
    number_names: list[str]


def read_labels(file: Path) -> LabelTable:
    """The table in a file. Raises UserError, naming the line, for what cannot be meant."""
    before = 0  # lines that have been read
    try:
        with open(file, encoding="utf-8-sig", newline="") as stream:
            csv.field_size_limit(LONGEST_CELL)
            lines = csv.reader(stream, strict=True)
            header = _header(file, next(lines, []))
            rows: dict[str, LabelRow] = {}
            before = lines.line_num
            for cells in lines:
                if any(cell.strip() for cell in cells):
                    _check_quotes(file, before + 1, cells)
                    _add(file, lines.line_num, header, cells, rows)
                before = lines.line_num
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{file} is not UTF-8: save it as CSV (UTF-8)") from None
    except csv.Error as error:
        raise UserError(
            f"{file} is no table of comma-separated values: {error}, in the row that begins in "
            f"line {before + 1}"
        ) from None
    numbers = [name for name in header if name not in (FILE_COLUMN, LABELS_COLUMN)]
    return LabelTable(rows, numbers)


def _header(file: Path, cells: list[str]) -> list[str]:
    names = [composed(cell.strip()) for cell in cells]
    if FILE_COLUMN not in names:
        shown = ",".join(names) or "nothing"
        raise UserError(
            f"{file} begins with {shown!r:.80}, but must begin with a line that names its "
            f"columns, such as {FILE_COLUMN},{LABELS_COLUMN}; where it is something else, rename "
            "it, or pass --conditional False"
        )
    if len(names) == 1:
        raise UserError(f"{file} has the column {FILE_COLUMN} alone: add {LABELS_COLUMN}")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or "" in names:
        raise UserError(f"{file} has columns without a name of their own: {','.join(names)!r:.80}")
    if len(names) > MOST_NUMBERS:
        raise UserError(f"{file} has {len(names)} columns; {MOST_NUMBERS} are the most")
    return names


def _check_quotes(file: Path, line: int, cells: list[str]) -> None:
    """Raise UserError where a cell has a line break: a quote before it was never closed."""
    for cell in cells:
        if "\n" in cell or "\r" in cell:
            raise UserError(
                f"{file}, line {line}: {cell!r:.60} goes on in the next line: a quote is missing"
            )


def _add(
    file: Path, line: int, header: list[str], cells: list[str], rows: dict[str, LabelRow]
) -> None:
    """Check a line and add it."""
    if len(cells) != len(header):
        raise UserError(
            f"{file}, line {line}: {len(cells)} cells, but the first line names {len(header)} "
            'columns; several labels in a cell need quotes: "red,large"'
        )
    by_name = dict(zip(header, cells, strict=True))
    name = composed(by_name.pop(FILE_COLUMN))
    if not name.strip():
        raise UserError(f"{file}, line {line}: the cell of the column {FILE_COLUMN} is empty")
    if name in rows:
        raise UserError(f"{file}, line {line}: {name} has a row in line {rows[name].line} already")
    cell = by_name.pop(LABELS_COLUMN, "")
    labels = {composed(" ".join(part.split())) for part in cell.split(",")} - {""}
    if len(labels) > MOST_LABELS_OF_ONE:
        raise UserError(
            f"{file}, line {line}: {len(labels)} labels; {MOST_LABELS_OF_ONE} are the most"
        )
    numbers = tuple(_number(file, line, column, text) for column, text in by_name.items())
    rows[name] = LabelRow(line, tuple(sorted(labels)), numbers)


def _number(file: Path, line: int, column: str, text: str) -> float:
    if not text.strip():
        return math.nan
    try:
        number = math.inf if "_" in text else float(text)  # Python reads 1_000 as 1000
    except ValueError:
        number = math.inf
    if not math.isfinite(number):
        raise UserError(
            f"{file}, line {line}: {text!r:.40} in the column {column} is no number; labels go "
            f"into the column {LABELS_COLUMN}"
        )
    return number


# --- To the images ---


@dataclass(frozen=True)
class NumberColumn:
    """A number that describes images, and how it is scaled for the network."""

    name: str
    mean: float
    std: float

    def scaled(self, value: float) -> float:
        return (value - self.mean) / self.std

    def to_dict(self) -> dict:
        return {"name": self.name, "mean": self.mean, "std": self.std}


@dataclass
class Conditions:
    """What is known of each image beside its pixels."""

    rows: np.ndarray  # (N,W) float32: scaled numbers, then label numbers; NaN where there is none
    numbers: list[NumberColumn]

    def take(self, places: np.ndarray) -> "Conditions":
        return Conditions(self.rows[places], self.numbers)

    def renumbered(self, used: np.ndarray) -> "Conditions":
        """The same where only these labels (ascending) are left, as 0, 1, ..."""
        rows, first = self.rows.copy(), len(self.numbers)
        labels = rows[:, first:]
        known = ~np.isnan(labels)
        labels[known] = np.searchsorted(used, labels[known])
        return Conditions(rows, self.numbers)

    def label_counts(self, classes: int) -> np.ndarray:
        """Images that have each label, (classes,)."""
        labels = self.label_table()
        return np.bincount(labels[labels != NO_LABEL], minlength=classes)

    def label_table(self) -> np.ndarray:
        """(N,K) int64: the numbers of each image's labels, NO_LABEL where it has fewer than K."""
        labels = self.rows[:, len(self.numbers) :]
        return np.where(np.isnan(labels), NO_LABEL, labels).astype(np.int64)


def match_rows(index: FolderIndex, table: LabelTable) -> list[LabelRow]:
    """The row of each image of the index, from which those without one are taken away.

    Rows without an image become a remark. Raises UserError where no image has a row.
    """
    by_place: dict[int, LabelRow] = {}
    row_of_file: dict[str, LabelRow] = {}
    names = [composed(readable(index.names.raw(place))) for place in range(len(index))]
    exact = table.rows.keys() & set(names)
    inexact = {_simple(name): row for name, row in table.rows.items() if name not in exact}
    for place, name in enumerate(names):
        row = table.rows.get(name) or inexact.get(name)
        if row is not None:
            by_place[place] = row_of_file[name] = row
    if not by_place:
        examples = name_list(list(table.rows)[:SHOWN])
        raise UserError(
            f"{index.root / LABELS_FILE} has no row for any of the {len(index):,} images beside "
            f"it; its files are {examples or 'none'}: they must be relative to {index.root}"
        )
    used = {row.line for row in row_of_file.values()}
    missing = [name for name, row in table.rows.items() if row.line not in used]
    for name in missing:
        other = row_of_file.get(_simple(name))
        if other is not None:
            raise UserError(
                f"{index.root / LABELS_FILE}, line {table.rows[name].line}: {_simple(name)} has a "
                f"row in line {other.line} already"
            )
    if missing:
        index.remarks.append(
            f"{len(missing):,} rows of {LABELS_FILE} name files that are not there, or are left "
            f"out: {name_list(missing[:SHOWN])}{', ...' if len(missing) > SHOWN else ''}"
        )
    for place in range(len(index)):
        if place not in by_place:
            index.account.leave_out(index.names.raw(place), WITHOUT_ROW)
    places = np.array(sorted(by_place))
    index.keep(places)
    return [by_place[int(place)] for place in places]


def _simple(name: str) -> str:
    """The name of a file as other systems write it, or a hand that is not careful."""
    return name.strip().replace("\\", "/").removeprefix("./")


def build_conditions(
    rows: list[LabelRow], number_names: list[str]
) -> tuple[list[str], np.ndarray, Conditions]:
    """The names of all labels; each image's combination of labels as a number (N,) int32; and the
    rows that the network sees.
    """
    names = sorted({label for row in rows for label in row.labels})
    place = {name: number for number, name in enumerate(names)}
    numbers = np.array([row.numbers for row in rows], np.float64).reshape(len(rows), -1)
    columns = [_column(name, numbers[:, i]) for i, name in enumerate(number_names)]
    widest = max((len(row.labels) for row in rows), default=0)
    table = np.full((len(rows), len(columns) + widest), np.nan, np.float32)
    combinations: dict[tuple[str, ...], int] = {}
    which = np.zeros(len(rows), np.int32)
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            table[i, j] = column.scaled(row.numbers[j])
        for j, label in enumerate(row.labels):
            table[i, len(columns) + j] = place[label]
        which[i] = combinations.setdefault(row.labels, len(combinations))
    return names, which, Conditions(table, columns)


def _column(name: str, values: np.ndarray) -> NumberColumn:
    known = values[~np.isnan(values)]
    if len(known) == 0:
        raise UserError(
            f"the column {name} of {LABELS_FILE} has no number for any image that can be read: "
            "remove it"
        )
    if known.min() == known.max():  # whose deviation may be a rounding error instead of 0
        return NumberColumn(name, float(known[0]), 1.0)
    with np.errstate(over="ignore"):
        mean, std = float(known.mean()), float(known.std())
    if not (math.isfinite(std) and std > 0):
        raise UserError(
            f"the numbers in the column {name} of {LABELS_FILE} are too large or too small to "
            "compute with: give them in another unit"
        )
    return NumberColumn(name, mean, std)
