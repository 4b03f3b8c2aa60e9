"""A set of images as an autoencoder's latents: each image encoded once per machine.

Kept are mean and standard deviation of each image's posterior, as the network gives them, so that
training can draw from it; where images are mirrored, also those of the mirrored image, since a
mirrored latent is not the latent of the mirror.
"""

import contextlib
import hashlib
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model.codecs import LatentCodec, images_per_call
from model.condition import LatentCondition, LatentLabelCondition
from utils.console import Progress
from utils.data.cache_folder import (
    LATENTS,
    CacheUnavailable,
    default_cache_folder,
    make_private,
    make_room,
)
from utils.data.image_set import ImageSet, stacked_pixels
from utils.data.latent_file import LatentWriter, MappedLatents, Shape, open_latents, row_checksum
from utils.data.locks import FileLock, LocksUnsupported
from utils.errors import ReadError, UserError

# Raise it whenever the same images and the same network would give other latents: it is part of the
# key of the cache.
LATENTS_VERSION = 1
LARGEST_IN_RAM = 2 * 2**30  # bytes that "auto" keeps in memory where the disk fails


@dataclass
class LatentSet:
    """Item i is (moments (views,2,c,h,w) float32, label, i): mean and standard deviation of image
    i, and with two views those of its mirror; or a ReadError.
    """

    images: ImageSet
    moments: np.ndarray | MappedLatents  # (N,views,2,c,h,w) float32
    is_cached: bool = False  # on the disk, before this run
    remarks: list[str] = field(default_factory=list)  # for the plan

    is_decoded = True

    def __post_init__(self) -> None:
        self._is_verified = np.zeros(len(self.images), bool)

    def __len__(self) -> int:
        return len(self.images)

    def name(self, i: int) -> str:
        """The file of image i."""
        return self.images.name(i)

    def __getitem__(self, i: int) -> tuple[Tensor, int | Tensor, int] | ReadError:
        row = np.array(self.moments[i])
        if isinstance(self.moments, MappedLatents) and not self._is_verified[i]:
            if row_checksum(row) != self.moments.checksums[i]:
                with contextlib.suppress(OSError):
                    self.moments.path.unlink()
                return ReadError(
                    f"the cached latents {self.moments.path} are damaged, and have been removed; "
                    "the same command makes them anew (with --resume, if the run has begun)"
                )
            self._is_verified[i] = True
        return torch.from_numpy(row), self.images.label(i), i


@dataclass
class ConditionedLatents:
    """A training set: item i is (moments (views,2,c+k,h,w) float32, label, i), what is stored of an
    image's condition behind its own moments, in the place of the means.
    """

    latents: LatentSet
    conditions: LatentSet | ImageSet  # pictures as latents, or label maps
    condition: LatentCondition

    is_decoded = True

    def __len__(self) -> int:
        return len(self.latents)

    def name(self, i: int) -> str:
        return self.latents.name(i)

    def __getitem__(self, i: int) -> tuple[Tensor, int | Tensor, int] | ReadError:
        image, condition = self.latents[i], self.conditions[i]
        for item in (image, condition):
            if isinstance(item, ReadError):
                return item
        assert not isinstance(image, ReadError) and not isinstance(condition, ReadError)
        return torch.cat([image[0], self._stored(condition[0], len(image[0]))], dim=2), *image[1:]

    def _stored(self, item: Tensor, views: int) -> Tensor:
        """(views,2,k,h,w)"""
        if not isinstance(self.condition, LatentLabelCondition):
            return item
        both = torch.stack([item, item.flip(2)][:views])  # (views,1,H,W) uint8
        shares = self.condition.shares(both)
        return torch.stack([shares, torch.zeros_like(shares)], dim=1).float()


def load_latents(
    images: ImageSet,
    codec: LatentCodec,
    with_mirror: bool,
    cache: str = "auto",
    quiet: bool = False,
    cache_folder: Path | None = None,
) -> LatentSet:
    """The latents of these images, from the cache where they lie there.

    `cache` is "disk" (UserError where that fails), "ram" (in this process), or "auto": on the disk,
    else in memory up to 2 GiB (UserError beyond). Raises ReadError where an image cannot be read.
    """
    shape = shape_of(images, codec, with_mirror)
    if cache == "ram":
        return LatentSet(images, encoded_in_ram(images, codec, shape, quiet))
    folder = cache_folder or default_cache_folder()
    try:
        return _from_disk(images, codec, shape, folder, quiet, is_asked_for=cache == "disk")
    except CacheUnavailable as error:
        why = f"the latents cannot be kept in {folder}: {error}"
    size = 4 * int(np.prod(shape))
    if cache == "disk" or size > LARGEST_IN_RAM:
        raise UserError(
            f"{why}; set XDG_CACHE_HOME to another folder, or pass --cache ram "
            f"({size / 2**20:,.0f} MiB in each process) or none (encoded at each use)"
        )
    found = LatentSet(images, encoded_in_ram(images, codec, shape, quiet))
    found.remarks.append(f"{why}; each process keeps them in memory")
    return found


