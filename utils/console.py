"""What goes to the terminal: lines, progress, and output that never ends a run.

A run may outlive its terminal by days, and its output may go to a pipe, a log file or a terminal
that knows only ASCII. Nothing here raises because of any of these. Standard library only, except
that a progress bar on a terminal imports tqdm.
"""

import atexit
import contextlib
import numbers
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from types import TracebackType
from typing import Any, TextIO, TypeVar

from utils.streams import make_output_robust
from utils.text import printable

__all__ = ["LineSchedule", "Progress", "make_output_robust", "progress_over", "say"]

Item = TypeVar("Item")

BAR_INTERVAL = 0.1  # seconds between two drawings of a progress bar
FIRST_LINE_AFTER = 10.0  # seconds until the first line of progress where there is no terminal
LONGEST_INTERVAL = 300.0  # seconds between two such lines, after some have been printed


# --- Lines ---


def say(text: str, error: bool = False) -> None:
    """Print a line to stdout, or with `error` to stderr, beside any progress bar.

    Never raises because of the terminal: what its encoding lacks is written as "\\u978b", and
    where nothing can be written, nothing is.
    """
    stream = sys.stderr if error else sys.stdout
    if stream is None:
        return
    encoding = getattr(stream, "encoding", None) or "utf-8"
    line = printable(text).encode(encoding, "backslashreplace").decode(encoding)
    try:
        if "tqdm" in sys.modules:
            _tqdm().write(line, file=stream)
        else:
            stream.write(line + "\n")
        stream.flush()
    except (OSError, ValueError):  # ValueError: the stream has been closed
        _forget_at_exit(stream)


def _forget_at_exit(stream: TextIO) -> None:
    """What a full disk has not taken waits in the stream's buffer. Where it is not taken at the end
    either, it is dropped: Python would end with status 120.
    """

    def forget() -> None:
        try:
            stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):  # it may have no file
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())

    if stream not in _FORGOTTEN:
        _FORGOTTEN.append(stream)
        atexit.register(forget)


_FORGOTTEN: list[TextIO] = []  # streams that have failed


def _tqdm() -> Any:
    """The class tqdm, with a lock that lives in this process only: its own is shared between
    processes, and would outlive one that is killed.
    """
    from tqdm import tqdm

    if not isinstance(getattr(tqdm, "_lock", None), _RLOCK_TYPE):
        tqdm.set_lock(threading.RLock())
    return tqdm


_RLOCK_TYPE = type(threading.RLock())


# --- Progress ---


class LineSchedule:
    """When the next line of progress is due where there is no terminal: after 10 seconds, then at
    intervals that double, up to 5 minutes. This makes about 17 lines in the first hour.
    """

    def __init__(self) -> None:
        self._interval = FIRST_LINE_AFTER
        self._due: float | None = None

    def start(self, now: float) -> float:
        """Begin at the time `now`, unless it has begun; the time when the next line is due."""
        if self._due is None:
            self._due = now + self._interval
        return self._due

    def line_shown(self, now: float) -> float:
        """A line was shown at the time `now`; the time when the next one is due."""
        self._interval = min(2 * self._interval, LONGEST_INTERVAL)
        self._due = now + self._interval
        return self._due


# Bars that vanish when they are done come by the hundred, one after the other, so they share one.
_passing_lines = LineSchedule()


