"""The file that holds a decoded set: a header, the pixels, and what was found when they were read.

bytes 0..4095   magic, six numbers, a SHA-256 digest of the numbers and the facts
then            rows x channels x height x width bytes of pixels
then            the facts: an .npz of places and checksums, and JSON
"""

import hashlib
import io
import json
import os
import struct
from dataclasses import asdict
from pathlib import Path

import numpy as np

from utils.data.locks import lock_for_reading
from utils.data.reading import ReadFacts

MAGIC = b"IDDMSET1"
PIXELS_START = 4096
NUMBERS = struct.Struct("<6Q")  # rows, channels, height, width, start and length of the facts


class DiskStore:
    """Rows in a file behind the header. OSError where there is no room."""

    def __init__(self, path: Path, image_size: tuple[int, int]):
        self.path = path
        self.image_size = image_size
        self._file = open(path, "w+b")  # noqa: SIM115

    def write(self, row: int, data: bytes) -> None:
        self._file.seek(PIXELS_START + row * len(data))
        self._file.write(data)

    def read(self, row: int, length: int) -> bytes:
        self._file.seek(PIXELS_START + row * length)
        return self._file.read(length)

    def finish(self, facts: ReadFacts) -> None:
        """Append the facts, write the header, and see to it that all of it is on the disk."""
        height, width = self.image_size
        rows = len(facts.places)
        start = PIXELS_START + rows * facts.channels * height * width
        packed = _pack(facts)
        numbers = NUMBERS.pack(rows, facts.channels, height, width, start, len(packed))
        self._file.seek(start)
        self._file.truncate()
        self._file.write(packed)
        self._file.seek(0)
        self._file.write(MAGIC + numbers + _digest(numbers, packed))
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class MappedPixels:
    """(rows, channels, height, width) uint8 in a file that is mapped into memory, not read.

    All processes of a machine share the pages. While it is open, a shared lock on the file says
    that it is in use. Pickled, it is the path: a started worker maps the file again.
    """

    def __init__(self, path: Path, shape: tuple[int, int, int, int]):
        self.path, self.shape = path, shape
        self._map()

    def _map(self) -> None:
        self._lock = lock_for_reading(self.path)
        self._array = np.memmap(self.path, np.uint8, "r", PIXELS_START, self.shape)

    def __getitem__(self, i: int) -> np.ndarray:
        return self._array[i]

    def __len__(self) -> int:
        return self.shape[0]

    def __getstate__(self) -> dict:
        return {"path": self.path, "shape": self.shape}

    def __setstate__(self, state: dict) -> None:
        self.path, self.shape = state["path"], state["shape"]
        self._map()

    def __del__(self) -> None:
        if hasattr(self, "_lock"):
            self._lock.close()


def open_cache(path: Path) -> tuple[ReadFacts, MappedPixels] | None:
    """The set in a file; None where there is no file, or one that is not whole."""
    try:
        with open(path, "rb") as file:
            head = file.read(len(MAGIC) + NUMBERS.size + 32)
            numbers = head[len(MAGIC) : len(MAGIC) + NUMBERS.size]
            if not head.startswith(MAGIC) or len(numbers) < NUMBERS.size:
                return None
            rows, channels, height, width, start, length = NUMBERS.unpack(numbers)
            if os.fstat(file.fileno()).st_size != start + length:
                return None
            file.seek(start)
            packed = file.read(length)
        if head[len(MAGIC) + NUMBERS.size :] != _digest(numbers, packed):
            return None
        facts = _unpack(packed)
        return facts, MappedPixels(path, (rows, channels, height, width))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _digest(numbers: bytes, facts: bytes) -> bytes:
    return hashlib.sha256(MAGIC + numbers + facts).digest()


def _pack(facts: ReadFacts) -> bytes:
    fields = asdict(facts)
    places, checksums = fields.pop("places"), fields.pop("checksums")
    text = np.frombuffer(json.dumps(fields).encode(), np.uint8)
    buffer = io.BytesIO()
    np.savez(buffer, places=places, checksums=checksums, text=text)
    return buffer.getvalue()


def _unpack(packed: bytes) -> ReadFacts:
    with np.load(io.BytesIO(packed), allow_pickle=False) as arrays:
        fields = json.loads(arrays["text"].tobytes())
        fields["broken"] = {int(place): why for place, why in fields["broken"].items()}
        return ReadFacts(places=arrays["places"], checksums=arrays["checksums"], **fields)
