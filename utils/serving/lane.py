"""All jobs with the same weights, image size and guide: they share network calls."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from PIL import Image
from torch import Tensor

from model.codecs import Codec, JointCodec
from model.guidance import NO_LABEL, Autoguided
from model.samplers import BaseDiffusion
from utils.call_memory import memory_of_row
from utils.condition_pictures import in_turn, mask_picture
from utils.devices import Precision
from utils.errors import TooLittleMemory, is_out_of_memory
from utils.free_memory import SHARE_OF_MEMORY, free_memory, give_back_memory
from utils.generation import Beginning, Sampling
from utils.serving.batch import Bundle, ImageTask, JobShare
from utils.serving.jobs import Job
from utils.serving.weights import LoadedDiffusion

LaneKey = tuple  # (path of the weights, state of that file, use_ema, image size, the guide's two)

MOST_ROWS = 64  # of a network call
CALLS_TIMED = 3  # of each number of rows
LONGEST_CALL = 1.0  # seconds: a cancelled job, or one that has just come, waits no longer
VERY_LONG_CALL = 30.0  # seconds, which a first call takes on no device just to begin
# A larger call is not worth it where it makes this much fewer rows a second.
LEAST_THROUGHPUT = 0.7


def lane_key(job: Job) -> LaneKey:
    """Which lane a job belongs to."""
    request = job.request
    weight = request.weight
    sampling = request.sampling
    guide = (sampling.guide_scale, sampling.guide_labels)
    return (weight.path, weight.stamp, request.use_ema, request.image_size, *guide)


@dataclass(frozen=True)
class JobMaker:
    """What makes a job's images: see `utils.editing.Maker`."""

    sampler: BaseDiffusion
    codec: Codec
    image_size: tuple[int, int]
    channels: int


