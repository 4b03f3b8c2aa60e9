"""The engine: jobs in, images out, by network calls that many jobs share.

One thread computes. In each turn a lane (the jobs with the same weights and image size) makes one
step (stepping.py): choose images (batch.py), one network call for all of them, one step on. Lanes
take turns in such a way that large images do not starve small ones (rotation.py); within a lane
each job gets the same share of the rows.
"""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Sequence

from utils.devices import Precision
from utils.errors import is_out_of_memory
from utils.serving.finishing import Finisher, mask_name
from utils.serving.jobs import CANCELLED, FAILED, QUEUED, Client, Job, JobTable
from utils.serving.limits import Limits
from utils.serving.models import LoadFunction, ModelCache, ModelKey, model_key
from utils.serving.refusal import RATE_LIMIT, SERVER_ERROR, TIMEOUT, UNAVAILABLE, Refusal
from utils.serving.requests import GenerationRequest
from utils.serving.results import ResultStore
from utils.serving.rotation import Rotation
from utils.serving.statistics import Statistics
from utils.serving.stepping import Stepper
from utils.serving.weights import load_diffusion

MOST_ACTIVE_JOBS = 32  # that share network calls; the others wait in the queue
IDLE_SECONDS = 0.5  # after which an idle engine looks at deadlines
LONGEST_RETRY = 600  # seconds
BROKEN_AFTER = 3  # steps one after the other in which no image could be moved on
BROKEN_SECONDS = 60.0  # after which it is tried again: the jobs may have been at fault
PATIENCE = 5.0  # seconds that a job waits for the memory of other networks before it comes first

logger = logging.getLogger("serve")


