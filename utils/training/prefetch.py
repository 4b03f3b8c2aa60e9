"""Micro-batches with their random numbers, prepared one ahead of the step that uses them."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from model.transfer import to_device
from utils.data.loader import Batch
from utils.ranks import Ranks
from utils.training.randomness import image_generators

Draws = dict[str, Tensor]

# (batch, generators: one per image) -> all that the loss of this batch needs at random, on the CPU
DrawFunction = Callable[[Batch, list[torch.Generator]], Draws]


@dataclass
class Prepared:
    """A micro-batch and its random numbers."""

    batch: Batch
    draws: Draws

    def __len__(self) -> int:
        return len(self.batch[0])

    def tensors(self) -> list[Tensor]:
        return [*self.batch, *self.draws.values()]

    def copy(self) -> "Prepared":
        return self._with_each(Tensor.clone)

    def pinned(self) -> "Prepared":
        """In pinned memory, from which copies to a GPU are queued."""
        return self._with_each(Tensor.pin_memory)

    def on(self, device: torch.device) -> "Prepared":
        return self._with_each(lambda value: to_device(value, device))

    def _with_each(self, change: Callable[[Tensor], Tensor]) -> "Prepared":
        return Prepared(
            tuple(change(value) for value in self.batch),
            {name: change(value) for name, value in self.draws.items()},
        )


def draw_batch(
    batch: Batch,
    draw_fn: DrawFunction,
    seed: int,
    step: int,
    first: int,
    ranks: Ranks,
    accumulate: int = 1,
) -> Prepared:
    """The batch with what is drawn for it; `first` counts the images of the step before it, in
    which there are `accumulate` such batches.
    """
    global_batch = len(batch[0]) * accumulate * ranks.world_size
    generators = image_generators(seed, step, first, len(batch[0]), ranks, global_batch)
    return Prepared(batch, draw_fn(batch, generators))


class PreparedBatches:
    """Iterates over micro-batches on the device, `accumulate` a step, from step `first_step` on.

    With `ahead`, a thread reads and draws the next one while the device works on this one, so that
    neither waits for the other. On a CPU there is nothing to overlap: a second thread would only
    take the cores from the first.
    """

    def __init__(
        self,
        batches: Iterable[Batch],
        draw_fn: DrawFunction,
        device: torch.device,
        seed: int,
        first_step: int,
        accumulate: int = 1,
        ranks: Ranks | None = None,
        ahead: bool | None = None,  # None: on GPUs
    ):
        self._device = device
        self._source = self._prepare(
            iter(batches), draw_fn, seed, first_step, accumulate, ranks or Ranks()
        )
        if ahead is None:
            ahead = device.type != "cpu"
        self._pool = ThreadPoolExecutor(1) if ahead else None
        self._coming: Future | None = None

    def _prepare(
        self,
        batches: Iterator[Batch],
        draw_fn: DrawFunction,
        seed: int,
        first_step: int,
        accumulate: int,
        ranks: Ranks,
    ) -> Iterator[Prepared]:
        step, micro, first = first_step, 0, 0
        for batch in batches:
            prepared = draw_batch(batch, draw_fn, seed, step, first, ranks, accumulate)
            yield prepared.pinned() if self._device.type == "cuda" else prepared
            micro += 1
            first += len(prepared)
            if micro == accumulate:
                step, micro, first = step + 1, 0, 0

    def __iter__(self) -> "PreparedBatches":
        return self

    def __next__(self) -> Prepared:
        if self._pool is None:
            return next(self._source).on(self._device)
        if self._coming is None:
            self._coming = self._pool.submit(next, self._source, None)
        prepared = self._coming.result()
        if prepared is None:
            raise StopIteration
        self._coming = self._pool.submit(next, self._source, None)
        return prepared.on(self._device)

    def close(self) -> None:
        """Let the thread end, after the batch that it is preparing."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
