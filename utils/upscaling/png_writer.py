"""A PNG file written strip by strip, so that a picture of any size needs little memory."""

import struct
import zlib
from typing import BinaryIO

import numpy as np

from utils.data.png import SIGNATURE

COLOUR_TYPE = {1: 0, 2: 4, 3: 2, 4: 6}  # by channels: grey, grey and alpha, RGB, RGBA
SUB, UP, PAETH = 1, 2, 4  # filters
COMPRESSION = 6  # zlib's own default
BYTES_FILTERED_AT_ONCE = 2**22


class PngWriter:
    """Writes to an open file: the head at once, then strips from top to bottom, then `finish`.

    (H, W) of the picture; 1 to 4 channels (grey, grey and alpha, RGB, RGBA) of 8 or 16 bits.
    `profile` is an ICC profile, `exif` a block of EXIF that begins with its byte order.
    """

    def __init__(
        self,
        file: BinaryIO,
        size: tuple[int, int],
        channels: int,
        depth: int,
        profile: bytes | None = None,
        exif: bytes | None = None,
    ):
        height, width = size
        self._file = file
        self._bytes_per_pixel = channels * depth // 8
        self._row_bytes = width * self._bytes_per_pixel
        self._rows_left = height
        self._last_row = np.zeros((1, self._row_bytes), np.uint8)
        self._compressor = zlib.compressobj(COMPRESSION)
        file.write(SIGNATURE)
        self._chunk(
            b"IHDR", struct.pack(">IIBBBBB", width, height, depth, COLOUR_TYPE[channels], 0, 0, 0)
        )
        if profile:
            self._chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(profile))
        if exif:
            self._chunk(b"eXIf", exif)

    def write(self, strip: np.ndarray) -> None:
        """(n,W,C) uint8 or uint16: the next n rows. ValueError for rows that do not fit."""
        samples = np.ascontiguousarray(strip)
        if samples.dtype == np.uint16:
            samples = samples.astype(">u2")
        rows = samples.view(np.uint8).reshape(len(strip), -1)
        if rows.shape[1] != self._row_bytes or len(rows) > self._rows_left:
            raise ValueError(f"rows of {rows.shape} bytes for {self._rows_left, self._row_bytes}")
        self._rows_left -= len(rows)
        at_once = max(1, BYTES_FILTERED_AT_ONCE // self._row_bytes)
        for start in range(0, len(rows), at_once):
            part = rows[start : start + at_once]
            above = np.concatenate([self._last_row, part[:-1]])
            self._last_row = part[-1:]
            self._pixels(self._compressor.compress(_filtered(part, above, self._bytes_per_pixel)))

    def finish(self) -> None:
        """Write the end. ValueError where rows are missing."""
        if self._rows_left:
            raise ValueError(f"{self._rows_left} rows are missing")
        self._pixels(self._compressor.flush())
        self._chunk(b"IEND", b"")

    def _pixels(self, packed: bytes) -> None:
        if packed:
            self._chunk(b"IDAT", packed)

    def _chunk(self, kind: bytes, data: bytes) -> None:
        self._file.write(struct.pack(">I", len(data)) + kind)
        self._file.write(data)
        self._file.write(struct.pack(">I", zlib.crc32(data, zlib.crc32(kind))))


def _filtered(rows: np.ndarray, above: np.ndarray, bytes_per_pixel: int) -> bytes:
    """(n, bytes of a row) uint8, and the rows above them -> each row with the filter that makes the
    smallest differences in all, which is what libpng chooses by too.
    """
    left = _shifted(rows, bytes_per_pixel)
    corner = _shifted(above, bytes_per_pixel)
    differences = {
        SUB: rows - left,
        UP: rows - above,
        PAETH: rows - _paeth(left, above, corner),
    }
    filtered = np.stack(list(differences.values()))
    sizes = np.abs(filtered.view(np.int8).astype(np.int16)).sum(axis=2, dtype=np.int64)
    best = sizes.argmin(axis=0)
    kinds = np.array(list(differences), np.uint8)[best]
    chosen = filtered[best, np.arange(len(rows))]
    return np.concatenate([kinds[:, None], chosen], axis=1).tobytes()


def _shifted(rows: np.ndarray, by: int) -> np.ndarray:
    """The byte of the pixel before, for each byte; 0 for the first pixel."""
    shifted = np.zeros_like(rows)
    shifted[:, by:] = rows[:, :-by]
    return shifted


def _paeth(left: np.ndarray, above: np.ndarray, corner: np.ndarray) -> np.ndarray:
    """The one of the three neighbours that is nearest to left + above - corner."""
    to_above = np.abs(left.astype(np.int16) - corner)  # |prediction - above|
    to_left = np.abs(above.astype(np.int16) - corner)
    to_corner = np.abs(left.astype(np.int16) + above - 2 * corner.astype(np.int16))
    nearest = np.where(to_above <= to_corner, above, corner)
    is_left = (to_left <= to_above) & (to_left <= to_corner)
    return np.where(is_left, left, nearest)
