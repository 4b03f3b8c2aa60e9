"""Decode the images of a set once per machine, and keep the pixels for the next run.

The cache is a file per set under the user's cache folder, mapped into memory: the pages of a small
set stay in memory like any array, those of a large set come and go, and all processes of a machine
share them. So there is no bound below which a set is kept in memory instead.
"""

import contextlib
import hashlib
import os
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from utils.console import say
from utils.data.cache_file import DiskStore, MappedPixels, open_cache
from utils.data.cache_folder import IMAGES, CacheUnavailable, make_private, make_room
from utils.data.decode import DECODER_VERSION
from utils.data.index import FolderIndex
from utils.data.locks import FileLock, LocksUnsupported
from utils.data.reading import ReadFacts, Store, read_all, reading_progress, try_decode
from utils.errors import UserError
from utils.image_facts import CHANNELS

CACHE_CHOICES = ("auto", "disk", "ram", "none")
LARGEST_IN_RAM = 2 * 2**30  # bytes of a set that "auto" keeps in memory where the disk fails
NOTE_SECONDS = 0.5  # between two notes to those who wait
WAITING_SHOWN_AFTER = 2.0  # seconds


@dataclass
class ReadSet:
    """The facts of a set, and its pixels: an array, a mapped file, or None: decode at each use."""

    facts: ReadFacts
    pixels: np.ndarray | MappedPixels | None
    remarks: list[str] = field(default_factory=list)  # for the plan


@dataclass
class CacheRequest:
    """A set as it is to be decoded."""

    index: FolderIndex
    image_size: tuple[int, int]
    mode: str  # "auto" or one of CHANNELS
    quiet: bool
    folder: Path

    @property
    def largest_size(self) -> int:
        """Bytes that the pixels need at most."""
        height, width = self.image_size
        return len(self.index) * CHANNELS.get(self.mode, 3) * height * width

    def key(self) -> str:
        """A digest of all that decides the pixels: files, transform, decoder."""
        digest = hashlib.sha256()
        place = os.fsencode(os.path.realpath(self.index.root))
        digest.update(repr((place, self.image_size, self.mode, DECODER_VERSION)).encode())
        for part in self.index.names.digest_parts():
            digest.update(part)
        digest.update(self.index.sizes.tobytes())
        digest.update(self.index.times.tobytes())
        return digest.hexdigest()[:32]


def read_set(request: CacheRequest, cache: str) -> ReadSet:
    """The decoded set, from the cache where it lies there.

    "disk": on the disk, UserError where that fails. "ram": in this process. "none": decoded at each
    use. "auto": on the disk, else in memory up to 2 GiB, else none, with a remark.
    """
    if cache not in CACHE_CHOICES:
        raise UserError(f"--cache {cache} is unknown; choose one of {', '.join(CACHE_CHOICES)}")
    if cache == "none":
        return ReadSet(_read_into(request, None), None)
    if cache == "ram":
        return _read_into_ram(request)
    try:
        return _read_from_disk(request, is_asked_for=cache == "disk")
    except CacheUnavailable as error:
        if cache == "disk":
            raise UserError(
                f"--cache disk: the folder {request.folder} cannot be used, {error}; "
                f"pass --cache ram or none, or set XDG_CACHE_HOME to another folder"
            ) from None
        remark = f"not kept on the disk: {request.folder} cannot be used, {error}"
    if request.largest_size <= LARGEST_IN_RAM:
        found = _read_into_ram(request)
        found.remarks.append(f"{remark}; each process keeps the images in memory")
    else:
        found = ReadSet(_read_into(request, None), None)
        found.remarks.append(f"{remark}; the images are decoded again at each use")
    return found


class RamStore:
    """Rows in one block of memory. The system hands out its pages when they are written."""

    def __init__(self, size: int):
        self.block = np.empty(size, np.uint8)

    def write(self, row: int, data: bytes) -> None:
        start = row * len(data)
        self.block[start : start + len(data)] = np.frombuffer(data, np.uint8)

    def read(self, row: int, length: int) -> bytes:
        return self.block[row * length : (row + 1) * length].tobytes()


