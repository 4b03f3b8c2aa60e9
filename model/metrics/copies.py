"""Which training image is a generated image a copy of? The nearest one, or all within a radius.

No network is involved: `copy_distance` says what is measured, `copy_threshold` from which distance
on an image counts as a copy.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from model.metrics.copy_distance import (
    Geometry,
    bound_slack,
    copy_distances,
    lower_bounds,
    prepare,
    thumbnails_of,
)

NEAR_COPY = 0.06  # of the range: images this close to each other are near copies
CANDIDATES = 64  # training images whose distance is measured, per query

PREPARED_AT_ONCE = 512  # images, of which there are fewer where they are large
PREPARED_NUMBERS = 2**22  # of all of them: 16 MB as floats
QUERIES_AT_ONCE = 16
COMPARED_AT_ONCE = 4096  # training images per query: what a processor's cache holds
MEASURED_AT_ONCE = 256  # pairs of images


@dataclass(frozen=True)
class Nearest:
    """The nearest training image of each query."""

    index: Tensor  # (B,) int64; the first of several at the same distance
    distance: Tensor  # (B,) float64, 0 to 1


class CopySearch:
    """Finds the training images that an image may be a copy of.

    Every result is the same whatever the images are batched with. The work is done in small
    pieces, so one thread of torch does it nearly as fast as several.
    """

    def __init__(self, training: Tensor | Iterable[Tensor]):
        """training: (N,C,H,W) uint8 with C 1 or 3, or batches of such images.

        Kept are N * C * (h * w + 64) bytes, where h and w are the `working_size` of H and W.
        Raises ValueError for pixels of another kind or no images.
        """
        batches = [training] if isinstance(training, Tensor) else training
        prepared: list[Tensor] = []
        for batch in batches:
            check_pixels(batch)
            if not prepared:
                self.image_shape = tuple(batch.shape[1:])
            self._check_shape(batch)
            prepared += [prepare(chunk) for chunk in batch.split(images_at_once(batch))]
        if sum(map(len, prepared)) == 0:
            raise ValueError("there are no training images")
        self.prepared = torch.cat(prepared)  # (N,C,h,w) uint8
        channels, height, width = self.prepared.shape[1:]
        self.geometry = Geometry(channels, height, width, self.prepared.device)
        window = self.geometry.image_window
        thumbnails = [
            thumbnails_of(chunk, window, self.geometry)[:, 0]
            for chunk in self.prepared.split(PREPARED_AT_ONCE)
        ]
        self.thumbnails = torch.cat(thumbnails)  # (N,C*D) uint8

    def __len__(self) -> int:
        return len(self.prepared)

    def nearest(self, images: Tensor) -> Nearest:
        """The nearest training image of each of (B,C,H,W) uint8.

        Measured are the `CANDIDATES` whose thumbnails are nearest; another one may be nearer only
        where all are far away. Raises ValueError unless channels and size are those of training.
        """
        indices = []
        distances = []
        for query, bounds in self._bounded(self._prepare_queries(images)):
            candidates = _lowest(bounds, CANDIDATES)
            measured = self._distances(query, candidates)
            best = measured.argmin()
            indices.append(candidates[best])
            distances.append(measured[best])
        if not indices:
            return Nearest(torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.float64))
        return Nearest(torch.stack(indices).cpu(), torch.stack(distances).cpu())

    def within(self, images: Tensor, radius: float) -> list[Tensor]:
        """For each of (B,C,H,W) uint8, all training images at most `radius` away: (k,) int64.

        None is missed, since the others are ruled out by a lower bound. The training images may be
        divided among several searches, to hold fewer of them at a time. Raises ValueError unless
        channels and size are those of training.
        """
        everything = torch.ones(len(self), dtype=torch.bool)
        return list(self.within_each(images, radius, lambda query: everything))

    def within_each(
        self, images: Tensor, radius: float, among: Callable[[int], Tensor]
    ) -> Iterator[Tensor]:
        """The same, one image of (B,C,H,W) after the other, among the training images that
        `among` (a place in the batch) marks, (N,) bool. It is asked when the image's turn comes, so
        that its answer may follow from what was found before.
        """
        limit = radius + bound_slack(self.geometry)
        for place, (query, bounds) in enumerate(self._bounded(self._prepare_queries(images))):
            is_candidate = (bounds <= limit) & among(place).to(bounds.device)
            candidates = is_candidate.nonzero()[:, 0]
            yield candidates[self._distances(query, candidates) <= radius].cpu()

    def neighbours(self, places: Sequence[int], count: int = CANDIDATES) -> Iterator[Nearest]:
        """For each of these training images, `count` candidates among the others, in their order,
        and their distances: both (k,).
        """
        queries = (self.prepared[place] for place in places)
        for place, (query, bounds) in zip(places, self._bounded(queries), strict=True):
            candidates = _lowest(bounds, count + 1)
            candidates = candidates[candidates != place]
            yield Nearest(candidates, self._distances(query, candidates))

    def _prepare_queries(self, images: Tensor) -> Iterator[Tensor]:
        """(B,C,H,W) uint8 -> each prepared, (C,h,w)."""
        check_pixels(images)
        self._check_shape(images)
        for chunk in images.to(self.prepared.device).split(images_at_once(images)):
            yield from prepare(chunk)

    def _bounded(self, queries: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Prepared queries (C,h,w) -> each with a lower bound of its distances, (N,) float32."""
        windows = self.geometry.query_windows
        remaining = iter(queries)
        while some := list(islice(remaining, QUERIES_AT_ONCE)):
            thumbnails = thumbnails_of(torch.stack(some), windows, self.geometry).float()
            bounds = [
                torch.stack([lower_bounds(query, chunk, self.geometry) for query in thumbnails])
                for chunk in map(Tensor.float, self.thumbnails.split(COMPARED_AT_ONCE))
            ]
            yield from zip(some, torch.cat(bounds, dim=1), strict=True)

    def _distances(self, query: Tensor, places: Tensor) -> Tensor:
        """From a prepared query to the training images at these places: (k,) float64."""
        parts = [
            copy_distances(query, self.prepared[part], self.geometry)
            for part in places.split(MEASURED_AT_ONCE)
        ]
        return torch.cat(parts)

    def _check_shape(self, images: Tensor) -> None:
        if tuple(images.shape[1:]) != self.image_shape:
            raise ValueError(
                f"images have the shape (C,H,W) {tuple(images.shape[1:])}, "
                f"but the first training images {self.image_shape}"
            )


def images_at_once(images: Tensor) -> int:
    """How many images of this shape (B,C,H,W) are prepared together."""
    numbers = images[0].numel() if len(images) else 1
    return max(1, min(PREPARED_AT_ONCE, PREPARED_NUMBERS // numbers))


def check_pixels(images: Tensor) -> None:
    """Raise ValueError unless these are (N,C,H,W) uint8 with 1 or 3 channels."""
    channels = images.shape[1] if images.ndim == 4 else 0
    if images.dtype != torch.uint8 or channels not in (1, 3):
        raise ValueError(
            f"images are (N,C,H,W) uint8 with 1 or 3 channels, not {tuple(images.shape)} "
            f"{str(images.dtype).removeprefix('torch.')}"
        )


def _lowest(values: Tensor, count: int) -> Tensor:
    """The places of the `count` lowest values (N,), in order of place, and of any equal to the
    last of them: which ones these are does not depend on how the values were sorted.
    """
    if count >= len(values):
        return torch.arange(len(values), device=values.device)
    last = values.topk(count, largest=False).values.max()
    return (values <= last).nonzero()[:, 0]