class Engine:
    """Makes images for jobs, until `stop`. All public methods may be called from any thread."""

    def __init__(
        self,
        precision: Precision,
        limits: Limits,
        name: str = "",
        load: LoadFunction = load_diffusion,
    ):
        self.precision = precision
        self.limits = limits
        self.statistics = Statistics()
        self.results = ResultStore(limits.keep_bytes)
        self.jobs = JobTable(name, limits.keep_jobs, limits.keep_seconds, self.results.forget)
        self._finisher = Finisher(self.jobs, self.results, precision, self._end)
        self._wake = threading.Condition()
        self._has_news = False  # for the engine's thread
        self._queue: deque[Job] = deque()
        self._is_draining = False
        self._is_ending = False
        # Of the engine's thread alone
        self._models = ModelCache(load, precision, limits.max_weights, self._tell)
        self._rotation = Rotation(precision)
        self._stepper = Stepper(self.jobs, self._finisher, self.statistics, self._fail)
        self._order = 0
        self._failed_steps = 0
        self._last_failure = 0.0
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    # --- For all threads ---

    def start(self) -> None:
        self._thread.start()

    @property
    def is_ready(self) -> bool:
        """Whether it takes new jobs, and can make images as far as is known."""
        has_failed = self._failed_steps >= BROKEN_AFTER
        is_broken = has_failed and time.monotonic() - self._last_failure < BROKEN_SECONDS
        return self._thread.is_alive() and not self._is_draining and not is_broken

    @property
    def is_ending(self) -> bool:
        """Whether `stop` has been called."""
        return self._is_ending

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
        self._tell()
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
            return self.results.get(job, str(place))
        data = job.images[place]
        assert data is not None
        return data

    def mask(self, job: Job, place: int) -> bytes:
        """The label map of an image of a completed job, a PNG. Raises OSError where it has just
        expired, or never was.
        """
        return self.results.get(job, mask_name(place))

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

    def stop(self, patience: float | None = None) -> None:
        """End the threads. Jobs that are not finished fail. A step that is being made may take so
        many seconds longer; None: as long as it takes.
        """
        self.drain(0.0)
        self._is_ending = True
        self._tell()
        if self._thread.is_alive():
            self._thread.join(patience)
        self._finisher.close(patience)
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
            self._tell()

    def _tell(self) -> None:
        """Wake the engine's thread: something has come or changed."""
        with self._wake:
            self._has_news = True
            self._wake.notify_all()

    # --- The engine's thread ---

    def _run(self) -> None:
        while not self._is_ending:
            if not self._turn():
                self._wait_for_news()

    def _wait_for_news(self) -> None:
        with self._wake:
            if not self._has_news:
                self._wake.wait(IDLE_SECONDS)
            self._has_news = False

    def _turn(self) -> bool:
        """Whatever has come, then one step of one lane; False: there was none to make."""
        self._drop_ended()
        self._take_loaded()
        self._admit()
        lane = self._rotation.next()
        if lane is None:
            return False
        start = time.perf_counter()
        try:
            has_moved = self._stepper.step(lane)
        except Exception as error:
            # Not even the images one by one could be tried, as where the network cannot be called
            # at all: a server must outlive that.
            logger.exception("a step failed; the jobs that shared it are given up")
            has_moved = False
            for share in tuple(lane.shares.values()):
                self._fail(share.job, error)
        self._failed_steps = 0 if has_moved else self._failed_steps + 1
        if not has_moved:
            self._last_failure = time.monotonic()
        self._rotation.used(lane, time.perf_counter() - start)
        return True

    def _drop_ended(self) -> None:
        """Remove jobs that have been cancelled, and end those that have taken too long."""
        oldest = time.time() - self.limits.deadline
        for job in self.jobs.under_way():
            if job.created < oldest:
                message = f"not finished within {self.limits.deadline:g} seconds"
                self._end(job, FAILED, Refusal(504, message, TIMEOUT, code="deadline"))
        for lane in self._rotation:
            self._stepper.drop_ended(lane)

    def _take_loaded(self) -> None:
        """Networks that have been loaded. Where one could not be, its jobs fail."""
        failed = self._models.take_loaded()
        if not failed:
            return
        with self._wake:
            waiting = [job for job in self._queue if model_key(job) in failed]
        for job in waiting:
            message = f"the weight {job.request.weight.name} cannot be loaded"
            self._end(job, FAILED, Refusal(500, message, SERVER_ERROR, "weight"))

    def _admit(self) -> None:
        """Jobs from the queue into lanes, in their order, as far as there is room and their weights
        are loaded. Where one has waited for the memory of networks that are in use, those behind it
        wait that need the one of them with the fewest jobs: else they would keep it in use for
        ever.
        """
        with self._wake:
            self._queue = deque(job for job in self._queue if not job.has_ended)
            waiting = list(self._queue)
        if not waiting:
            return
        active = len(self._rotation.jobs)
        left = []
        to_be_left: ModelKey | None = None  # the network that is to make room
        for job in waiting:
            model = None
            if active < MOST_ACTIVE_JOBS and model_key(job) != to_be_left:
                model = self._models.get(job, self._rotation.models_in_use())
                is_stuck = model is None and not self._models.is_loading(job)
                if is_stuck and to_be_left is None and time.time() - job.created > PATIENCE:
                    to_be_left = self._rotation.least_used_model()
            if model is None:
                left.append(job)
                continue
            self._order += 1
            active += 1
            try:
                self._rotation.lane_of(job, model).add(job, self._order)
            except Exception as error:
                self._fail(job, error)
                continue
            self._stepper.states.add(job)
        with self._wake:
            new = list(self._queue)[len(waiting) :]
            self._queue = deque([*left, *new])
        self._rotation.forget_models(self._models.all())

    def _fail(self, job: Job, error: Exception) -> None:
        logger.error("job %s failed: %s: %s", job.id, type(error).__name__, error)
        message = "the network failed at this job"
        if is_out_of_memory(error):
            message = "one image of this size is more than the memory of the server"
        self._end(job, FAILED, Refusal(500, message, SERVER_ERROR))


def _calls(request: GenerationRequest) -> int:
    """Network calls of each image: PLMS makes one more than steps."""
    steps = request.steps
    return steps + 1 if request.sampling.sampler == "plms" and steps > 1 else steps
