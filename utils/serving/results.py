"""The images of finished jobs: files in a folder of their own, which goes with the server."""

import os
import shutil
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from utils.data.locks import FileLock, LocksUnsupported
from utils.serving.jobs import Job

PREFIX = "images-"
LOCK = ".lock"  # in the folder, held as long as the server runs


class ResultStore:
    """Encoded images, on disk, at most `keep_bytes` of them. Threads may use it."""

    def __init__(self, keep_bytes: int):
        remove_left_over(Path(tempfile.gettempdir()))
        self._folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        self._in_use = FileLock(self._folder / LOCK)
        try:
            self._in_use.try_acquire()
        except LocksUnsupported:
            pass  # then nobody removes it
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


def remove_left_over(parent: Path) -> None:
    """Remove the images of servers that were killed: nobody holds the lock in their folder."""
    for folder in parent.glob(f"{PREFIX}*"):
        try:
            lock = FileLock(folder / LOCK, os.O_RDWR)
        except OSError:  # another user's, or none of ours
            continue
        try:
            if lock.try_acquire():
                shutil.rmtree(folder, ignore_errors=True)
        except LocksUnsupported:
            pass
        finally:
            lock.close()
