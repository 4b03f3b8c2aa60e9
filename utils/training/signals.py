"""Signals that ask a run to save and end."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

from utils.launch import STOP_SIGNALS


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Yields a list in which the numbers of the signals are noted as they come.

    They are SIGINT (Ctrl-C), SIGTERM, SIGHUP (a dropped terminal) and SIGUSR1 (a scheduler's
    warning). A second SIGINT interrupts at once. What is ignored, as SIGHUP under nohup, stays so.
    """
    received: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    before = {}
    for number in STOP_SIGNALS:
        ignored = signal.getsignal(number) == signal.SIG_IGN
        if number in (signal.SIGINT, signal.SIGTERM) or not ignored:
            before[number] = signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
