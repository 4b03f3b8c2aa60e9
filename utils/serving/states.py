"""States of images on the way: snapshots that jobs ask for, and previews for those who watch."""

import time
from collections.abc import Sequence

from torch import Tensor

from utils.serving.batch import Advanced, ImageTask
from utils.serving.jobs import PREVIEWED, Job, Snapshot
from utils.serving.lane import Lane

LEAST_SECONDS_BETWEEN_PREVIEWS = 0.25
PREVIEW_SHARE = 0.1  # of the time goes into decoding previews, at most


def snapshot_calls(calls: int, count: int) -> frozenset[int]:
    """After which of the network calls 1..calls-1 a state is kept: `count` of them, evenly spread,
    fewer where there are not so many. The last call gives the image itself.
    """
    places = {round(calls * (i + 1) / (count + 1)) for i in range(count)}
    return frozenset(place for place in places if 1 <= place < calls)


class StateKeeper:
    """Decodes what is wanted of a step's results. The engine's thread alone uses it."""

    def __init__(self) -> None:
        self._snapshot_calls: dict[str, frozenset[int]] = {}  # by the job's id
        self._next_preview: dict[str, float] = {}

    def add(self, job: Job) -> None:
        self._snapshot_calls[job.id] = snapshot_calls(job.calls, job.request.snapshots)

    def forget(self, job: Job) -> None:
        self._snapshot_calls.pop(job.id, None)
        self._next_preview.pop(job.id, None)

    def keep(self, lane: Lane, advanced: Advanced) -> None:
        """After a step, when `calls_done` has been counted."""
        tasks = advanced.bundle.tasks
        start = time.perf_counter()
        snapshots = [i for i, task in enumerate(tasks) if self._wants_snapshot(task)]
        previews = [i for i, task in enumerate(tasks) if self._wants_preview(task, start)]
        if not snapshots and not previews:
            return
        of_noise = [i for i in snapshots if tasks[i].job.request.snapshots_of_noise]
        of_estimate = sorted({*snapshots, *previews} - set(of_noise))
        noise = _decoded(lane, advanced.bundle.trajectory.x, of_noise)
        estimates = _decoded(lane, advanced.x0, of_estimate)
        for i in snapshots:
            job, place = tasks[i].job, tasks[i].place
            pixels = noise[i] if i in noise else estimates[i]
            job.snapshots[place].append(Snapshot(job.calls_done[place], pixels))
        pause = (time.perf_counter() - start) / PREVIEW_SHARE
        next_preview = start + max(LEAST_SECONDS_BETWEEN_PREVIEWS, pause)
        for i in previews:
            if i not in estimates:
                continue  # a film shows itself
            job, place = tasks[i].job, tasks[i].place
            job.preview[place] = estimates[i]
            job.preview_step = job.calls_done[place]
            self._next_preview[job.id] = next_preview

    def _wants_snapshot(self, task: ImageTask) -> bool:
        return task.job.calls_done[task.place] in self._snapshot_calls.get(task.job.id, ())

    def _wants_preview(self, task: ImageTask, now: float) -> bool:
        job = task.job
        if job.watchers == 0 or task.place >= PREVIEWED:
            return False
        return now >= self._next_preview.get(job.id, 0.0)


def _decoded(lane: Lane, x: Tensor, places: Sequence[int]) -> dict[int, Tensor]:
    """Place -> pixels (C,H,W) uint8 of these images."""
    if not places:
        return {}
    return dict(zip(places, lane.decode(x[list(places)]), strict=True))
