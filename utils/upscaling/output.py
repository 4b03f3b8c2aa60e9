"""Image files that are written strip by strip, in a format that can hold them."""

import contextlib
import io
import os
import secrets
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from utils.data.png import SIGNATURE
from utils.data.silence import quiet_pillow
from utils.errors import UserError
from utils.pictures import format_options
from utils.runs.safeguards import reason
from utils.upscaling.png_writer import PngWriter

PNG = ".png"
LARGEST_WHOLE = 100_000_000  # pixels of a picture that is held whole while it is written
LARGEST_EXIF_IN_JPEG = 65_533  # bytes
HALF_FILES = ".upscaling-*.tmp"  # pictures that are being written
STALE_SECONDS = 3600


@dataclass(frozen=True)
class Kind:
    """What a file format can hold, other than PNG, which can hold all of it."""

    name: str  # Pillow's
    channels: dict[int, tuple[int, ...]]  # by bits per sample
    largest_side: int
    holds_profile: bool = True


JPEG = Kind("JPEG", {8: (1, 3)}, 65_500)
WEBP = Kind("WEBP", {8: (3, 4)}, 16_383)
BMP = Kind("BMP", {8: (1, 3)}, 2**31 - 1, holds_profile=False)
TIFF = Kind("TIFF", {8: (1, 2, 3, 4), 16: (1,)}, 2**31 - 1)
KINDS = {
    ".jpg": JPEG,
    ".jpeg": JPEG,
    ".jpe": JPEG,
    ".jfif": JPEG,
    ".webp": WEBP,
    ".bmp": BMP,
    ".tif": TIFF,
    ".tiff": TIFF,
}
WRITTEN_ENDINGS = (PNG, *KINDS)
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
CHANNEL_NAMES = {1: "grey", 2: "grey with opacity", 3: "colour", 4: "colour with opacity"}


@dataclass(frozen=True)
class Canvas:
    """A picture to be written."""

    size: tuple[int, int]  # (H, W)
    channels: int
    depth: int  # bits per sample
    profile: bytes | None = None
    exif: bytes | None = None  # from "Exif" on


def reason_against(ending: str, canvas: Canvas) -> str:
    """Why a picture cannot be written in the format of that ending; "" where it can."""
    if ending == PNG:
        return ""
    kind = KINDS.get(ending)
    if kind is None:
        return f"{ending or 'files without an ending'} cannot be written"
    height, width = canvas.size
    if canvas.channels not in kind.channels.get(canvas.depth, ()):
        what = f"{CHANNEL_NAMES[canvas.channels]} of {canvas.depth} bits"
        return f"{ending} cannot hold {what}"
    if max(height, width) > kind.largest_side:
        return f"{ending} cannot hold sides above {kind.largest_side:,} pixels"
    if height * width > LARGEST_WHOLE:
        return f"{ending} is written for up to {LARGEST_WHOLE // 10**6} million pixels"
    if canvas.profile and not kind.holds_profile:
        return f"{ending} cannot hold a colour profile"
    return ""


def holds_exif(kind: Kind, exif: bytes) -> bool:
    """Whether files of that kind can hold an EXIF block of this length."""
    if kind is JPEG:
        return len(exif) <= LARGEST_EXIF_IN_JPEG
    return kind is not BMP


def written_size(path: Path) -> tuple[int, int]:
    """(H, W) of a file that was written here. Raises what Pillow raises on others."""
    with open(path, "rb") as file:
        head = file.read(24)
    if head.startswith(SIGNATURE) and len(head) == 24:  # Pillow refuses very large ones
        width, height = struct.unpack(">II", head[16:])
        return height, width
    with quiet_pillow(), Image.open(path) as image:
        return image.height, image.width


def remove_half_files(folder: Path) -> None:
    """Remove what runs that were killed have left below a folder: nobody has written into it for an
    hour.
    """
    for half in folder.rglob(HALF_FILES):
        with contextlib.suppress(OSError):
            if time.time() - half.stat().st_mtime > STALE_SECONDS:
                half.unlink()


@contextlib.contextmanager
def new_picture(path: Path, canvas: Canvas) -> Iterator["PngWriter | WholeWriter"]:
    """A writer with `write(strip)`; the file is there once all strips have been written.

    Until then it has another name, hidden, and after an error there is none. UserError where the
    disk refuses it.
    """
    half = path.with_name(HALF_FILES.replace("*", secrets.token_hex(8)))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(half, "xb") as file:
            writer = _writer(file, path.suffix.lower(), canvas)
            yield writer
            writer.finish()
            file.flush()
            os.fsync(file.fileno())
        os.replace(half, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            half.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise UserError(f"cannot write {path}: {reason(error)}") from None
        raise


def _writer(file: BinaryIO, ending: str, canvas: Canvas) -> "PngWriter | WholeWriter":
    if ending == PNG:
        exif = canvas.exif.removeprefix(b"Exif\0\0") if canvas.exif else None
        return PngWriter(file, canvas.size, canvas.channels, canvas.depth, canvas.profile, exif)
    return WholeWriter(file, ending, canvas)


class WholeWriter:
    """Writes a file of the other formats, of which Pillow needs the whole picture."""

    def __init__(self, file: BinaryIO, ending: str, canvas: Canvas):
        self._file = file
        self._ending = ending
        self._canvas = canvas
        mode = MODES[canvas.channels] if canvas.depth == 8 else "I;16"
        height, width = canvas.size
        self._image = Image.new(mode, (width, height))
        self._rows_done = 0

    def write(self, strip: np.ndarray) -> None:
        """(n,W,C) uint8 or uint16: the next n rows."""
        pixels = strip[..., 0] if strip.shape[2] == 1 else strip
        self._image.paste(Image.fromarray(np.ascontiguousarray(pixels)), (0, self._rows_done))
        self._rows_done += len(strip)

    def finish(self) -> None:
        """Write the file: in memory first, since Pillow does not say how a disk fails."""
        buffer = io.BytesIO()
        self._image.save(buffer, KINDS[self._ending].name, **self._options())
        self._file.write(buffer.getbuffer())

    def _options(self) -> dict[str, Any]:
        options = format_options(self._ending)
        kind, canvas = KINDS[self._ending], self._canvas
        if canvas.profile:
            options["icc_profile"] = canvas.profile
        if canvas.exif and holds_exif(kind, canvas.exif):
            options["exif"] = canvas.exif
        return options