class Lane:
    """Jobs that share network calls, with all their state. The engine's thread alone uses it."""

    def __init__(
        self,
        loaded: LoadedDiffusion,
        image_size: tuple[int, int],
        precision: Precision,
        guide_scale: float = 1.0,
        guide_labels: bool = True,
    ):
        self.loaded = loaded
        self.network = loaded.network
        if guide_scale != 1 and loaded.guide is not None:
            self.network = Autoguided(loaded.network, loaded.guide, guide_scale, guide_labels)
        self.image_size = image_size
        self.shares: dict[str, JobShare] = {}  # by the job's id
        self.bundles: list[Bundle] = []
        self.deficit = 0.0  # seconds of the device that it may still use in this round
        self._precision = precision
        self._samplers: dict[Sampling, BaseDiffusion] = {}
        self._shape = loaded.codec.shape(image_size, loaded.channels)
        self._budget: int | None = None
        self._is_cut_short = False  # the budget, by memory
        self._memory_of_row: float | None = None
        self._fitting: float | None = None

    # --- Jobs ---

    def add(self, job: Job, order: int) -> None:
        """From the next step on the job takes part, with what the others have had as its start."""
        request = job.request
        edit, conditions = request.edit, request.conditions
        is_steered = conditions is not None
        tasks = [ImageTask(job, place, is_steered) for place in range(request.count)]
        if self._is_cut_short and not self.shares:
            self._forget_memory()
        self._check_memory(tasks[0].rows)
        served = min((share.served for share in self.shares.values()), default=0.0)
        sampler = self._sampler(request.sampling)
        if edit is not None:
            sampler = edit.sampler_of(sampler)
        job.calls = len(sampler.calls()) if edit is None else edit.calls(sampler)
        self.shares[job.id] = JobShare(job, order, sampler, edit, conditions, tasks, served)

    def remove(self, job: Job) -> None:
        """The job, and the state of its images."""
        self.shares.pop(job.id, None)
        kept = []
        for bundle in self.bundles:
            places = [i for i, task in enumerate(bundle.tasks) if task.job is not job]
            if places:
                kept.append(bundle if len(places) == len(bundle.tasks) else bundle.select(places))
        self.bundles = kept

    def image_done(self, task: ImageTask) -> bool:
        """An image of a job is finished; whether it was its last one, and the job leaves."""
        share = self.shares[task.job.id]
        share.waiting.remove(task)
        if share.waiting:
            return False
        del self.shares[task.job.id]
        return True

    def start(self, tasks: list[ImageTask]) -> list[Bundle]:
        """Images before their first call: a bundle for each job, or for each image where it begins
        with more than noise.
        """
        by_job: dict[str, list[ImageTask]] = {}
        for task in tasks:
            by_job.setdefault(task.job.id, []).append(task)
        bundles = []
        for own in by_job.values():
            is_edited = self.shares[own[0].job.id].edit is not None
            for part in [[task] for task in own] if is_edited else [own]:
                bundles.append(self._begun(part))
        return bundles

    def _begun(self, tasks: list[ImageTask]) -> Bundle:
        """Images of one job before their first call."""
        share = self.shares[tasks[0].job.id]
        sampler = share.sampler
        seeds = [task.seed for task in tasks]
        begin = Beginning(None)
        if share.edit is not None:
            maker = JobMaker(sampler, self.loaded.codec, self.image_size, self.loaded.channels)
            begin = share.edit.begin(maker, seeds)
            tasks[0].change = begin.change
        labels = [task.label for task in tasks]
        has_labels = labels[0] != NO_LABEL
        null_label = self.loaded.null_label if has_labels else None
        channels, height, width = self._shape
        trajectory = sampler.start(
            len(tasks),
            (height, width),
            channels,
            labels if has_labels else None,
            share.job.request.sampling.cfg_scale,
            seeds,
            begin.x_T,
            begin.first_call,
            null_label=NO_LABEL if null_label is None else null_label,
            condition=self._conditions(share, tasks),
        )
        return Bundle(sampler, trajectory, tasks)

    def _conditions(self, share: JobShare, tasks: list[ImageTask]) -> Tensor | None:
        """What goes into the network behind x."""
        pixels, condition = share.conditions, self.loaded.condition
        if pixels is None or condition is None:
            return None
        chosen = in_turn(pixels, [task.place for task in tasks])
        return condition.encode(chosen.to(self._precision.device))

    def _sampler(self, sampling: Sampling) -> BaseDiffusion:
        sampler = self._samplers.get(sampling)
        if sampler is None:
            sampler = sampling.build(
                self.loaded.process, self._precision.device, self.loaded.codec.is_bounded
            )
            if len(self._samplers) >= 64:  # clients choose steps and scales as they like
                self._samplers.clear()
            self._samplers[sampling] = sampler
        return sampler

    # --- The network ---

    def call(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        """The network, as generate.py calls it."""
        with torch.no_grad(), self._precision.autocast():
            return self.network(x, t, labels)

    def decode(self, x: Tensor) -> Tensor:
        """What the diffusion sees -> (B,C,H,W) uint8, on the CPU."""
        return self.loaded.codec.decode(x).cpu()

    def masks(self, x: Tensor) -> Image.Image | None:
        """The label map of an image (1,C,H,W) that comes with one."""
        codec = self.loaded.codec
        if not isinstance(codec, JointCodec):
            return None
        return mask_picture(codec, codec.decode_masks(x)[0].cpu())

    def budget(self) -> int:
        """How many rows a call takes; measured at the first time."""
        if self._budget is None:
            self._budget = measured_budget(self._timed_call)
        return self._budget

    def _check_memory(self, rows: int) -> None:
        """Raise TooLittleMemory where an image of so many rows is more than all the memory that is
        free now: a system that lends more than it has would end the process.
        """
        if rows > self._rows_that_fit() / SHARE_OF_MEMORY:
            self._forget_memory()  # perhaps another program has ended
        if rows > self._rows_that_fit() / SHARE_OF_MEMORY:
            raise TooLittleMemory("an image of this size")

    def _rows_that_fit(self) -> float:
        """How many rows of a call fit into memory, as it was when somebody looked last."""
        if self._memory_of_row is None:
            config = cast(dict, self.loaded.network.config)
            self._memory_of_row = memory_of_row(config, self._shape[1:], self._precision.dtype)
        if self._fitting is None:
            give_back_memory()
            usable = SHARE_OF_MEMORY * free_memory(self._precision.device)
            self._fitting = usable / self._memory_of_row
        return self._fitting

    def _forget_memory(self) -> None:
        """Look again at what is free, and with it at how large calls can be."""
        self._fitting = self._budget = None
        self._is_cut_short = False

    def halve_budget(self, rows: int) -> bool:
        """After a call of so many rows ran out of memory. False: no smaller call is possible."""
        if rows <= 1:
            return False
        self._budget = rows // 2
        return True

    def _timed_call(self, rows: int) -> float:
        """Seconds that a call of so many rows takes. Raises TooLittleMemory for more than one that
        do not fit.
        """
        if rows > max(1, self._rows_that_fit()):
            self._is_cut_short = True
            raise TooLittleMemory(f"{rows} rows")
        device = self._precision.device
        channels, *size = self._shape
        if self.loaded.condition is not None:
            channels += self.loaded.condition.channels
        x = torch.zeros(rows, channels, *size, device=device)
        t = torch.zeros(rows, dtype=torch.long, device=device)
        labels = None
        if self.loaded.null_label is not None:
            labels = torch.full((rows,), self.loaded.null_label, device=device)
        start = time.perf_counter()
        self.call(x, t, labels).cpu()  # which waits for the device
        return time.perf_counter() - start


def measured_budget(timed_call: Callable[[int], float]) -> int:
    """The most rows of a call that is not too long, fits into memory and is worth its size.

    The rows are doubled from 1 on. Of three calls of each size the shortest counts: the first one
    also prepares the device, and others may wait for what else the machine does.
    """
    rows = 1
    best = 0.0  # rows a second
    while True:
        try:
            seconds = _shortest_call(timed_call, rows)
        except Exception as error:
            if not is_out_of_memory(error) or rows == 1:
                raise
            give_back_memory()
            return rows // 2
        best = max(best, rows / seconds)
        is_slower = rows / seconds < LEAST_THROUGHPUT * best
        if is_slower and rows > 1:
            return rows // 2
        if 2 * rows > MOST_ROWS or 2 * seconds > LONGEST_CALL:
            return rows
        rows *= 2


def _shortest_call(timed_call: Callable[[int], float], rows: int) -> float:
    """Seconds of the shortest of some calls; of long ones there are two, of very long ones one."""
    seconds = [timed_call(rows)]
    if seconds[0] > VERY_LONG_CALL:
        return seconds[0]
    seconds.append(timed_call(rows))
    while len(seconds) < CALLS_TIMED and min(seconds) < LONGEST_CALL:
        seconds.append(timed_call(rows))
    return min(seconds)


def finished_places(bundle: Bundle) -> tuple[list[int], list[int]]:
    """The places of the images that are done, and of those that are not."""
    done = bundle.trajectory.done.tolist()
    finished = [i for i, is_done in enumerate(done) if is_done]
    others = [i for i, is_done in enumerate(done) if not is_done]
    return finished, others
