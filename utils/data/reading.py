"""Decode all images of a set once: on all cores, with bounded memory, into a store."""

import io
import os
import zlib
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import numpy as np
from PIL import Image

from utils.console import Progress
from utils.data.decode import Decoded, decode
from utils.data.index import FolderIndex
from utils.image_facts import CHANNELS, USUAL_MODES

AHEAD_PER_THREAD = 4  # decodes that are finished or under way before their turn
LARGEST_POOL = 32

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass
class ReadFacts:
    """What was found when the images of an index were read."""

    mode: str  # "L": one channel; "RGB": three
    places: np.ndarray  # (n,) int64: the readable images, as places in the index
    checksums: np.ndarray  # (n,) uint32 of the pixels of each
    broken: dict[int, str] = field(default_factory=dict)  # place in the index: why
    unreadable: list[int] = field(default_factory=list)  # those of them that may be readable later
    images_16_bits: int = 0
    brightest_16_bits: float = 0.0  # the largest sample of these, as a part of the range

    @property
    def channels(self) -> int:
        return CHANNELS[self.mode]


class Store(Protocol):
    """Where decoded pixels are kept: rows of equal length that follow each other."""

    def write(self, row: int, data: bytes) -> None: ...
    def read(self, row: int, length: int) -> bytes: ...


class PixelWriter:
    """Writes images into a store, CHW; in the modes L and RGB, grey ones with one channel until a
    coloured one comes.
    """

    def __init__(self, store: Store | None, mode: str):
        """`mode` is "auto" or one of CHANNELS."""
        self.store = store
        self.mode = mode
        self.is_grey = mode in ("auto", "L")
        self.rows = 0

    def append(self, pixels: np.ndarray) -> None:
        """(H,W,3) uint8, or the planes of the mode."""
        if self.is_grey and not is_grey(pixels):
            self._widen(pixels[..., 0].size)
        if self.store is not None:
            shown = pixels[..., :1] if self.is_grey else pixels
            self.store.write(self.rows, shown.transpose(2, 0, 1).tobytes())
        self.rows += 1

    @property
    def written_mode(self) -> str:
        """What the images have become."""
        if self.mode not in ("auto", *USUAL_MODES):
            return self.mode
        return "L" if self.is_grey else "RGB"

    def _widen(self, length: int) -> None:
        """From one channel to three, in place: the last image first, so none is overwritten."""
        self.is_grey = False
        if self.store is None:
            return
        for row in reversed(range(self.rows)):
            self.store.write(row, self.store.read(row, length) * 3)


def is_grey(pixels: np.ndarray) -> bool:
    """Whether the three channels of (H,W,3) are equal everywhere."""
    return bool((pixels[..., :1] == pixels).all())


def in_mode(pixels: np.ndarray, mode: str) -> np.ndarray:
    """(H,W,3) -> (H,W,3): for mode "L" the luma of ITU-R 601 in all three channels. The planes of
    other modes stay as they are.
    """
    if mode != "L" or is_grey(pixels):
        return pixels
    luma = np.asarray(Image.fromarray(pixels).convert("L"))
    return np.repeat(luma[..., None], 3, axis=2)


def checksum(pixels: np.ndarray) -> int:
    """Of (H,W,3) uint8. Old checkpoints hold digests of these numbers: it stays as it is."""
    return zlib.crc32(pixels.tobytes())


def read_all(
    index: FolderIndex,
    image_size: tuple[int, int],
    mode: str,
    store: Store | None,
    quiet: bool,
    report: Callable[[int], None] = lambda done: None,
) -> ReadFacts:
    """Decode every image of the index into the store. Broken images are noted and left out.

    `mode` is "auto" (grey if all images are) or one of CHANNELS. `report` is called with the number
    of images that are done.
    """
    writer = PixelWriter(store, mode)
    places, checksums = array("q"), array("L")
    facts = ReadFacts(mode, np.empty(0), np.empty(0))

    def decode_place(place: int) -> Decoded | Exception:
        path = os.path.join(index.root, index.names[place])
        return try_decode(path, image_size, mode)

    with reading_progress(len(index), quiet) as progress:
        for place, result in enumerate(ahead(decode_place, range(len(index)))):
            if isinstance(result, Exception):
                facts.broken[place] = why_unreadable(result, index.names[place])
                if isinstance(result, OSError) and result.errno is not None:
                    facts.unreadable.append(place)
            else:
                pixels = in_mode(result.pixels, mode)
                writer.append(pixels)
                places.append(place)
                checksums.append(checksum(pixels))
                if result.has_16_bits:
                    facts.images_16_bits += 1
                    facts.brightest_16_bits = max(facts.brightest_16_bits, result.brightest)
            progress.update()
            report(place + 1)
    facts.mode = writer.written_mode
    facts.places = np.array(places, np.int64)
    facts.checksums = np.array(checksums, np.uint32)
    return facts


def reading_progress(total: int, quiet: bool) -> Progress:
    """How many of the images have been read."""
    return Progress(total, title="reading images", unit="image", shown=not quiet, leave=False)


def ahead(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int | None = None
) -> Iterator[Result]:
    """`map` on several threads, in order. Not more than a few results wait for their reader."""
    threads = threads or min(LARGEST_POOL, available_cores())
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) >= AHEAD_PER_THREAD * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def available_cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def try_decode(
    source: str | io.BytesIO, image_size: tuple[int, int] | None, mode: str = "RGB"
) -> Decoded | Exception:
    """The pixels in a mode, see `decode`, or why there are none. Pillow's plugins raise what they
    like on damaged files.

    Without a size, the image keeps its own.
    """
    try:
        return decode(source, image_size, mode)
    except MemoryError:  # not the image's fault
        raise
    except Exception as error:
        return error


def why_unreadable(error: Exception, name: str) -> str:
    """Why a file could not be decoded, without the folders before its name."""
    if isinstance(error, OSError) and error.errno is not None:
        return f"[Errno {error.errno}] {error.strerror}: '{os.path.basename(name)}'"
    return str(error) or type(error).__name__
