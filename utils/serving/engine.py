"""The engine: jobs in, images out, by network calls that many jobs share.

One thread computes. In each turn it lets a lane (the jobs with the same weights and image size)
make one step: choose images, one network call for all of them, one step on. Lanes take turns by
deficit round robin in seconds of the device, so that large images do not starve small ones; within
a lane each job gets the same share of the rows. A step is atomic: until it has succeeded for all
images, none has moved on.
"""

import logging
import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence

from utils.devices import Precision
from utils.errors import UserError, is_out_of_memory
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
from utils.serving.jobs import (
    CANCELLED,
    FAILED,
    PREVIEWED,
    QUEUED,
    Client,
    Job,
    JobTable,
    Snapshot,
)
from utils.serving.lane import (
    Lane,
    LaneKey,
    finished_places,
    free_device_memory,
    lane_key,
    snapshot_calls,
)
from utils.serving.limits import Limits
from utils.serving.refusal import RATE_LIMIT, SERVER_ERROR, TIMEOUT, UNAVAILABLE, Refusal
from utils.serving.requests import GenerationRequest
from utils.serving.results import ResultStore
from utils.serving.statistics import Statistics
from utils.serving.weights import LoadedDiffusion, load_diffusion

QUANTUM = 0.05  # seconds of the device for each job of a lane, in each round
MOST_ACTIVE_JOBS = 32  # that share network calls; the others wait in the queue
MOST_LANES = 32  # that are remembered
LEAST_SECONDS_BETWEEN_PREVIEWS = 0.25
PREVIEW_SHARE = 0.1  # of the time goes into decoding previews, at most
IDLE_SECONDS = 0.5  # after which an idle engine looks at deadlines
LONGEST_RETRY = 600  # seconds
BROKEN_AFTER = 3  # steps one after the other in which no image could be moved on

logger = logging.getLogger("serve")

ModelKey = tuple  # (path of the weights, which state of that file, use_ema)