def _read_into_ram(request: CacheRequest) -> ReadSet:
    store = RamStore(request.largest_size)
    facts = _read_into(request, store)
    shape = (len(facts.places), facts.channels, *request.image_size)
    pixels = store.block[: int(np.prod(shape))].reshape(shape)
    return ReadSet(facts, pixels)


def _read_into(
    request: CacheRequest, store: Store | None, report: Callable[[int], None] = lambda done: None
) -> ReadFacts:
    return read_all(request.index, request.image_size, request.mode, store, request.quiet, report)


# --- On the disk ---


def _read_from_disk(request: CacheRequest, is_asked_for: bool) -> ReadSet:
    """From the cache file; made first where it is missing, by one process of the machine."""
    key = request.key()
    path = request.folder / f"{key}{IMAGES}"
    found = _usable(path, request)
    if found:
        return found
    remarks: list[str] = []
    try:
        make_private(request.folder)
        with _turn(request, key, remarks) as lock:
            found = _usable(path, request)
            if not found:
                make_room(request.folder, request.largest_size, key, lock is not None, is_asked_for)
                found = _build(request, path, key, lock)
    except OSError as error:
        raise CacheUnavailable(error.strerror or str(error)) from None
    found.remarks += remarks
    return found


def _usable(path: Path, request: CacheRequest) -> ReadSet | None:
    """The set in the cache file, if it is whole and no file that was unreadable can be read now."""
    opened = open_cache(path)
    if opened is None:
        return None
    facts, pixels = opened
    for place in facts.unreadable:
        file = os.path.join(request.index.root, request.index.names[place])
        if not isinstance(try_decode(file, request.image_size, request.mode), Exception):
            return None
    with contextlib.suppress(OSError):
        os.utime(path)  # says when it was last used
    return ReadSet(facts, pixels)


@contextlib.contextmanager
def _turn(request: CacheRequest, key: str, remarks: list[str]) -> Iterator[FileLock | None]:
    """Wait until no other process makes this set. Yields the lock, or None without locks."""
    lock = FileLock(request.folder / f"{key}.lock")
    try:
        try:
            _acquire(lock, request)
        except LocksUnsupported as error:
            remarks.append(
                f"{request.folder} is on a file system without locks ({error}): several processes "
                f"may read the images at once"
            )
            yield None
        else:
            yield lock
    finally:
        lock.close()


def _acquire(lock: FileLock, request: CacheRequest) -> None:
    start = time.monotonic()
    has_spoken = False
    with reading_progress(len(request.index), request.quiet) as progress:

        def while_waiting(note: str) -> None:
            nonlocal has_spoken
            if time.monotonic() - start < WAITING_SHOWN_AFTER:
                return
            if not has_spoken:
                has_spoken = True
                if not request.quiet:
                    say(
                        "waiting: another process is reading the images of "
                        f"{request.index.root} into the cache {request.folder}",
                        error=True,
                    )
            if note.isdigit() and int(note) > progress.done:
                progress.update(int(note) - progress.done)

        lock.acquire(while_waiting)


def _build(request: CacheRequest, path: Path, key: str, lock: FileLock | None) -> ReadSet:
    """Decode into a file of this process alone, then give it the name that all look for."""
    part = request.folder / f"{key}.{secrets.token_hex(4)}.part"
    last_note = 0.0

    def report(done: int) -> None:
        nonlocal last_note
        if lock is not None and time.monotonic() - last_note > NOTE_SECONDS:
            last_note = time.monotonic()
            lock.write_note(str(done))

    store = DiskStore(part, request.image_size)
    try:
        facts = _read_into(request, store, report)
        if len(facts.places) == 0:
            return ReadSet(facts, None)
        store.finish(facts)
        store.close()
        os.replace(part, path)
    finally:
        with contextlib.suppress(OSError):  # a full disk fails once more here
            store.close()
        part.unlink(missing_ok=True)
    opened = open_cache(path)
    if opened is None:
        raise CacheUnavailable("what was written cannot be read back")
    return ReadSet(*opened)