def are_cached(
    images: ImageSet, codec: LatentCodec, with_mirror: bool, cache_folder: Path | None = None
) -> bool:
    """Whether the latents of these images lie in the cache."""
    shape = shape_of(images, codec, with_mirror)
    return _find(images, codec, shape, cache_folder or default_cache_folder()) is not None


def shape_of(images: ImageSet, codec: LatentCodec, with_mirror: bool) -> Shape:
    """(N,views,2,c,h,w). Raises ValueError for images that the autoencoder does not take."""
    latent = codec.shape(images.image_size, images.channels)
    return (len(images), 2 if with_mirror else 1, 2, *latent)


def encoded_in_ram(images: ImageSet, codec: LatentCodec, shape: Shape, quiet: bool) -> np.ndarray:
    """The moments of all images."""
    moments = np.empty(shape, np.float32)
    rows = encoded(images, codec, shape, quiet)
    for i, row in enumerate(rows):
        moments[i] = row
    return moments


def encoded(
    images: ImageSet,
    codec: LatentCodec,
    shape: Shape,
    quiet: bool,
    report: Callable[[int], None] = lambda done: None,
) -> Iterator[np.ndarray]:
    """The moments of each image, (views,2,c,h,w) float32, in order. `report` is called with the
    number of images that are done. Raises ReadError where an image cannot be read.
    """
    at_once = images_per_call(*images.image_size)
    with encoding_progress(len(images), quiet) as progress:
        for first in range(0, len(images), at_once):
            places = range(first, min(first + at_once, len(images)))
            pixels = stacked_pixels(images, places)
            views = [pixels] if shape[1] == 1 else [pixels, pixels.flip(3)]
            moments = [torch.stack(codec.posterior(view), dim=1) for view in views]
            yield from torch.stack(moments, dim=1).float().cpu().numpy()
            progress.update(len(places))
            report(places.stop)


def encoding_progress(total: int, quiet: bool) -> Progress:
    """How many of the images have been encoded."""
    return Progress(total, title="encoding images", unit="image", leave=False, shown=not quiet)


# --- On the disk ---


def cache_key(images: ImageSet, codec: LatentCodec, shape: Shape) -> str:
    """A digest of all that decides the latents: pixels, in their order, and network."""
    digest = hashlib.sha256(images.checksums.tobytes())
    facts = (LATENTS_VERSION, codec.config["hash"], images.image_size, images.mode, shape)
    digest.update(repr(facts).encode())
    return digest.hexdigest()[:32]


def _find(images: ImageSet, codec: LatentCodec, shape: Shape, folder: Path) -> MappedLatents | None:
    """The latents in their file; None where it is missing."""
    return open_latents(folder / f"{cache_key(images, codec, shape)}{LATENTS}", shape)


def _from_disk(
    images: ImageSet,
    codec: LatentCodec,
    shape: Shape,
    folder: Path,
    quiet: bool,
    is_asked_for: bool,
) -> LatentSet:
    """From the file; made first where it is missing, by one process of the machine."""
    key = cache_key(images, codec, shape)
    path = folder / f"{key}{LATENTS}"
    found = _find(images, codec, shape, folder)
    if found is not None:
        return LatentSet(images, found, is_cached=True)
    try:
        make_private(folder)
        with _turn(folder / f"{key}.lock", len(images), quiet) as lock:
            found = open_latents(path, shape)  # another process may have made it
            if found is None:
                make_room(folder, 4 * int(np.prod(shape)), key, lock is not None, is_asked_for)
                _write(images, codec, shape, path, quiet, lock)
                found = open_latents(path, shape)
    except OSError as error:
        raise CacheUnavailable(error.strerror or str(error)) from None
    if found is None:
        raise CacheUnavailable("what was written cannot be read back")
    return LatentSet(images, found)


@contextlib.contextmanager
def _turn(path: Path, images: int, quiet: bool) -> Iterator[FileLock | None]:
    """Wait until no other process makes these latents, and show how far it is. Yields the lock, or
    None where there are none.
    """
    lock = FileLock(path)
    try:
        with encoding_progress(images, quiet) as progress:

            def while_waiting(note: str) -> None:
                if note.isdigit() and int(note) > progress.done:
                    progress.update(int(note) - progress.done)

            try:
                lock.acquire(while_waiting)
                has_lock = True
            except LocksUnsupported:
                has_lock = False
        yield lock if has_lock else None
    finally:
        lock.close()


def _write(
    images: ImageSet,
    codec: LatentCodec,
    shape: Shape,
    path: Path,
    quiet: bool,
    lock: FileLock | None,
) -> None:
    """Encode into a file of this process alone, then give it the name that all look for."""

    def report(done: int) -> None:
        if lock is not None:
            lock.write_note(str(done))

    part = path.with_name(f"{path.stem}.{secrets.token_hex(4)}.part")
    writer = LatentWriter(part, shape)
    try:
        for row in encoded(images, codec, shape, quiet, report):
            writer.append(row)
        writer.finish()
        writer.close()
        part.replace(path)
    finally:
        with contextlib.suppress(OSError):  # a full disk fails once more here
            writer.close()
        part.unlink(missing_ok=True)
