"""What a run prints, in pieces."""

import os
from dataclasses import dataclass
from pathlib import Path

from utils.runs.names import LOG
from utils.serving.run_record import OUTPUT
from utils.serving.safe_files import open_below, stamp_of, without_paths
from utils.text import printable

LONGEST_PIECE = 2**16  # bytes
# A run that the server started writes both files at the same time; one that was resumed by hand
# since then only log.txt.
SAME_TIME = 5_000_000_000  # ns


@dataclass(frozen=True)
class LogPiece:
    """Whole lines of the log, from byte `start` to byte `end`."""

    text: str
    start: int
    end: int


def read_log(folder: Path, after: int, roots: list[Path]) -> LogPiece:
    """What follows byte `after`: of what the process prints, or where a run was started by hand, of
    its log.txt. A file that has begun anew is read from its start.
    """
    output, log = stamp_of(folder / OUTPUT), stamp_of(folder / LOG)
    is_by_hand = output is None or (log is not None and log.time > output.time + SAME_TIME)
    name = LOG if is_by_hand else OUTPUT
    try:
        with open_below(folder, name) as file:
            size = file.seek(0, os.SEEK_END)
            start = after if after <= size else 0
            file.seek(start)
            block = file.read(LONGEST_PIECE)
    except OSError:
        return LogPiece("", 0, 0)
    end = block.rfind(b"\n") + 1
    if end == 0 and len(block) == LONGEST_PIECE:
        end = len(block)
    text = printable(block[:end].decode("utf-8", "replace"))
    return LogPiece(without_paths(text, roots), start, start + end)
