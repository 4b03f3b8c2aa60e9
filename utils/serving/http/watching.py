"""Coroutines that wait for jobs, which change in the engine's threads."""

import asyncio
from collections.abc import AsyncIterator
from types import TracebackType

from fastapi import Request

from utils.serving.engine import Engine
from utils.serving.jobs import CANCELLED, Job
from utils.serving.refusal import RATE_LIMIT, Refusal

LOOK_AT_CLIENT = 0.5  # seconds between two looks whether a client is still there
RETRY_SECONDS = 5  # after which there may be room for one more stream


class Watch:
    """Wakes a coroutine whenever a job changes.

    with Watch(job) as watch:
        while not job.has_ended:
            await watch.wait(1.0)
    """

    def __init__(self, job: Job, previews: bool = False):
        self._job = job
        self._previews = previews
        self._event = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def __enter__(self) -> "Watch":
        self._job.listeners.append(self._notify)
        if self._previews:
            self._job.watchers += 1
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._job.listeners.remove(self._notify)
        if self._previews:
            self._job.watchers -= 1

    async def wait(self, seconds: float) -> None:
        """Until the job has changed since the last call, or so long."""
        try:
            await asyncio.wait_for(self._event.wait(), seconds)
        except asyncio.TimeoutError:
            return
        self._event.clear()

    def _notify(self) -> None:
        """In the engine's thread."""
        if not self._event.is_set():
            self._loop.call_soon_threadsafe(self._event.set)


class StreamPlaces:
    """A dependency of routes that send streams: no more than so many at a time."""

    def __init__(self, most: int):
        self._most = most
        self._taken = 0

    async def __call__(self) -> AsyncIterator[None]:
        """Holds a place until the stream has ended. Raises Refusal where there is none."""
        if self._taken >= self._most:
            raise Refusal(
                429,
                f"{self._taken} clients listen to events already",
                RATE_LIMIT,
                code="streams_full",
                retry_after=RETRY_SECONDS,
            )
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1


async def end_of(job: Job, engine: Engine, request: Request) -> None:
    """Wait until a job has ended. Raises Refusal where it has failed or was cancelled.

    A client that goes takes its job with it.
    """
    with Watch(job) as watch:
        while not job.has_ended:
            await watch.wait(LOOK_AT_CLIENT)
            if not job.has_ended and await request.is_disconnected():
                engine.cancel(job)
    check_success(job)


def check_success(job: Job) -> None:
    """Raise the Refusal that says why an ended job has no images."""
    if job.error is not None:
        raise job.error
    if job.status == CANCELLED:
        raise Refusal(409, "the job was cancelled", code="cancelled")
