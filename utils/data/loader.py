"""The batches of each training step, from data-loading workers or from this process."""

import signal
from typing import Any, Protocol

from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from utils.data.order import StepSampler
from utils.data.reading import available_cores
from utils.errors import ReadError

LARGEST_AUTOMATIC = 8  # data-loading workers
IGNORED_BY_WORKERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
SECONDS_TO_END = 1.0  # that a killed worker is waited for

Batch = tuple[Tensor, ...]


class TrainingSet(Protocol):
    """What a run trains on. An item is a tuple of tensors and numbers, or a ReadError as a value,
    so that it crosses from a data-loading worker without a traceback.
    """

    @property
    def is_decoded(self) -> bool:
        """Whether the items lie in memory or in a mapped file."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Any: ...

    def name(self, i: int) -> str:
        """The file of item i, for messages."""


class BatchIterator:
    """Batches in the sampler's order. `close` ends the data-loading workers."""

    def __init__(self, batches: Any):
        self._batches = batches

    def __iter__(self) -> "BatchIterator":
        return self

    def __next__(self) -> Batch:
        """Of an image set: (pixels (B,C,H,W) uint8, labels (B,), indices (B,)). ReadError where an
        image cannot be read any more.
        """
        try:
            batch = next(self._batches)
        except RuntimeError as error:
            if any(not worker.is_alive() for worker in getattr(self._batches, "_workers", [])):
                raise ReadError(
                    "a data-loading worker was killed, most likely because memory ran out; "
                    "fewer --num_workers need less"
                ) from error
            raise
        if isinstance(batch, ReadError):
            raise batch
        return tuple(batch)

    def close(self) -> None:
        """End the workers now. May be called twice."""
        workers = list(getattr(self._batches, "_workers", []))
        if hasattr(self._batches, "_shutdown_workers"):
            self._batches._shutdown_workers()
        for worker in workers:  # one that still waits for a file; it ignores SIGTERM
            if worker.is_alive():
                worker.kill()
                worker.join(SECONDS_TO_END)


class Batches:
    """An iterable over the batches of a sampler; each iteration starts its own workers."""

    def __init__(self, loader: DataLoader):
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> BatchIterator:
        # Workers begin with these signals blocked, until they ignore them: one that comes while a
        # worker starts does not end it, and reaches this process afterwards.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, IGNORED_BY_WORKERS)
        try:
            return BatchIterator(iter(self.loader))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def build_loader(
    dataset: TrainingSet, sampler: StepSampler, micro_batch: int, num_workers: int, pin: bool
) -> Batches:
    """Micro-batches in the sampler's order.

    num_workers -1 decides: none for a set that lies decoded in memory or in a mapped file, else one
    per core, 8 at most. `pin`: into pinned memory, for copies to a GPU.
    """
    if num_workers < 0:
        num_workers = 0 if dataset.is_decoded else min(LARGEST_AUTOMATIC, available_cores())
    loader: DataLoader = DataLoader(
        dataset,  # type: ignore[arg-type]
        micro_batch,
        sampler=sampler,
        num_workers=num_workers,
        pin_memory=pin,
        worker_init_fn=_ignore_signals,
        collate_fn=_collate,
    )
    return Batches(loader)


def _collate(items: list) -> Any:
    """A batch, or the first ReadError among its items."""
    for item in items:
        if isinstance(item, ReadError):
            return item
    return default_collate(items)


def _ignore_signals(_worker: int) -> None:
    """Ctrl-C, a lost terminal and a scheduler's signals reach the workers too; they end with the
    training process, after it has saved.
    """
    for number in IGNORED_BY_WORKERS:
        signal.signal(number, signal.SIG_IGN)
