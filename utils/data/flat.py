"""Sequences of a million short strings or numbers in a few flat arrays.

A list of a million strings is a million Python objects. Each forked data-loading worker that reads
one writes to its reference count, so the memory page is copied: the workers grow for hours. Flat
arrays have one reference count.
"""

import os
import re
from collections.abc import Iterable, Sequence
from typing import Any, overload

import numpy as np

CONTROL_CHARACTER = re.compile("[\x00-\x1f\x7f-\x9f]")


def readable(name: bytes | str) -> str:
    """A file name for messages, on one line: bytes that are not UTF-8 and control characters are
    written as \\xNN.
    """
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return CONTROL_CHARACTER.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


class FlatNames(Sequence[str]):
    """File names as one block of bytes. Item i is a string that `open` accepts."""

    def __init__(self, names: Iterable[bytes]):
        names = list(names)
        lengths = np.fromiter((len(name) for name in names), np.int64, len(names))
        self._ends = np.cumsum(lengths)
        self._blob = b"".join(names)

    def __len__(self) -> int:
        return len(self._ends)

    def raw(self, i: int) -> bytes:
        """Name i as the file system has it."""
        start = int(self._ends[i - 1]) if i > 0 else 0
        return self._blob[start : int(self._ends[i])]

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> "FlatNames": ...
    def __getitem__(self, i):
        if isinstance(i, slice):
            return self.take(range(*i.indices(len(self))))
        if i < 0:
            i += len(self)
        if not 0 <= i < len(self):
            raise IndexError(f"name {i} of {len(self)}")
        return os.fsdecode(self.raw(i))

    def take(self, indices: Iterable[int]) -> "FlatNames":
        return FlatNames(self.raw(int(i)) for i in indices)

    def digest_parts(self) -> list[bytes]:
        """What a digest of all names must see."""
        return [self._ends.tobytes(), self._blob]

    def __eq__(self, other: object) -> bool:
        return _same_items(self, other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return _short_repr(self)


class FlatNumbers(Sequence[int]):
    """Whole numbers in a numpy array. Item i is a plain int."""

    def __init__(self, array: np.ndarray):
        self.array = array

    def __len__(self) -> int:
        return len(self.array)

    @overload
    def __getitem__(self, i: int) -> int: ...
    @overload
    def __getitem__(self, i: slice) -> "FlatNumbers": ...
    def __getitem__(self, i):
        if isinstance(i, slice):
            return FlatNumbers(self.array[i])
        return int(self.array[i])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.array, dtype=dtype)

    def tolist(self) -> list[int]:
        return self.array.tolist()

    def __eq__(self, other: object) -> bool:
        return _same_items(self, other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return _short_repr(self)


def _same_items(mine: Sequence, other: object) -> bool:
    if not isinstance(other, Sequence) or len(mine) != len(other):
        return False
    return all(a == b for a, b in zip(mine, other, strict=True))


def _short_repr(items: Sequence) -> str:
    shown = ", ".join(repr(item) for item in items[:5])
    more = ", ..." if len(items) > 5 else ""
    return f"{type(items).__name__}([{shown}{more}], {len(items)} items)"