class Engine:
    """Makes images for jobs, until `stop`. All public methods may be called from any thread."""

    def __init__(
        self,
        precision: Precision,
        limits: Limits,
        name: str = "",
        load: Callable[..., LoadedDiffusion] = load_diffusion,
    ):
        self.precision = precision
        self.limits = limits
        self.statistics = Statistics()
        self.results = ResultStore(limits.keep_bytes)
        self.jobs = JobTable(name, limits.keep_jobs, limits.keep_seconds, self.results.forget)
        self._load = load
        self._finisher = Finisher(self.jobs, self.results, precision, self._end)
        self._wake = threading.Condition()
        self._queue: deque[Job] = deque()
        self._is_draining = False
        self._is_ending = False
        self._failed_steps = 0
        # Of the engine's thread alone
        self._order = 0
        self._lanes: OrderedDict[LaneKey, Lane] = OrderedDict()  # the next one first
        self._models: OrderedDict[ModelKey, LoadedDiffusion] = OrderedDict()  # last used last
        self._loading: set[ModelKey] = set()
        self._loaded: deque[tuple[ModelKey, LoadedDiffusion | None]] = deque()
        self._next_preview: dict[str, float] = {}
        self._snapshot_calls: dict[str, frozenset[int]] = {}
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    # --- For all threads ---

    def start(self) -> None:
        self._thread.start()

    @property
    def is_ready(self) -> bool:
        """Whether it takes new jobs, and can make images as far as is known."""
        is_broken = self._failed_steps >= BROKEN_AFTER
        return self._thread.is_alive() and not self._is_draining and not is_broken

    def submit(self, request: GenerationRequest, client: Client, is_kept: bool = True) -> Job:
        """A new job. Raises Refusal: 429 where the queue or the client's share of it is full, 503
        where the server is about to end.
        """
        calls = _calls(request)
        with self._wake:
            try:
                self._check_room(client)
            except Refusal:
                self.statistics.refused += 1
                raise
            job = self.jobs.add(request, client, calls, is_kept)
            self.statistics.submitted += 1
            self._queue.append(job)
            self._wake.notify_all()
        return job

    def cancel(self, job: Job) -> None:
        """The job ends now; a network call that it takes part in has one row for nothing."""
        self._end(job, CANCELLED, None)

    def queue_position(self, job: Job) -> int | None:
        """How many jobs are to begin before this one; None: it has begun or ended."""
        if job.status != QUEUED:
            return None
        waiting = [other for other in self.jobs.under_way() if other.status == QUEUED]
        return waiting.index(job) if job in waiting else None

    def image(self, job: Job, place: int) -> bytes:
        """An encoded image of a completed job. Raises OSError where it has just expired."""
        if job.is_kept:
            return self.results.get(job, place)
        data = job.images[place]
        assert data is not None
        return data

    def drain(self, grace: float) -> None:
        """Take no more jobs; those that wait fail, those under way have `grace` seconds."""
        refusal = Refusal(503, "the server is about to end", UNAVAILABLE)
        with self._wake:
            self._is_draining = True
            waiting = [job for job in self.jobs.under_way() if job.status == QUEUED]
            self._queue.clear()
        for job in waiting:
            self._end(job, FAILED, refusal)
        end = time.monotonic() + grace
        while self.jobs.under_way() and time.monotonic() < end:
            time.sleep(0.02)
        for job in self.jobs.under_way():
            self._end(job, FAILED, refusal)

    def stop(self) -> None:
        """End the threads. Jobs that are not finished fail."""
        self.drain(0.0)
        with self._wake:
            self._is_ending = True
            self._wake.notify_all()
        if self._thread.is_alive():
            self._thread.join()
        self._finisher.close()
        self.results.close()

    def _check_room(self, client: Client) -> None:
        if self._is_draining:
            raise Refusal(503, "the server is about to end", UNAVAILABLE, retry_after=10)
        under_way = self.jobs.under_way()
        if len(under_way) >= self.limits.max_queue:
            raise Refusal(
                429,
                f"the queue is full: {len(under_way)} jobs are under way",
                RATE_LIMIT,
                code="queue_full",
                retry_after=self._seconds_to_room(under_way),
            )
        own = [job for job in under_way if job.client == client]
        if len(own) >= self.limits.max_client_jobs:
            raise Refusal(
                429,
                f"{len(own)} jobs of yours are under way, which is the most at a time",
                RATE_LIMIT,
                code="client_share_full",
                retry_after=self._seconds_to_room(own),
            )

    def _seconds_to_room(self, jobs: Sequence[Job]) -> int:
        """About when the first of these jobs will have ended, in seconds from 1."""
        rate = self.statistics.rows_per_second
        if rate == 0:
            return 1
        rows_left = [(1 - job.progress) * job.calls * job.request.count for job in jobs]
        seconds = min(rows_left) * min(len(jobs), MOST_ACTIVE_JOBS) / rate
        return min(LONGEST_RETRY, max(1, math.ceil(seconds)))

    def _end(self, job: Job, status: str, error: Refusal | None) -> None:
        if self.jobs.end(job, status, error):
            self.statistics.ended[status] += 1
            with self._wake:
                self._wake.notify_all()

    # --- The engine's thread ---

    def _run(self) -> None:
        while not self._is_ending:
            try:
                if not self._turn():
                    with self._wake:
                        if not self._queue and not self._loaded and not self._is_ending:
                            self._wake.wait(IDLE_SECONDS)
            except Exception:
                # No step fails like this; but a server must outlive what nobody thought of.
                logger.exception("the engine failed; its jobs are given up")
                self._give_up()

    def _turn(self) -> bool:
        """Whatever has come, then one step of one lane; False: there was none to make."""
        self._drop_ended()
        self._take_loaded()
        self._admit()
        lane = self._next_lane()
        if lane is None:
            return False
        start = time.perf_counter()
        self._step(lane)
        lane.deficit -= time.perf_counter() - start
        return True

    def _give_up(self) -> None:
        refusal = Refusal(500, "the server failed at this job", SERVER_ERROR)
        self._failed_steps += 1
        for lane in self._lanes.values():
            for share in tuple(lane.shares.values()):
                self._end(share.job, FAILED, refusal)
        self._lanes.clear()

    # --- Jobs come and go ---

    def _drop_ended(self) -> None:
        """Remove jobs that have been cancelled, and end those that have taken too long."""
        oldest = time.time() - self.limits.deadline
        for job in self.jobs.under_way():
            if job.created < oldest:
                message = f"not finished within {self.limits.deadline:g} seconds"
                self._end(job, FAILED, Refusal(504, message, TIMEOUT, code="deadline"))
        for lane in self._lanes.values():
            for share in tuple(lane.shares.values()):
                if share.job.has_ended:
                    lane.remove(share.job)
                    self._forget(share.job)

    def _forget(self, job: Job) -> None:
        self._next_preview.pop(job.id, None)
        self._snapshot_calls.pop(job.id, None)

    def _admit(self) -> None:
        """Jobs from the queue into lanes, in their order, as far as there is room and their weights
        are loaded.
        """
        with self._wake:
            waiting = [job for job in self._queue if not job.has_ended]
            self._queue.clear()
            self._queue.extend(waiting)
        active = sum(len(lane.shares) for lane in self._lanes.values())
        for job in waiting:
            if active >= MOST_ACTIVE_JOBS:
                return
            model = self._model(job)
            if model is None:
                continue
            with self._wake:
                self._queue.remove(job)
            self._order += 1
            self._lane(job, model).add(job, self._order)
            self._snapshot_calls[job.id] = snapshot_calls(job.calls, job.request.snapshots)
            active += 1

    def _model(self, job: Job) -> LoadedDiffusion | None:
        """The job's network; None where it is being loaded, or has to wait for memory."""
        key = _model_key(job)
        if key in self._models:
            self._models.move_to_end(key)
            return self._models[key]
        if key not in self._loading and self._make_room_for_model():
            self._loading.add(key)
            loader = threading.Thread(target=self._load_model, args=(key, job), daemon=True)
            loader.start()
        return None

    def _load_model(self, key: ModelKey, job: Job) -> None:
        """What a loading thread does."""
        model = None
        try:
            model = self._load(job.request.weight, job.request.use_ema, self.precision)
        except UserError as error:
            logger.error("the weight %s cannot be used: %s", job.request.weight.name, error)
        except Exception:
            logger.exception("the weight %s could not be loaded", job.request.weight.name)
        self._loaded.append((key, model))
        with self._wake:
            self._wake.notify_all()

    def _take_loaded(self) -> None:
        while self._loaded:
            key, model = self._loaded.popleft()
            self._loading.discard(key)
            if model is not None:
                self._models[key] = model
                continue
            with self._wake:
                waiting = [job for job in self._queue if _model_key(job) == key]
            for job in waiting:
                name = job.request.weight.name
                message = f"the weight {name} cannot be loaded"
                self._end(job, FAILED, Refusal(500, message, SERVER_ERROR, "weight"))

    def _make_room_for_model(self) -> bool:
        """Whether one more network may be loaded; those that nobody uses make room."""
        idle = [key for key in self._models if not self._is_in_use(key)]
        while idle and len(self._models) + len(self._loading) >= self.limits.max_weights:
            oldest = idle.pop(0)
            del self._models[oldest]
            self._lanes = OrderedDict(
                (key, lane) for key, lane in self._lanes.items() if key[: len(oldest)] != oldest
            )
        return len(self._models) + len(self._loading) < self.limits.max_weights

    def _is_in_use(self, model_key: ModelKey) -> bool:
        return any(
            lane.shares and key[: len(model_key)] == model_key for key, lane in self._lanes.items()
        )

    def _lane(self, job: Job, model: LoadedDiffusion) -> Lane:
        key = lane_key(job)
        if key not in self._lanes:
            idle = [other for other, lane in self._lanes.items() if not lane.shares]
            if idle and len(self._lanes) >= MOST_LANES:
                del self._lanes[idle[0]]
            self._lanes[key] = Lane(model, job.request.image_size, self.precision)
        return self._lanes[key]

    # --- Steps ---

    def _next_lane(self) -> Lane | None:
        """By deficit round robin: the lane whose turn it is, among those that have jobs."""
        if not any(lane.shares for lane in self._lanes.values()):
            return None
        while True:
            key, lane = next(iter(self._lanes.items()))
            if not lane.shares:
                lane.deficit = 0.0
            elif lane.deficit > 0:
                return lane
            else:
                lane.deficit += QUANTUM * len(lane.shares)
                if lane.deficit > 0:
                    return lane
            self._lanes.move_to_end(key)

    def _step(self, lane: Lane) -> None:
        """One step of some images of a lane. Where it fails for all together, each is tried alone,
        so that only the jobs fail that must.
        """
        start = time.perf_counter()
        try:
            choice = choose_images(lane.shares.values(), lane.budget())
            active, parked = regroup(lane.bundles, choice.tasks, lane.start)
        except Exception as error:
            logger.exception("a step could not be prepared")
            self._fail_all(lane, error)
            return
        lane.bundles = [*active, *parked]
        try:
            advanced = advance(lane.call, active, lane.loaded.null_label)
        except Exception as error:
            if is_out_of_memory(error) and self._can_shrink(lane, choice.tasks, choice.rows):
                return
            advanced = self._advanced_alone(lane, active)
        self.statistics.network_calls += 1
        self.statistics.rows += choice.rows
        self._failed_steps = 0 if advanced else self._failed_steps + 1
        lane.bundles = [*parked, *self._moved_on(lane, advanced)]
        self.statistics.step_seconds += time.perf_counter() - start

    def _can_shrink(self, lane: Lane, tasks: Sequence[ImageTask], rows: int) -> bool:
        """After running out of memory: whether the step can be tried again with fewer images."""
        self.statistics.out_of_memory += 1
        free_device_memory()
        return len(tasks) > 1 and lane.halve_budget(rows)

    def _advanced_alone(self, lane: Lane, bundles: Sequence[Bundle]) -> list[Advanced]:
        """One step of each image on its own; the jobs of those that fail are ended."""
        self.statistics.failed_calls += 1
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
            for task in each.bundle.tasks:
                self._count_call(lane, task)
                changed[task.job.id] = task.job
            self._keep_states(lane, each)
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
        job = task.job
        job.calls_done[task.place] += 1
        self.jobs.begin(job)
        share = lane.shares.get(job.id)
        if share is not None:
            share.served += task.rows

    def _finish(self, lane: Lane, bundle: Bundle) -> None:
        """Images that are done leave the lane."""
        x = bundle.sampler.finished_images(bundle.trajectory)
        for place, task in enumerate(bundle.tasks):
            share = lane.shares.get(task.job.id)
            if share is None or task.job.has_ended:
                continue
            try:
                image = x[place : place + 1]
                if not image.isfinite().all():
                    raise ValueError("the network gave numbers that are not finite")
                pixels = lane.decode(image)[0]
            except Exception as error:
                self._fail(task.job, error)
                continue
            share.waiting.remove(task)
            if not share.waiting:
                del lane.shares[task.job.id]
                self._forget(task.job)
            self.statistics.images += 1
            settings = self._settings(lane, task, bundle)
            self._finisher.put(Finished(task.job, task.place, pixels, settings))

    def _settings(self, lane: Lane, task: ImageTask, bundle: Bundle) -> dict:
        """What a PNG says of its image, as one of generate.py does."""
        request = task.job.request
        about: dict = {"seed": task.seed}
        class_name = request.class_of(task.place)
        if class_name is not None:
            about["class"] = class_name
        settings = image_settings(
            request.sampling,
            bundle.sampler,
            lane.loaded.network,
            request.weight.path,
            request.use_ema,
        )
        return {**about, **settings}

    def _fail(self, job: Job, error: Exception) -> None:
        logger.error("job %s failed: %s: %s", job.id, type(error).__name__, error)
        message = "the network failed at this job"
        if is_out_of_memory(error):
            message = "one image of this size is more than the memory of the server"
        self._end(job, FAILED, Refusal(500, message, SERVER_ERROR))

    def _fail_all(self, lane: Lane, error: Exception) -> None:
        for share in tuple(lane.shares.values()):
            self._fail(share.job, error)

    # --- States on the way ---

    def _keep_states(self, lane: Lane, advanced: Advanced) -> None:
        """Snapshots that jobs asked for, and previews for those who watch."""
        bundle = advanced.bundle
        now = time.perf_counter()
        snapshots = [i for i, task in enumerate(bundle.tasks) if self._wants_snapshot(task)]
        previews = [i for i, task in enumerate(bundle.tasks) if self._wants_preview(task, now)]
        if not snapshots and not previews:
            return
        of_noise = [i for i in snapshots if bundle.tasks[i].job.request.snapshots_of_noise]
        estimates = sorted({*snapshots, *previews} - set(of_noise))
        pixels = self._decoded(lane, bundle.trajectory.x, of_noise)
        pixels |= self._decoded(lane, advanced.x0, estimates)
        for i in snapshots:
            job, place = bundle.tasks[i].job, bundle.tasks[i].place
            job.snapshots[place].append(Snapshot(job.calls_done[place], pixels[i]))
        cost = time.perf_counter() - now
        pause = max(LEAST_SECONDS_BETWEEN_PREVIEWS, cost / PREVIEW_SHARE)
        for i in previews:
            job = bundle.tasks[i].job
            job.preview[bundle.tasks[i].place] = pixels[i]
            job.preview_step = job.calls_done[bundle.tasks[i].place]
            self._next_preview[job.id] = now + pause

    def _wants_snapshot(self, task: ImageTask) -> bool:
        wanted = self._snapshot_calls.get(task.job.id, frozenset())
        return task.job.calls_done[task.place] in wanted

    def _wants_preview(self, task: ImageTask, now: float) -> bool:
        job = task.job
        if job.watchers == 0 or task.place >= PREVIEWED:
            return False
        return now >= self._next_preview.get(job.id, 0.0)

    def _decoded(self, lane: Lane, x, places: Sequence[int]) -> dict:
        """Place -> pixels (C,H,W) uint8 of these images."""
        if not places:
            return {}
        return dict(zip(places, lane.decode(x[list(places)]), strict=True))


def _model_key(job: Job) -> ModelKey:
    request = job.request
    return (request.weight.path, request.weight.stamp, request.use_ema)


def _calls(request: GenerationRequest) -> int:
    """Network calls of each image: PLMS makes one more than steps."""
    steps = request.steps
    return steps + 1 if request.sampling.sampler == "plms" and steps > 1 else steps
