"""Jobs: what has become of what clients asked for, and who may see it."""

import math
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from torch import Tensor

from utils.serving.refusal import Refusal, not_found
from utils.serving.requests import GenerationRequest

QUEUED = "queued"
GENERATING = "generating"
COMPLETED = "completed"
FAILED = "failed"
CANCELLED = "cancelled"
ENDED = (COMPLETED, FAILED, CANCELLED)

SECRET_BYTES = 9  # of an id that nobody can guess
PREVIEWED = 16  # images of a job that its previews show


@dataclass(frozen=True)
class Client:
    """Who asks. Jobs are seen by their owner alone; `address` only shares the queue out."""

    owner: str  # stands for a token, "" where the server has none
    address: str = ""


@dataclass
class Snapshot:
    """An image on its way."""

    calls_done: int
    pixels: Tensor  # (C,H,W) uint8


@dataclass
class Job:
    """One request on its way from the queue to its images. The engine's threads write to it; who
    reads takes one field at a time.
    """

    id: str
    request: GenerationRequest
    client: Client
    calls: int  # network calls of each image
    created: float = field(default_factory=time.time)  # seconds since 1970
    is_kept: bool = True  # its images stay to be fetched; else they are handed over at once
    started: float | None = None
    finished: float | None = None
    status: str = QUEUED
    error: Refusal | None = None
    calls_done: list[int] = field(default_factory=list)  # of each image
    images: list[bytes | None] = field(default_factory=list)  # encoded, where they are not kept
    images_done: int = 0  # encoded, and kept or handed over
    about: list[dict] = field(default_factory=list)  # what was found out of each image
    snapshots: list[list[Snapshot]] = field(default_factory=list)  # of each image
    preview: list[Tensor | None] = field(default_factory=list)  # estimates of x0, (C,H,W) uint8
    preview_step: int = 0
    watchers: int = 0  # clients that want previews
    version: int = 0  # rises with each change
    listeners: list[Callable[[], None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        count = self.request.count
        self.calls_done = [0] * count
        self.images = [None] * count
        self.about = [{} for _ in range(count)]
        self.snapshots = [[] for _ in range(count)]
        self.preview = [None] * min(count, PREVIEWED)

    @property
    def has_ended(self) -> bool:
        return self.status in ENDED

    @property
    def step(self) -> int:
        """Network calls that the image which is furthest behind has had."""
        return min(self.calls_done)

    @property
    def progress(self) -> float:
        return sum(self.calls_done) / (self.calls * len(self.calls_done))

    def drop_states(self) -> None:
        """Pictures that the images began with, and those of the way to them, are of no use any
        more, and large.
        """
        self.request = self.request.without_pictures()
        self.preview = [None] * len(self.preview)
        self.snapshots = [[] for _ in self.snapshots]

    def changed(self) -> None:
        """Tell all who listen. They are called in the engine's thread and must be quick."""
        self.version += 1
        for listener in tuple(self.listeners):
            listener()


class JobTable:
    """All jobs by id: those under way, and for a while those that have ended."""

    def __init__(
        self,
        name: str,
        keep_jobs: int,
        keep_seconds: float,
        forget: Callable[[Job], None],  # called for each job that expires
        clock: Callable[[], float] = time.time,
    ):
        self._prefix = f"{name}-" if name else ""
        # Ids of this start of the server: those of an earlier one have expired.
        self._start = f"{int(clock() * 1000):x}"
        self._keep_jobs = keep_jobs
        self._keep_seconds = keep_seconds
        self._forget = forget
        self._clock = clock
        self._lock = threading.Lock()
        self._count = 0
        self._under_way: OrderedDict[str, Job] = OrderedDict()
        self._ended: OrderedDict[str, Job] = OrderedDict()  # in the order of their end

    def add(self, request: GenerationRequest, client: Client, calls: int, is_kept: bool) -> Job:
        """A new job, queued."""
        with self._lock:
            self._count += 1
            secret = secrets.token_hex(SECRET_BYTES)
            number = f"{self._prefix}{self._start}-{self._count:x}-{secret}"
            job = Job(number, request, client, calls, self._clock(), is_kept)
            self._under_way[number] = job
            return job

    def begin(self, job: Job) -> None:
        """The job is being worked on, unless it has ended."""
        with self._lock:
            if job.status == QUEUED:
                job.started = self._clock()
                job.status = GENERATING

    def end(self, job: Job, status: str, error: Refusal | None = None) -> bool:
        """The job has come to an end, unless it had before: then nothing changes, and False."""
        with self._lock:
            if job.has_ended:
                return False
            job.finished = self._clock()
            job.error = error
            job.status = status
            self._under_way.pop(job.id, None)
            if job.is_kept:
                self._ended[job.id] = job
            expired = self._take_expired()
        for old in expired:
            self._forget(old)
        if job.is_kept:
            job.drop_states()
        elif status != COMPLETED:
            self._forget(job)
        job.changed()
        return True

    def find(self, number: str, client: Client) -> Job:
        """The client's job with this id. Raises Refusal: 404 for an id that it cannot know, 410
        for a job that has expired.
        """
        self.expire()
        with self._lock:
            job = self._under_way.get(number) or self._ended.get(number)
        if job is not None and job.client.owner == client.owner:
            return job
        if job is None and self._has_been_given(number):
            raise Refusal(410, "this job has expired", "not_found_error", "id", "expired")
        raise not_found("there is no such job", "id")

    def under_way(self) -> list[Job]:
        """Jobs that have not ended, the oldest first."""
        with self._lock:
            return list(self._under_way.values())

    def all_of(self, client: Client) -> list[Job]:
        """The client's jobs, the newest first."""
        self.expire()
        with self._lock:
            jobs = [*self._under_way.values(), *self._ended.values()]
        own = [job for job in jobs if job.client.owner == client.owner]
        return sorted(own, key=lambda job: job.created, reverse=True)

    def expire(self) -> None:
        """Forget the jobs that ended long ago."""
        with self._lock:
            expired = self._take_expired()
        for job in expired:
            self._forget(job)

    def expire_oldest(self) -> bool:
        """Forget the job that ended first; False where there is none."""
        with self._lock:
            if not self._ended:
                return False
            _, job = self._ended.popitem(last=False)
        self._forget(job)
        return True

    def _take_expired(self) -> Iterable[Job]:
        """Takes those out that ended too long ago, or before too many others."""
        limit = self._clock() - self._keep_seconds
        expired = []
        while self._ended:
            first = next(iter(self._ended.values()))
            ended = math.inf if first.finished is None else first.finished
            if len(self._ended) <= self._keep_jobs and ended >= limit:
                break
            self._ended.popitem(last=False)
            expired.append(first)
        return expired

    def _has_been_given(self, number: str) -> bool:
        """Whether this is the id of a job of this server, or of an earlier start of it."""
        if not number.startswith(self._prefix):
            return False
        parts = number.removeprefix(self._prefix).split("-")
        if len(parts) != 3 or len(parts[2]) != 2 * SECRET_BYTES:
            return False
        try:
            start, count, _ = (int(part, 16) for part in parts)
        except ValueError:
            return False
        own_start = int(self._start, 16)
        return start < own_start or (start == own_start and 1 <= count <= self._count)