class Progress:
    """How far a piece of work is, on stderr.

    On a terminal this is a bar. Elsewhere it is a plain line now and then, with what is done, the
    facts and the time left, without control characters, and one line at the end.

        with Progress(1000, title="training") as progress:
            ...
            progress.update(loss=f"{loss:.4f}")

    total: how many units there are; None where nobody knows. initial: how many were done before.
    shown: False prints nothing at all. leave: False for a bar that vanishes when it is done; where
    there is no terminal, it then has no line at its end.
    """

    def __init__(
        self,
        total: int | None,
        *,
        title: str = "",
        unit: str = "step",
        initial: int = 0,
        shown: bool = True,
        leave: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.total = total
        self.done = initial
        self.title = printable(title)
        self.unit = unit
        self._initial = initial
        self._leave = leave
        self._clock = clock
        self._facts: dict[str, str | float] = {}
        self._stream: TextIO | None = sys.stderr if shown else None
        self._bar: Any = None
        self._schedule = LineSchedule() if leave else _passing_lines

        now = clock()
        self._began = now
        self._last_line = (now, initial)  # when it was shown, and what was done then
        if self._stream is None:
            self._next_show = float("inf")
        elif _is_terminal(self._stream):
            self._bar = self._make_bar()
            self._next_show = now + BAR_INTERVAL
        else:
            self._next_show = max(self._schedule.start(now), now + FIRST_LINE_AFTER)

    def update(self, count: int = 1, **facts: str | float) -> None:
        """`count` more units are done; `facts`, such as loss="0.0123", are shown until they change.

        It takes about a microsecond, unless it is time to draw. Facts are texts or plain numbers:
        a TypeError says so for tensors, since reading one waits for the device.
        """
        self.done += count
        if facts:
            self._take_facts(facts)
        now = self._clock()
        if now >= self._next_show:
            self._show(now)

    def close(self) -> None:
        """The work has ended, whether all of it is done or not. A second call changes nothing."""
        stream, self._stream = self._stream, None
        self._next_show = float("inf")
        if stream is None:
            return
        if self._bar is not None:
            self._draw_bar()
            _quietly(self._bar.close)
        elif self._leave:
            took = timedelta(seconds=round(self._clock() - self._began))
            _write_line(stream, self._line(f"took {took}"))

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _take_facts(self, facts: dict[str, str | float]) -> None:
        for name, value in facts.items():
            if not isinstance(value, str | numbers.Real):
                raise TypeError(
                    f"progress shows texts and plain numbers, but {name} is a "
                    f"{type(value).__name__}; read it before, where waiting does no harm"
                )
        self._facts.update(facts)

    def _show(self, now: float) -> None:
        if self._bar is not None:
            self._draw_bar()
            self._next_show = now + BAR_INTERVAL
            return
        if now < self._schedule.start(now):  # another bar with the same schedule had a line since
            self._next_show = self._schedule.start(now)
            return
        if self._stream is not None:
            _write_line(self._stream, self._line(self._time_left(now)))
        self._last_line = (now, self.done)
        self._next_show = self._schedule.line_shown(now)

    def _make_bar(self) -> Any:
        return _tqdm()(
            total=self.total,
            initial=self.done,
            desc=self.title or None,
            unit=self.unit,
            leave=self._leave,
            file=self._stream,
            dynamic_ncols=True,
            mininterval=0,  # `update` sees to it that the bar is not drawn too often
            miniters=1,
        )

    def _draw_bar(self) -> None:
        if self._facts:
            self._bar.set_postfix_str(self._facts_text(), refresh=False)
        news = self.done - self._bar.n
        _quietly(lambda: self._bar.update(news))

    def _facts_text(self) -> str:
        """ "loss 0.0123, images per second 812" """
        parts = []
        for name, value in self._facts.items():
            text = value if isinstance(value, str) else f"{value:.4g}"
            parts.append(f"{name.replace('_', ' ')} {printable(text)}")
        return ", ".join(parts)

    def _line(self, ending: str) -> str:
        """ "training: 1,200 of 5,000 steps (24%), loss 0.0123, 0:03:10 left" """
        plural = "" if (self.total or self.done) == 1 else "s"
        if self.total:
            share = 100 * self.done // self.total
            position = f"{self.done:,} of {self.total:,} {self.unit}{plural} ({share}%)"
        else:
            position = f"{self.done:,} {self.unit}{plural}"
        parts = [f"{self.title}: {position}" if self.title else position]
        parts += [part for part in (self._facts_text(), ending) if part]
        return ", ".join(parts)

    def _time_left(self, now: float) -> str:
        """ "0:03:10 left", by the speed since the last line; "" where that cannot be told."""
        then, done_then = self._last_line
        news = self.done - done_then
        if not self.total or news <= 0 or now <= then:
            return ""
        seconds_per_unit = (now - then) / news
        left = max(0, self.total - self.done) * seconds_per_unit
        return f"{timedelta(seconds=round(left))} left"


def progress_over(
    items: Iterable[Item],
    total: int | None = None,
    title: str = "",
    unit: str = "image",
    shown: bool = True,
    leave: bool = False,
) -> Iterator[Item]:
    """The items one by one, with a Progress that counts them as they are used."""
    with Progress(total, title=title, unit=unit, shown=shown, leave=leave) as progress:
        for item in items:
            yield item
            progress.update()


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except (AttributeError, OSError, ValueError):  # not a file, or closed
        return False


def _write_line(stream: TextIO, line: str) -> None:
    encoding = getattr(stream, "encoding", None) or "utf-8"
    safe = line.encode(encoding, "backslashreplace").decode(encoding)

    def write() -> None:
        stream.write(safe + "\n")
        stream.flush()

    try:
        write()
    except (OSError, ValueError):  # ValueError: the stream has been closed
        _forget_at_exit(stream)


def _quietly(action: Callable[[], object]) -> None:
    """Do it; where the stream cannot be written any more, nothing happens."""
    try:
        action()
    except (OSError, ValueError):  # ValueError: the stream has been closed
        pass
