"""Output streams that fail neither on an encoding nor on a reader that has gone. Standard library
only.
"""

import errno
import io
import os
import sys
from typing import Any

# What writing raises once the reader of a pipe has ended, or the terminal was closed.
READER_IS_GONE = {
    errno.EPIPE,
    errno.EIO,
    errno.ENXIO,
    errno.EBADF,
    errno.ECONNRESET,
}


class _ForgivingRaw(io.RawIOBase):
    """The lowest layer of an output stream; what is written after its reader has gone is dropped.

    It stands below the buffers, so that what still lies in them is dropped as well, and Python has
    nothing to complain of when it flushes them at its end.
    """

    def __init__(self, inner: Any):
        self._inner = inner
        self._reader_is_gone = False

    @property
    def name(self) -> str:
        return self._inner.name

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._inner.fileno()

    def isatty(self) -> bool:
        return not self._reader_is_gone and self._inner.isatty()

    def write(self, data: Any) -> int | None:
        if self._reader_is_gone:
            return len(data)
        try:
            return self._inner.write(data)
        except OSError as error:
            if error.errno not in READER_IS_GONE:
                raise  # such as a full disk under a log file
            self._reader_is_gone = True
            return len(data)


def make_output_robust() -> None:
    """From here on, stdout and stderr fail neither on what their encoding lacks nor on a reader
    that has gone.

    Characters outside the encoding are written as "\\u978b". After a closed pipe or a dropped
    terminal, what is written is silently given up. Calling it again changes nothing.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # started without any terminal, as by pythonw
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
        elif isinstance(stream, io.TextIOWrapper):
            setattr(sys, name, _robust(stream))


def _robust(stream: io.TextIOWrapper) -> io.TextIOWrapper:
    stream.reconfigure(errors="backslashreplace")
    below: Any = stream.buffer
    is_buffered = hasattr(below, "raw")  # python -u has no buffer in between
    inner = below.raw if is_buffered else below
    if isinstance(inner, _ForgivingRaw):
        return stream
    try:
        stream.flush()
    except OSError:
        pass  # said again by what is written next
    raw: Any = _ForgivingRaw(inner)
    return io.TextIOWrapper(
        io.BufferedWriter(raw) if is_buffered else raw,
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
