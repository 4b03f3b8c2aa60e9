"""One step of a lane: a network call for images of many jobs, and what follows from it.

A step is atomic: until it has succeeded for all its images, none has moved on. Where it fails for
all together, each image is tried alone, so that only the jobs fail that must.
"""

import logging
import time
from collections.abc import Callable, Sequence

from utils.errors import is_out_of_memory
from utils.free_memory import give_back_memory
from utils.generation import image_settings
from utils.serving.batch import (
    Advanced,
    Bundle,
    ImageTask,
    advance,
    choose_images,
    regroup,
    singles,
)
from utils.serving.finishing import Finished, Finisher
from utils.serving.jobs import Job, JobTable
from utils.serving.lane import Lane, finished_places
from utils.serving.states import StateKeeper
from utils.serving.statistics import Statistics

FailFunction = Callable[[Job, Exception], None]

logger = logging.getLogger("serve")


class Stepper:
    """Makes steps. The engine's thread alone uses it."""

    def __init__(
        self, jobs: JobTable, finisher: Finisher, statistics: Statistics, fail: FailFunction
    ):
        self.states = StateKeeper()
        self._jobs = jobs
        self._finisher = finisher
        self._statistics = statistics
        self._fail = fail

    def step(self, lane: Lane) -> bool:
        """One step of some images of the lane; False where not one of them could be moved on."""
        budget = lane.budget()
        self.drop_ended(lane)  # to find it out may have taken a while
        if not lane.shares:
            return True
        start = time.perf_counter()
        choice = choose_images(lane.shares.values(), budget)
        try:
            active, parked = regroup(lane.bundles, choice.tasks, lane.start)
        except Exception as error:
            if is_out_of_memory(error) and self._can_shrink(lane, choice.tasks, choice.rows):
                return True
            return self._started_alone(lane, choice.tasks)
        lane.bundles = [*active, *parked]
        try:
            advanced = advance(lane.call, active, lane.loaded.null_label)
        except Exception as error:
            if is_out_of_memory(error) and self._can_shrink(lane, choice.tasks, choice.rows):
                return True
            advanced = self._advanced_alone(lane, active)
        lane.bundles = [*self._moved_on(lane, advanced), *parked]
        self._statistics.network_calls += 1
        self._statistics.rows += choice.rows
        self._statistics.step_seconds += time.perf_counter() - start
        return bool(advanced)

    def drop_ended(self, lane: Lane) -> None:
        """Remove the lane's jobs that have been cancelled or given up."""
        for share in tuple(lane.shares.values()):
            if share.job.has_ended:
                lane.remove(share.job)
                self.states.forget(share.job)

    def _can_shrink(self, lane: Lane, tasks: Sequence[ImageTask], rows: int) -> bool:
        """After running out of memory: whether the step can be tried again with fewer images."""
        self._statistics.out_of_memory += 1
        give_back_memory()
        return len(tasks) > 1 and lane.halve_budget(rows)

    def _started_alone(self, lane: Lane, tasks: Sequence[ImageTask]) -> bool:
        """Start each image on its own that is not under way yet, to be moved on in the next step;
        the jobs of those that cannot begin are ended. False where not one could be started.
        """
        under_way = {task for bundle in lane.bundles for task in bundle.tasks}
        count = len(lane.bundles)
        for task in tasks:
            if task in under_way or task.job.has_ended:
                continue
            try:
                lane.bundles = [*lane.bundles, *lane.start([task])]
            except Exception as error:
                self._fail(task.job, error)
        return len(lane.bundles) > count

    def _advanced_alone(self, lane: Lane, bundles: Sequence[Bundle]) -> list[Advanced]:
        """One step of each image on its own; the jobs of those that fail are ended."""
        self._statistics.failed_calls += 1
        advanced = []
        for single in singles(bundles):
            job = single.tasks[0].job
            if job.has_ended:
                continue
            try:
                advanced += advance(lane.call, [single], lane.loaded.null_label)
            except Exception as error:
                self._fail(job, error)
        return advanced

    def _moved_on(self, lane: Lane, advanced: Sequence[Advanced]) -> list[Bundle]:
        """What follows from a step that has succeeded; the bundles of images that are not done."""
        changed: dict[str, Job] = {}
        left = []
        for each in advanced:
            each.keep_changes()
            for task in each.bundle.tasks:
                self._count_call(lane, task)
                changed[task.job.id] = task.job
            self.states.keep(lane, each)
            finished, others = finished_places(each.bundle)
            if finished:
                self._finish(lane, each.bundle.select(finished))
            if others:
                left.append(each.bundle.select(others) if finished else each.bundle)
        for job in changed.values():
            if not job.has_ended:
                job.changed()
        return left

    def _count_call(self, lane: Lane, task: ImageTask) -> None:
        task.job.calls_done[task.place] += 1
        self._jobs.begin(task.job)
        share = lane.shares.get(task.job.id)
        if share is not None:
            share.served += task.rows

    def _finish(self, lane: Lane, bundle: Bundle) -> None:
        """Images that are done leave the lane."""
        x = bundle.sampler.finished_images(bundle.trajectory)
        for place, task in enumerate(bundle.tasks):
            if task.job.has_ended:
                continue
            image = x[place : place + 1]
            try:
                if not image.isfinite().all():
                    raise ValueError("the network gave numbers that are not finite")
                pixels, mask = lane.decode(image)[0], lane.masks(image)
            except Exception as error:
                self._fail(task.job, error)
                continue
            edit = lane.shares[task.job.id].edit
            if lane.image_done(task):
                self.states.forget(task.job)
            self._statistics.images += 1
            about = {}
            if edit is not None:
                pixels = edit.finish(pixels[None])[0]
                about = edit.about(pixels, task.seed)
            task.job.about[task.place] = about
            settings = {**_settings(lane, task, bundle), **about}
            self._finisher.put(Finished(task.job, task.place, pixels, settings, mask))


def _settings(lane: Lane, task: ImageTask, bundle: Bundle) -> dict:
    """What a PNG says of its image, as one of generate.py does."""
    request = task.job.request
    about: dict = {"seed": task.seed}
    class_name = request.class_of(task.place)
    if class_name is not None:
        about["class"] = class_name
    if request.condition_count > 0:
        about["condition"] = f"number {task.place % request.condition_count}"
    network = lane.network
    settings = image_settings(
        request.sampling, bundle.sampler, network, request.weight.path, request.use_ema
    )
    return {**about, **settings, **request.wishes.settings()}
