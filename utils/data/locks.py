"""Locks between the processes of a machine. The system frees them when their process ends."""

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

POLL_SECONDS = 0.1
MOST_POLLS = 50  # for a lock that others hold for a moment only
HELD_BY_ANOTHER = (errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES)


class LocksUnsupported(Exception):
    """The file system (or the operating system) has no locks."""


class FileLock:
    """A lock on a file. The holder can leave a note in it, which those who wait can read."""

    def __init__(self, path: Path, flags: int = os.O_RDWR | os.O_CREAT):
        """Open the file, by default made where it is missing. OSError where that fails."""
        self.path = path
        self._file = -1
        self._file = os.open(path, flags, 0o600)

    def try_acquire(self, shared: bool = False) -> bool:
        """Whether the lock is held now. LocksUnsupported where there are none."""
        if fcntl is None:
            raise LocksUnsupported("this operating system has no flock")
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        try:
            fcntl.flock(self._file, kind | fcntl.LOCK_NB)
        except InterruptedError:
            return False
        except OSError as error:
            if error.errno in HELD_BY_ANOTHER:
                return False
            raise LocksUnsupported(str(error)) from None
        return True

    def acquire(self, while_waiting: Callable[[str], None]) -> None:
        """Wait for the lock, for as long as it takes. `while_waiting` gets the holder's note now
        and then. If the holder dies, one of those who wait gets the lock.
        """
        while not self.try_acquire():
            while_waiting(self.note())
            time.sleep(POLL_SECONDS)

    def write_note(self, text: str) -> None:
        """For those who wait. A failure does not matter: the note is only for display."""
        try:
            os.lseek(self._file, 0, os.SEEK_SET)
            os.write(self._file, text.encode().ljust(64))
        except OSError:
            pass

    def note(self) -> str:
        try:
            os.lseek(self._file, 0, os.SEEK_SET)
            return os.read(self._file, 64).decode(errors="replace").strip()
        except OSError:
            return ""

    def is_removed(self) -> bool:
        """Whether the file has been removed since it was opened."""
        return not self.path.exists()

    def close(self) -> None:
        """Free the lock, if it is held."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def lock_for_reading(path: Path) -> FileLock:
    """A shared lock on a file that is there, which says that it is in use; where there are no
    locks, one that says nothing. OSError where the file cannot be opened, or is being removed.
    """
    lock = FileLock(path, os.O_RDONLY)
    try:
        for _ in range(MOST_POLLS):
            if lock.try_acquire(shared=True):
                if lock.is_removed():
                    raise FileNotFoundError(errno.ENOENT, "the file has been removed", str(path))
                return lock
            time.sleep(POLL_SECONDS)  # another process looks whether it is in use
        raise TimeoutError(errno.ETIMEDOUT, "another process holds the lock", str(path))
    except LocksUnsupported:
        return lock
    except OSError:
        lock.close()
        raise
