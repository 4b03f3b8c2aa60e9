"""The images of finished jobs: files in a folder of their own, which goes with the server."""

import glob
import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from utils.data.locks import FileLock, LocksUnsupported
from utils.serving.jobs import Job

PREFIX = "iddm-images-"
LOCK = ".lock"  # in the folder, held as long as the server runs
NOTE = "images of a server"  # in the lock: it is none of another program


class ResultStore:
    """Encoded images, on disk, at most `keep_bytes` of them. Threads may use it."""

    def __init__(self, keep_bytes: int):
        # A lock says nothing to other machines, which may share the folder of temporary files
        prefix = f"{PREFIX}{socket.gethostname()}-"
        remove_left_over(Path(tempfile.gettempdir()), prefix)
        self._folder, self._in_use = new_folder(prefix)
        self._keep_bytes = keep_bytes
        self._lock = threading.Lock()
        self._sizes: dict[str, int] = {}  # bytes of each job
        self._total = 0

    def put(self, job: Job, name: str, data: bytes, make_room: Callable[[], bool]) -> None:
        """Keep a picture of a job. `make_room` forgets an older job; False: there is none.

        Raises OSError where the disk refuses it.
        """
        while self._total + len(data) > self._keep_bytes:
            if not make_room():
                break
        folder = self._folder / job.id
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
        with self._lock:
            self._sizes[job.id] = self._sizes.get(job.id, 0) + len(data)
            self._total += len(data)

    def get(self, job: Job, name: str) -> bytes:
        """Raises OSError where it has just been forgotten."""
        return (self._folder / job.id / name).read_bytes()

    def forget(self, job: Job) -> None:
        """Remove the images of a job."""
        with self._lock:
            size = self._sizes.pop(job.id, None)
            if size is None:
                return
            self._total -= size
        shutil.rmtree(self._folder / job.id, ignore_errors=True)

    def close(self) -> None:
        """Remove everything."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._in_use.close()


def new_folder(prefix: str) -> tuple[Path, FileLock]:
    """A folder, and the lock that is held on it."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix))
        lock = FileLock(folder / LOCK)
        try:
            is_held = lock.try_acquire() and not lock.is_removed()
        except LocksUnsupported:
            return folder, lock  # nobody will remove it
        if is_held:
            lock.write_note(NOTE)
            return folder, lock
        lock.close()  # another server that starts has taken it for left over: the next one


def remove_left_over(parent: Path, prefix: str) -> None:
    """Remove the images of servers that were killed: nobody holds the lock in their folder."""
    for folder in parent.glob(f"{glob.escape(prefix)}*"):
        try:
            lock = FileLock(folder / LOCK, os.O_RDWR)
        except OSError:  # another user's, or one that is just being made
            continue
        try:
            if lock.try_acquire() and lock.note() == NOTE:
                shutil.rmtree(folder, ignore_errors=True)
        except LocksUnsupported:
            pass
        finally:
            lock.close()
