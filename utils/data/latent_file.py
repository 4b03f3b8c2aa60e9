"""The file that holds the latents of a set: a header, the moments of each image, their checksums.

bytes 0..4095   magic, a SHA-256 digest of the rest of the header, JSON: the shape of the moments
then            rows x views x 2 x c x h x w numbers of 4 bytes
then            the CRC-32 of each row, 4 bytes each
"""

import contextlib
import hashlib
import json
import os
import zlib
from pathlib import Path

import numpy as np

from utils.data.locks import lock_for_reading

MAGIC = b"IDDMLAT1"
HEADER_BYTES = 4096

Shape = tuple[int, ...]  # rows, views, 2, c, h, w


def row_checksum(moments: np.ndarray) -> int:
    """Of the moments of one image."""
    return zlib.crc32(np.ascontiguousarray(moments).tobytes())


class LatentWriter:
    """Writes the rows of a file one after the other. OSError where there is no room."""

    def __init__(self, path: Path, shape: Shape):
        self.shape = shape
        self.checksums: list[int] = []
        self._file = open(path, "wb")  # noqa: SIM115
        self._file.write(bytes(HEADER_BYTES))

    def append(self, moments: np.ndarray) -> None:
        """(views,2,c,h,w) float32."""
        self._file.write(np.ascontiguousarray(moments).tobytes())
        self.checksums.append(row_checksum(moments))

    def finish(self) -> None:
        """Write checksums and header, and see to it that all of it is on the disk."""
        self._file.write(np.array(self.checksums, np.uint32).tobytes())
        self._file.seek(0)
        self._file.write(header(self.shape))
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def header(shape: Shape) -> bytes:
    text = json.dumps(list(shape)).encode()
    return MAGIC + hashlib.sha256(MAGIC + text).digest() + text


class MappedLatents:
    """(rows, views, 2, c, h, w) float32 in a file that is mapped into memory, not read.

    While it is open, a shared lock on the file says that it is in use. Pickled, it is the path: a
    started worker maps the file again.
    """

    def __init__(self, path: Path, shape: Shape):
        self.path, self.shape = path, shape
        self._map()

    def _map(self) -> None:
        self._lock = lock_for_reading(self.path)
        self._moments = np.memmap(self.path, np.float32, "r", HEADER_BYTES, self.shape)
        behind = HEADER_BYTES + self._moments.nbytes
        self.checksums = np.memmap(self.path, np.uint32, "r", behind, self.shape[:1])

    def __getitem__(self, row: int) -> np.ndarray:
        return self._moments[row]

    def __getstate__(self) -> dict:
        return {"path": self.path, "shape": self.shape}

    def __setstate__(self, state: dict) -> None:
        self.path, self.shape = state["path"], state["shape"]
        self._map()

    def __del__(self) -> None:
        if hasattr(self, "_lock"):
            self._lock.close()


def open_latents(path: Path, shape: Shape) -> MappedLatents | None:
    """The latents in a file; None where there is no file, or one that is not whole or of another
    shape.
    """
    wanted = header(shape)
    size = HEADER_BYTES + 4 * int(np.prod(shape)) + 4 * shape[0]
    try:
        with open(path, "rb") as file:
            if file.read(len(wanted)) != wanted or os.fstat(file.fileno()).st_size != size:
                return None
        found = MappedLatents(path, shape)
    except OSError:
        return None
    with contextlib.suppress(OSError):
        os.utime(path)  # says when it was last used
    return found
