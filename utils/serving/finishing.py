"""From the pixels of finished images to files: enlarged where asked for, encoded, kept.

A thread of its own does it, so that the network's next call does not wait.
"""

import io
import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from utils.devices import Precision
from utils.errors import UserError
from utils.pictures import (
    FRAME_MILLISECONDS,
    LAST_FRAME_MILLISECONDS,
    encoded_image,
    for_format,
    to_picture,
)
from utils.serving.jobs import COMPLETED, FAILED, Job, JobTable
from utils.serving.refusal import SERVER_ERROR, Refusal
from utils.serving.requests import FILM_FORMAT
from utils.serving.results import ResultStore
from utils.serving.weights import Weight, load_upscaler
from utils.upscaling import Upscaler

MOST_UPSCALERS = 4  # in memory
TURN = 4  # images of a job, after which it is another one's turn: upscalers are not loaded for each

logger = logging.getLogger("serve")


@dataclass
class Finished:
    """An image on its way to a file."""

    job: Job
    place: int
    pixels: Tensor  # (C,H,W) uint8
    settings: dict  # for the text of a PNG
    mask: Image.Image | None = None  # a label map that was made with it


class Finisher:
    """Takes finished images, a few of each job in turn, so that who has many enlarged holds up
    nobody else; ends each job with its last one.
    """

    def __init__(
        self,
        jobs: JobTable,
        results: ResultStore,
        precision: Precision,
        ended: Callable[[Job, str, Refusal | None], None],
    ):
        self._jobs = jobs
        self._results = results
        self._precision = precision
        self._ended = ended
        self._wake = threading.Condition()
        self._waiting: OrderedDict[str, deque[Finished]] = OrderedDict()  # by job
        self._of_this_turn = 0  # images of the first job that have been taken
        self._is_closing = False
        self._upscalers: OrderedDict[Weight, Upscaler] = OrderedDict()
        self._thread = threading.Thread(target=self._run, name="finishing", daemon=True)
        self._thread.start()

    def put(self, finished: Finished) -> None:
        with self._wake:
            self._waiting.setdefault(finished.job.id, deque()).append(finished)
            self._wake.notify()

    def close(self, patience: float | None = None) -> None:
        """Finish what has been put, then end the thread; wait for it so many seconds, or (None) as
        long as it takes.
        """
        with self._wake:
            self._is_closing = True
            self._wake.notify()
        self._thread.join(patience)

    def _next(self) -> Finished | None:
        """Waits for it; None: there will be none."""
        with self._wake:
            while not self._waiting:
                if self._is_closing:
                    return None
                self._wake.wait()
            job_id, images = next(iter(self._waiting.items()))
            finished = images.popleft()
            self._of_this_turn += 1
            if not images:
                del self._waiting[job_id]
                self._of_this_turn = 0
            elif self._of_this_turn >= TURN:
                self._waiting.move_to_end(job_id)
                self._of_this_turn = 0
            return finished

    def _run(self) -> None:
        while True:
            finished = self._next()
            if finished is None:
                return
            if finished.job.has_ended:
                continue
            try:
                self._finish(finished)
            except Exception as error:
                self._fail(finished.job, error)

    def _finish(self, finished: Finished) -> None:
        job = finished.job
        data = self._encoded(finished)
        if job.is_kept:
            room = self._jobs.expire_oldest
            self._results.put(job, str(finished.place), data, room)
            if finished.mask is not None:
                mask = encoded_image(finished.mask, ".png", finished.settings)
                self._results.put(job, mask_name(finished.place), mask, room)
        else:
            job.images[finished.place] = data
        job.images_done += 1
        if job.images_done == job.request.count:
            self._ended(job, COMPLETED, None)

    def _fail(self, job: Job, error: Exception) -> None:
        logger.error("job %s: its images could not be finished: %s", job.id, error)
        message = "the images could not be encoded"
        if isinstance(error, OSError):
            message = "the images could not be kept: the disk of the server is full or fails"
        elif isinstance(error, UserError):
            message = "the upscaler cannot be used any more"
        self._ended(job, FAILED, Refusal(500, message, SERVER_ERROR))

    def _encoded(self, finished: Finished) -> bytes:
        request = finished.job.request
        pixels = finished.pixels
        settings = finished.settings
        if request.image_format == FILM_FORMAT:
            states = [snapshot.pixels for snapshot in finished.job.snapshots[finished.place]]
            finished.job.snapshots[finished.place].clear()  # nobody else needs them
            return encoded_film([*states, pixels])
        if request.upscaler is not None:
            upscaler = self._upscaler(request.upscaler)
            pixels = upscaler.pixels(pixels[None])[0]
            said = f"{request.upscaler.path.name}, {upscaler.scale} times as large"
            settings = {**settings, "upscaler": said}
        return encoded_image(to_picture(pixels), f".{request.image_format}", settings)

    def _upscaler(self, weight: Weight) -> Upscaler:
        upscaler = self._upscalers.get(weight)
        if upscaler is None:
            upscaler = load_upscaler(weight, self._precision)
            self._upscalers[weight] = upscaler
            if len(self._upscalers) > MOST_UPSCALERS:
                self._upscalers.popitem(last=False)
        self._upscalers.move_to_end(weight)
        return upscaler


def mask_name(place: int) -> str:
    """Under which an image's label map is kept."""
    return f"{place}-mask"


def encoded_film(states: Sequence[Tensor]) -> bytes:
    """States (C,H,W) uint8 of one image -> an animated GIF that ends with the last one."""
    pictures = [for_format(to_picture(state), ".gif") for state in states]
    durations = [FRAME_MILLISECONDS] * (len(pictures) - 1) + [LAST_FRAME_MILLISECONDS]
    buffer = io.BytesIO()
    pictures[0].save(
        buffer,
        "GIF",
        save_all=True,
        append_images=pictures[1:],
        duration=durations,
        loop=0,
    )
    return buffer.getvalue()
