"""Enlarging images that clients send: one at a time, beside the engine's work."""

import asyncio
import logging
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from utils.devices import Precision
from utils.errors import UserError
from utils.serving.limits import Limits
from utils.serving.pictures import sides_of
from utils.serving.refusal import (
    RATE_LIMIT,
    SERVER_ERROR,
    TIMEOUT,
    UNAVAILABLE,
    Refusal,
    invalid,
)
from utils.serving.weights import Weight, load_upscaler
from utils.upscaling import Upscaler
from utils.upscaling.file import plan_output, write_upscaled
from utils.upscaling.source import read_source

MOST_WAITING = 8
THREADS = MOST_WAITING + 1  # one more refuses whoever finds no place
MOST_UPSCALERS = 2  # in memory
RETRY_SECONDS = 5
LOOK_SECONDS = 0.5  # between two looks of who waits

logger = logging.getLogger("serve")


class Enlarger:
    """Threads may use it. Once `is_ending`, whoever waits or is being served is given up."""

    def __init__(
        self,
        precision: Precision,
        limits: Limits,
        is_ending: Callable[[], bool] = lambda: False,
    ):
        self._precision = precision
        self._limits = limits
        self._is_ending = is_ending
        self._places = threading.BoundedSemaphore(MOST_WAITING)
        self._lock = threading.Lock()
        self._upscalers: OrderedDict[Weight, Upscaler] = OrderedDict()
        # Threads of its own: who waits here must not keep others from asyncio's few.
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="enlarging")

    async def enlarged(self, data: bytes, weight: Weight) -> bytes:
        """The same as `enlarge`, in another thread."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self.enlarge, data, weight)

    def enlarge(self, data: bytes, weight: Weight) -> bytes:
        """An image file -> a PNG of the enlarged image. Raises Refusal: 400 for what is no image
        or is too large, 429 where too many others wait, 504 after the deadline, 503 at the end.
        """
        end = time.monotonic() + self._limits.deadline
        self._check(data)
        if not self._places.acquire(blocking=False):
            message = f"{MOST_WAITING} images wait to be enlarged already"
            raise Refusal(429, message, RATE_LIMIT, code="queue_full", retry_after=RETRY_SECONDS)
        try:
            while not self._lock.acquire(timeout=LOOK_SECONDS):
                self._check_time(end)
            try:
                return self._enlarged(data, self._upscaler(weight), end)
            except UserError as error:
                logger.error("an image could not be enlarged: %s", error)
                message = "the upscaler or the disk of the server fails"
                raise Refusal(500, message, SERVER_ERROR) from None
            finally:
                self._lock.release()
        finally:
            self._places.release()

    def _check(self, data: bytes) -> None:
        """Raise Refusal by the file's head, before its pixels take memory."""
        most = self._limits.max_side
        width, height = sides_of(data, "image")
        if max(width, height) > most:
            raise invalid(
                f"the sides of image are at most {most} pixels, not {height},{width}", "image"
            )

    def _enlarged(self, data: bytes, upscaler: Upscaler, end: float) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "image")
            result = Path(folder, "image.png")
            file.write_bytes(data)
            try:
                source = read_source(file)
            except Exception:
                raise invalid("image is damaged", "image") from None
            output = plan_output(source, upscaler.scale, result, result)
            write_upscaled(source, upscaler, output, lambda rows: self._check_time(end))
            return result.read_bytes()

    def _check_time(self, end: float) -> None:
        """Raise Refusal where there is none left."""
        if self._is_ending():
            raise Refusal(503, "the server is about to end", UNAVAILABLE)
        if time.monotonic() > end:
            message = f"not finished within {self._limits.deadline:g} seconds"
            raise Refusal(504, message, TIMEOUT, code="deadline")

    def _upscaler(self, weight: Weight) -> Upscaler:
        if weight not in self._upscalers:
            self._upscalers[weight] = load_upscaler(weight, self._precision)
            if len(self._upscalers) > MOST_UPSCALERS:
                self._upscalers.popitem(last=False)
        self._upscalers.move_to_end(weight)
        return self._upscalers[weight]
