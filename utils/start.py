"""When this run began, nearly: the scripts import this before anything that takes long."""

import time

_start = time.monotonic()


def start() -> float:
    """When it began, on the monotonic clock, which all processes of a machine share."""
    return _start


def begin_at(earlier: float) -> None:
    """This process belongs to a run that another one began then."""
    global _start
    _start = earlier


def seconds_since_start() -> float:
    return time.monotonic() - _start
