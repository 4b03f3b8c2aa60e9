"""The images of finished jobs: files in a folder of their own, which goes with the server."""

import shutil
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from utils.serving.jobs import Job


class ResultStore:
    """Encoded images, on disk, at most `keep_bytes` of them. Threads may use it."""

    def __init__(self, keep_bytes: int):
        self._folder = Path(tempfile.mkdtemp(prefix="images-"))
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
