"""When this process began, nearly: the scripts import this before anything that takes long."""

import time

_START = time.monotonic()


def seconds_since_start() -> float:
    return time.monotonic() - _START
