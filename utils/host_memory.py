"""What becomes of memory that a process has freed."""

import ctypes
import platform
import sys

# Of glibc's mallopt, see mallopt(3).
TRIM_THRESHOLD = -1
NEVER = -1
MMAP_MAX = -4


def keep_freed_memory() -> None:
    """The process keeps memory that was freed, and uses it again.

    A network's call frees large tensors by the dozen. glibc gives them back to the system, which
    hands out pages full of zeros at the next call: a tenth to a sixth of a training step went into
    that. So a process stays as large as it was at most. Elsewhere than in glibc nothing happens.
    """
    if not _is_glibc():
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(TRIM_THRESHOLD, NEVER)
    mallopt(MMAP_MAX, 0)  # large blocks come from the heap too, which keeps them


def give_back_freed_memory() -> None:
    """What it has kept so far goes back to the system, see malloc_trim(3)."""
    if _is_glibc():
        ctypes.CDLL(None).malloc_trim(0)


def _is_glibc() -> bool:
    return sys.platform == "linux" and platform.libc_ver()[0] == "glibc"
