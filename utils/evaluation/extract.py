"""From the images of a folder to their features: decoded in threads, put through a network."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from utils.console import Progress
from utils.data.decode import DECODER_VERSION, Decoded
from utils.data.reading import (
    AHEAD_PER_THREAD,
    LARGEST_POOL,
    ahead,
    available_cores,
    in_mode,
    is_grey,
    try_decode,
    why_unreadable,
)
from utils.errors import UserError
from utils.evaluation.feature_cache import FeatureCache
from utils.evaluation.features import FeatureNetwork
from utils.evaluation.image_folder import ImageFolder

LARGEST_WAITING = 256 * 2**20  # bytes of pixels that wait for others of their size
LARGEST_AHEAD = 2**30  # bytes that images take which are read ahead of their turn
FIRST_LOOK = 4  # images that tell how large the others may be
UNREADABLE = b"unreadable"  # instead of a file's digest


@dataclass(frozen=True)
class Reader:
    """How files become pixels: at their own size, or fitted to one as training does."""

    image_size: tuple[int, int] | None = None
    mode: str = "RGB"  # "L": colours become luma

    def __str__(self) -> str:
        if self.image_size is None:
            return "each image whole, at its own size"
        height, width = self.image_size
        grey = ", in grey" if self.mode == "L" else ""
        return (
            f"each image fitted to {height}x{width} as for training (scaled until it covers that, "
            f"bicubic, cropped at the centre{grey})"
        )

    def read(self, path: Path) -> Decoded | Exception:
        """The pixels (H,W,3) uint8 of a file, or why there are none."""
        found = try_decode(str(path), self.image_size)
        if isinstance(found, Decoded):
            found.pixels = in_mode(found.pixels, self.mode)
        return found


@dataclass
class Facts:
    """What was seen of the images that were read."""

    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)  # (H, W) in the files
    grey: int = 0  # images with three equal channels
    broken: dict[str, str] = field(default_factory=dict)  # name: why

    def add(self, image: Decoded) -> None:
        self.sizes[image.own_size] += 1
        self.grey += is_grey(image.pixels)


@dataclass
class FeatureSet:
    """The features of the readable ones of some images, in the order that was asked for."""

    features: Tensor  # (n,D) float32 on the CPU
    places: np.ndarray  # (n,) int64, in the folder
    facts: Facts
    digests: list[bytes]  # of the files' contents, one for each image asked for
    from_cache: bool = False


def feature_set(
    folder: ImageFolder,
    places: np.ndarray,
    network: FeatureNetwork,
    reader: Reader,
    batch_size: int,
    cache: FeatureCache | None = None,
) -> FeatureSet:
    """The features of the images at `places`. Broken ones are noted and left out.

    With a cache, they come from there where the same contents were seen before, whatever the
    files are called, and go there otherwise.
    """
    digests = content_digests(folder, places)
    key = _key(digests, network, reader)
    kept = cache.load(key, len(places), network.dimension) if cache is not None else None
    if kept is not None and not _can_be_read_now(folder, places[~kept[1]], reader):
        features, is_readable, sizes, grey, reasons = kept
        broken = {
            folder.shown(place): why
            for place, why in zip(places[~is_readable], reasons, strict=True)
        }
        facts = Facts(Counter(dict(sizes)), grey, broken)
        return FeatureSet(features, places[is_readable], facts, digests, from_cache=True)
    features, is_readable, facts = _extract(folder, places, network, reader, batch_size)
    if cache is not None:
        contents = (features, is_readable, list(facts.sizes.items()), facts.grey)
        cache.save(key, (*contents, list(facts.broken.values())))
    return FeatureSet(features, places[is_readable], facts, digests)


def _can_be_read_now(folder: ImageFolder, broken: np.ndarray, reader: Reader) -> bool:
    """Whether any of these images, which could not be read once, can be read: it was not the file
    that was damaged.
    """
    return any(isinstance(reader.read(folder.path(place)), Decoded) for place in broken)


def threads_for(folder: ImageFolder, places: np.ndarray, reader: Reader, copies: int) -> int | None:
    """How many threads may read the images without filling the memory; None for as many as useful.

    copies: the memory of a thread, in multiples of an image's bytes. The first images say how
    large they are.
    """
    largest = 1
    for place in places[:FIRST_LOOK]:
        image = reader.read(folder.path(place))
        if isinstance(image, Decoded):
            largest = max(largest, image.pixels.nbytes)
    most = LARGEST_AHEAD // (largest * copies)
    if most >= LARGEST_POOL:
        return None
    return max(1, min(most, available_cores()))


def content_digests(folder: ImageFolder, places: Sequence[int] | np.ndarray) -> list[bytes]:
    """A digest of the bytes of each file."""
    title = f"{folder.role}: contents"
    digests = []
    with Progress(len(places), title=title, unit="file", leave=False) as progress:
        for digest in ahead(lambda place: _content_digest(folder.path(place)), places):
            digests.append(digest)
            progress.update()
    return digests


def _content_digest(path: Path) -> bytes:
    try:
        return hashlib.sha256(path.read_bytes()).digest()
    except OSError:
        return UNREADABLE


def _key(digests: list[bytes], network: FeatureNetwork, reader: Reader) -> str:
    """A digest of all that decides the features: contents, their order, reading, network."""
    about = (network.digest, reader.image_size, reader.mode, DECODER_VERSION, len(digests))
    digest = hashlib.sha256(repr(about).encode())
    for part in digests:
        digest.update(part)
    return digest.hexdigest()[:32]


def _extract(
    folder: ImageFolder,
    places: np.ndarray,
    network: FeatureNetwork,
    reader: Reader,
    batch_size: int,
) -> tuple[Tensor, np.ndarray, Facts]:
    """Features of the readable images, which of the images these are, and what was seen."""
    facts = Facts()
    rows = torch.empty(len(places), network.dimension)
    is_readable = np.zeros(len(places), bool)
    batches = SameSizeBatches(batch_size)
    title = f"{folder.role}: features"
    with Progress(len(places), title=title, unit="image", leave=False) as progress:

        def put_through(batch: list[tuple[int, np.ndarray]]) -> None:
            pixels = torch.from_numpy(np.stack([image for _, image in batch]))
            pixels = pixels.to(network.device).permute(0, 3, 1, 2).contiguous()
            features = network(pixels).cpu()
            for (row, _), values in zip(batch, features, strict=True):
                rows[row] = values
            progress.update(len(batch))

        threads = threads_for(folder, places, reader, copies=AHEAD_PER_THREAD)
        images = ahead(lambda place: reader.read(folder.path(place)), places, threads)
        for row, image in enumerate(images):
            if isinstance(image, Exception):
                name = folder.names[places[row]]
                facts.broken[folder.shown(places[row])] = why_unreadable(image, name)
                progress.update()
                continue
            facts.add(image)
            is_readable[row] = True
            for batch in batches.add(row, image.pixels):
                put_through(batch)
        for batch in batches.rest():
            put_through(batch)
    features = rows[torch.from_numpy(is_readable)]
    if not bool(features.isfinite().all()):
        raise UserError(f"the features {network.name} of {folder.root} are not finite")
    return features, is_readable, facts


Batch = list[tuple[int, np.ndarray]]  # row, (H,W,3) uint8


class SameSizeBatches:
    """Gathers images of one size into batches, while others of other sizes wait."""

    def __init__(self, batch_size: int, largest_waiting: int = LARGEST_WAITING):
        self.batch_size = batch_size
        self.largest_waiting = largest_waiting
        self._waiting: dict[tuple[int, ...], Batch] = {}
        self._bytes = 0

    def add(self, row: int, pixels: np.ndarray) -> Iterator[Batch]:
        """One more image; yields the batches that are due."""
        self._waiting.setdefault(pixels.shape, []).append((row, pixels))
        self._bytes += pixels.nbytes
        if len(self._waiting[pixels.shape]) >= self.batch_size:
            yield self._take(pixels.shape)
        while self._bytes > self.largest_waiting:
            yield self._take(max(self._waiting, key=self._bytes_of))

    def rest(self) -> Iterator[Batch]:
        for shape in list(self._waiting):
            yield self._take(shape)

    def _bytes_of(self, shape: tuple[int, ...]) -> int:
        return len(self._waiting[shape]) * int(np.prod(shape))

    def _take(self, shape: tuple[int, ...]) -> Batch:
        self._bytes -= self._bytes_of(shape)
        return self._waiting.pop(shape)


def shared_contents(real: FeatureSet, generated: FeatureSet) -> int:
    """How many files of `generated` hold the same bytes as one of `real`."""
    known = set(real.digests) - {UNREADABLE}
    return sum(digest in known for digest in generated.digests)
