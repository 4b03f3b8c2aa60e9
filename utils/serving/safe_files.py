"""Reading what others write while they write it, and only below the folder that is meant.

A run folder may hold half-written files, links that lead elsewhere, pipes that never end, and JSON
that no program of ours has written. Nothing here follows a link, waits, or reads without a bound.
"""

import contextlib
import json
import math
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from utils.runs.safeguards import sync_file, sync_folder
from utils.text import printable

LARGEST_JSON = 2**25  # bytes
LONGEST_TAIL = 2**14  # bytes
BLOCK = 2**22  # bytes of a growing file that are read at a time
TAIL_BYTES = 1024  # of what was read last, by which a file is known again
OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK

NOT_IN_A_NAME = "/\\\0\n"

# An absolute path, as far as it has no spaces, with at least two parts; the last one is kept.
ABSOLUTE_PATH = re.compile(r"(?<![\w.:/])/(?:[^\s/:;,'\"]+/)+([^\s/:;,'\"]*)")


# --- Opening ---


def open_below(folder: Path, *parts: str) -> IO[bytes]:
    """Open folder/part/.../name for reading. OSError where it is no regular file, or where one of
    the parts is a link or no plain name.
    """
    descriptor = os.open(folder, OPEN_FOLDER)
    try:
        for part in parts[:-1]:
            inner = os.open(_plain(part), OPEN_FOLDER, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = inner
        file = os.open(_plain(parts[-1]), OPEN_FILE, dir_fd=descriptor)
    finally:
        os.close(descriptor)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(f"{parts[-1]!a} is not a file")
    return os.fdopen(file, "rb")


def _plain(name: str) -> str:
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise OSError(f"{name!a} is no name of a file")
    return name


def is_folder(path: Path) -> bool:
    """Whether the path is a folder itself, and no link to one."""
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except (OSError, ValueError):
        return False


def names_in(folder: Path) -> list[str]:
    """What lies in a folder, sorted; empty where it cannot be read or is a link."""
    try:
        descriptor = os.open(folder, OPEN_FOLDER)
    except OSError:
        return []
    try:
        return sorted(os.listdir(descriptor))
    except OSError:
        return []
    finally:
        os.close(descriptor)


def read_tail(folder: Path, name: str) -> str:
    """The end of a text file; "" where there is none."""
    try:
        with open_below(folder, name) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - LONGEST_TAIL))
            return file.read(LONGEST_TAIL).decode("utf-8", "replace")
    except OSError:
        return ""


def is_text(name: str) -> bool:
    """Whether the name can be sent: Python puts lone surrogates where bytes are not UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_plain_name(name: str) -> bool:
    """Whether it may be the name of a run or of a folder of images: a text that leads nowhere else,
    and is not hidden.
    """
    leads_elsewhere = any(character in name for character in NOT_IN_A_NAME)
    return name != "" and is_text(name) and not leads_elsewhere and not name.startswith(".")


# --- JSON ---


@dataclass(frozen=True)
class Stamp:
    """Which state of a file has been read."""

    inode: int
    size: int
    time: int  # ns

    @classmethod
    def of(cls, about: os.stat_result) -> "Stamp":
        return cls(about.st_ino, about.st_size, about.st_mtime_ns)


def stamp_of(file: Path) -> Stamp | None:
    """None where there is no such file."""
    try:
        return Stamp.of(os.lstat(file))
    except OSError:
        return None


def read_json(folder: Path, name: str) -> dict:
    """The object in a JSON file, made clean; {} where there is none that can be read."""
    try:
        with open_below(folder, name) as file:
            text = file.read(LARGEST_JSON + 1)
        if len(text) > LARGEST_JSON:
            return {}
        found = clean(json.loads(text.decode("utf-8", errors="replace")))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def clean(value: Any) -> Any:
    """A value from a JSON file such that it can be sent as JSON: NaN and infinities become None,
    and lone surrogates are written out.
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, list):
        return [clean(item) for item in value]
    if isinstance(value, dict):
        return {printable(key): clean(item) for key, item in value.items()}
    return value


def whole_number(value: Any) -> int | None:
    """The value where it is a whole number that every JSON reader takes, from 0; else None."""
    is_whole = type(value) is int and 0 <= value < 2**53
    return value if is_whole else None


def write_json(contents: Any, file: Path) -> None:
    """Replace the file: a crash leaves the old one or the new one. OSError where that fails."""
    temporary = file.with_name(f"{file.name}.tmp")
    try:
        with open(temporary, "wb") as stream:
            stream.write(json.dumps(contents, indent=2).encode() + b"\n")
            sync_file(stream, temporary)
        os.replace(temporary, file)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(file.parent)


# --- Files that grow ---


class GrowingLines:
    """The lines of a file that another process adds to.

    Where the file was replaced or cut, it is read from its start again. A line that is longer than
    BLOCK comes in pieces, which are no lines of ours.
    """

    def __init__(self, folder: Path, name: str):
        self._folder = folder
        self._name = name
        self._inode: int | None = None
        self._place = 0  # bytes that have been taken
        self._tail = b""  # the last of them: another file of this name may have got the inode

    def read(self) -> tuple[bool, list[bytes]]:
        """Whether the file began anew since the last call, and the next lines, without their ends;
        none where all whole lines have been read.
        """
        try:
            with open_below(self._folder, self._name) as file:
                return self._read(file)
        except OSError:
            began_anew = self._inode is not None
            self._inode, self._place, self._tail = None, 0, b""
            return began_anew, []

    def put_back(self, line: bytes) -> None:
        """Have the last line that was read come again: it may still be changed in its place."""
        self._place -= len(line) + 1
        self._tail = self._tail[: -len(line) - 1]

    def _read(self, file: IO[bytes]) -> tuple[bool, list[bytes]]:
        about = os.fstat(file.fileno())
        is_shorter = about.st_size < self._place
        began_anew = about.st_ino != self._inode or is_shorter or not self._is_continued(file)
        if began_anew:
            self._inode, self._place, self._tail = about.st_ino, 0, b""
        file.seek(self._place)
        block = file.read(BLOCK)
        end = block.rfind(b"\n") + 1
        if end == 0 and len(block) == BLOCK:
            end = BLOCK
        self._place += end
        self._tail = (self._tail + block[:end])[-TAIL_BYTES:]
        lines = block[:end].split(b"\n")
        return began_anew, lines[:-1] if lines[-1] == b"" else lines

    def _is_continued(self, file: IO[bytes]) -> bool:
        """Whether what was taken last is still where it was."""
        file.seek(self._place - len(self._tail))
        return file.read(len(self._tail)) == self._tail


# --- What is said of paths ---


def without_paths(text: str, roots: Sequence[Path] = ()) -> str:
    """The text with what lies below `roots` named from there, and other absolute paths by their
    last part.
    """
    for root in sorted((str(root) for root in roots), key=len, reverse=True):
        text = text.replace(f"{root}/", "")
        text = re.sub(re.escape(root) + r"(?![\w.-])", os.path.basename(root), text)
    return ABSOLUTE_PATH.sub(r"\1", text)
