"""The folder in which sets are kept for the next run: where it is, and how much may lie in it.

A set is a file that is in use as long as a process holds a shared lock on it. While it is made it
has another ending, and its maker holds the lock <key>.lock.
"""

import contextlib
import errno
import math
import os
import shutil
import sys
import time
from pathlib import Path

from utils.data.locks import FileLock, LocksUnsupported

IMAGES, LATENTS = ".images", ".latents"
ENDINGS = (IMAGES, LATENTS)
LARGEST_CACHE = 64 * 2**30  # bytes of all cached sets together
LEFT_FREE = 2**30  # bytes of the disk that the cache leaves to others
STALE_SECONDS = 24 * 3600  # without locks: a part this old is nobody's


class CacheUnavailable(Exception):
    """Why the cache on the disk cannot be used, as the end of a sentence."""


def default_cache_folder() -> Path:
    """Where this user's programs keep what can be made again."""
    if sys.platform == "darwin" and "XDG_CACHE_HOME" not in os.environ:
        return Path(os.path.expanduser("~")) / "Library" / "Caches" / "iddm"
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # such a value is to be ignored, says the specification
        base = os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "iddm"


def make_private(folder: Path) -> None:
    """Make a folder that only this user can read, and so the one that it lies in. OSError where
    that fails.
    """
    if not folder.is_absolute():  # "~" is left where the system knows no home of this user
        raise OSError(errno.ENOENT, "no home folder is known")
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)


def make_room(folder: Path, needed: int, key: str, has_locks: bool, is_asked_for: bool) -> None:
    """Remove parts that nobody writes and the sets that were not used for the longest time, until
    `needed` bytes more fit. CacheUnavailable where they cannot; then all sets are still there.

    `key`: of the set that is about to be written, whose lock this process holds if it `has_locks`.
    """
    if needed > LARGEST_CACHE and not is_asked_for:
        raise CacheUnavailable(
            f"the set needs up to {needed / 2**30:.0f} GiB there and all sets together have "
            f"{LARGEST_CACHE / 2**30:.0f} GiB (--cache disk lifts this limit)"
        )
    _remove_stale_parts(folder, key, has_locks)
    sets = []
    for path in (path for ending in ENDINGS for path in folder.glob(f"*{ending}")):
        with contextlib.suppress(OSError):
            about = path.stat()
            sets.append((about.st_mtime_ns, about.st_size, path))
    total = sum(size for _, size, _ in sets)
    _check_room(folder, needed, sum(size for _, size, path in sets if _is_unlocked(path)))
    largest = LARGEST_CACHE if needed <= LARGEST_CACHE else math.inf  # only a full disk removes
    for _, size, path in sorted(sets):
        has_room = shutil.disk_usage(folder).free >= needed + LEFT_FREE
        if has_room and total + needed <= largest:
            break
        if _remove_unused(path):
            total -= size
    _check_room(folder, needed, 0)


def _check_room(folder: Path, needed: int, removable: int) -> None:
    """Raise CacheUnavailable where so many bytes do not fit, with those that may be removed."""
    free = shutil.disk_usage(folder).free
    if free + removable < needed + LEFT_FREE:
        raise CacheUnavailable(
            f"the set needs up to {needed / 2**20:,.0f} MiB and {free / 2**20:,.0f} MiB are free"
        )


def _remove_stale_parts(folder: Path, key: str, has_locks: bool) -> None:
    """Those that a killed process has left behind: nobody holds the lock of their set."""
    for part in folder.glob("*.part"):
        other = part.name.partition(".")[0]
        if has_locks and other == key:
            is_stale = True  # the lock is ours
        elif has_locks:
            is_stale = _is_unlocked(folder / f"{other}.lock")
        else:
            is_stale = time.time() - _changed(part) > STALE_SECONDS
        if is_stale:
            with contextlib.suppress(OSError):
                part.unlink()


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return time.time()


def _is_unlocked(path: Path) -> bool:
    """Whether no process holds the lock. False where that cannot be known."""
    try:
        lock = FileLock(path, os.O_RDWR)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    try:
        return lock.try_acquire()
    except LocksUnsupported:
        return False
    finally:
        lock.close()


def _remove_unused(path: Path) -> bool:
    """Remove a set that no process has mapped. Whether it is gone."""
    try:
        lock = FileLock(path, os.O_RDWR)
    except OSError as error:
        return error.errno == errno.ENOENT
    try:
        if not lock.try_acquire():
            return False
        path.unlink()  # while it is locked, so that nobody begins to use it
    except LocksUnsupported:
        return False
    except OSError as error:
        return error.errno == errno.ENOENT
    finally:
        lock.close()
    return True
