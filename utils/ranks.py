"""This process among those of a run, and what they tell each other."""

import contextlib
import math
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from utils.errors import UserError, name_list

POLL_SECONDS = 0.2  # between two looks at whether the others are ready
PATIENCE = 1.0  # seconds for the store to answer a process that ends
BEAT_SECONDS = 1.0  # between two signs of life
FAILED = "failed"  # the store's count of processes that ended with an error
NOT_SAVED = "not saved"  # the store's count of processes whose last save failed


class OtherRankFailed(RuntimeError):
    """Another process has ended with an error, which it has reported."""


@dataclass
class PendingSum:
    """A sum over all processes that may still be on its way."""

    tensor: Tensor
    work: Any = None

    def get(self) -> Tensor:
        """The sum. Raises what a lost connection raises where it never arrived."""
        if self.work is not None:
            self.work.wait()
            self.work = None
        return self.tensor


@dataclass
class Ranks:
    """This process among those of the run. All of them call its methods together, but for those
    that say otherwise.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0  # on this machine: the number of its GPU
    main_rank: int = 0
    store: dist.Store | None = None  # that all processes reach
    local_world_size: int = 1  # processes on this machine
    timeout: float = math.inf  # seconds without a sign of life, after which one counts as lost
    _asked: tuple[Tensor, Any] | None = None  # by the last call of `any`
    _meetings: int = 0
    _beating: threading.Thread | None = None
    _is_over: threading.Event = field(default_factory=threading.Event)

    @property
    def is_main(self) -> bool:
        """Whether this process saves, draws and prints."""
        return self.rank == self.main_rank

    def wait_for_all(self) -> None:
        """Wait until every process has arrived here, however long that takes.

        For work that differs from process to process, such as decoding images: it does not count
        against --timeout, which is for the steps of training. Raises OtherRankFailed where another
        process has ended with an error, or gives no sign of life for that long.
        """
        if self.store is None or self.world_size == 1:
            return
        self._meetings += 1
        key = f"meeting {self._meetings}"
        self.store.add(key, 1)
        neighbour = beat_key((self.rank + 1) % self.world_size)  # each is watched by one
        count, since = -1, time.monotonic()
        while self.store.add(key, 0) < self.world_size:
            if self.store.add(FAILED, 0) > 0:
                raise OtherRankFailed("another process has failed")
            before, count = count, self.store.add(neighbour, 0)
            if count != before:
                since = time.monotonic()
            elif time.monotonic() - since > self.timeout:
                raise OtherRankFailed("timed out: another process gives no sign of life")
            time.sleep(POLL_SECONDS)

    def beat(self) -> None:
        """From now on, give signs of life, for the processes in `wait_for_all`; called by each for
        itself.
        """
        if self.store is None or self.world_size == 1:
            return
        store = self.store.clone()  # one for each thread
        key = beat_key(self.rank)

        def go_on() -> None:
            with contextlib.suppress(RuntimeError):  # the store has gone with its process
                while not self._is_over.is_set():
                    store.add(key, 1)
                    self._is_over.wait(BEAT_SECONDS)

        self._beating = threading.Thread(target=go_on, daemon=True)
        self._beating.start()

    def stop_beating(self) -> bool:
        """No signs of life any more; False where the last one is still on its way."""
        self._is_over.set()
        if self._beating is None:
            return True
        self._beating.join(PATIENCE)
        return not self._beating.is_alive()

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """While this process, perhaps alone, saves after an error: the launcher does not end it
        meanwhile.
        """
        self._tell(saving_key(self.rank), 1)
        try:
            yield
        finally:
            self._tell(saving_key(self.rank), -1)

    def tell_of_failure(self) -> None:
        """Tell the processes in `wait_for_all` that this one has failed; called by it alone."""
        self._tell(FAILED, 1)

    def tell_of_lost_save(self) -> None:
        """Tell the launcher that what was to be saved at the end was not; called by it alone."""
        self._tell(NOT_SAVED, 1)

    def _tell(self, key: str, amount: int) -> None:
        """Add to a count in the store; give up where the store has gone, or does not answer because
        this machine is cut off.
        """
        if self.store is None:
            return
        store = self.store

        def add() -> None:
            with contextlib.suppress(RuntimeError):
                store.add(key, amount)

        thread = threading.Thread(target=add, daemon=True)
        thread.start()
        thread.join(PATIENCE)

    def start_sum(self, tensor: Tensor) -> "PendingSum":
        """Begin to sum a tensor over all processes; nobody waits until the sum is asked for."""
        if self.world_size == 1:
            return PendingSum(tensor)
        return PendingSum(tensor, dist.all_reduce(tensor, async_op=True))

    def gather(self, mine: object) -> list:
        """Each process's object, in rank order, on every process."""
        everyones: list = [mine] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(everyones, mine)
        return everyones

    def concatenate(self, mine: Tensor) -> Tensor:
        """Everyone's tensors, of one shape (n, ...), one behind the other in rank order."""
        together = mine.new_empty(self.world_size, *mine.shape)
        dist.all_gather(list(together), mine.contiguous())
        return together.flatten(0, 1)

    def check_equal(self, parameters: Sequence[Tensor]) -> None:
        """Raise RuntimeError unless all processes hold the same weights, to the bit."""
        if self.world_size == 1:
            return
        digest = torch.stack([_digest(parameter) for parameter in parameters])
        low, high = digest.clone(), digest.clone()
        dist.all_reduce(low, dist.ReduceOp.MIN)
        dist.all_reduce(high, dist.ReduceOp.MAX)
        if not torch.equal(low, high):
            raise RuntimeError(
                "the processes hold different weights: a bug, or machines that round differently"
            )

    def check_agreement(self, facts: dict) -> None:
        """Raise UserError unless all processes have the same facts: other machines may have been
        given other options or images.
        """
        everyones = self.gather(facts)
        values = {key: [each.get(key) for each in everyones] for key in facts}
        differ = [
            f"{key} {found}" for key, found in values.items() if found.count(found[0]) < len(found)
        ]
        if differ:
            raise UserError(f"the processes do not agree: {name_list(differ)}")

    def any(self, flag: bool) -> bool:
        """Whether the flag was set on a process in the call before this one.

        Nobody waits, and all get the same answer.
        """
        if self.world_size == 1:
            return flag
        before = self._asked
        flags = torch.tensor(float(flag))
        self._asked = (flags, dist.all_reduce(flags, async_op=True))
        if before is None:
            return False
        answer, work = before
        work.wait()
        return answer.item() > 0

    def main_is_busy(self, busy: bool) -> bool:
        """A sign of life while the main process works alone, so that the others' patience
        (--timeout) begins anew.

        The main process calls it now and then, at the end with False; the others, until it returns
        False.
        """
        return self.told_by_main(busy)

    def told_by_main(self, flag: bool) -> bool:
        """The flag of the main process, on all of them."""
        if self.world_size == 1:
            return flag
        answer = torch.tensor(float(flag))
        dist.broadcast(answer, self.main_rank)
        return flag if self.is_main else bool(answer.item())


def beat_key(rank: int) -> str:
    """The store's count of a process's signs of life."""
    return f"alive {rank}"


def saving_key(rank: int) -> str:
    """The store's count that is 1 while a process saves before it ends."""
    return f"saving {rank}"


def bits_of(network: torch.nn.Module) -> int:
    """A number that is equal for equal weights, and for others hardly ever."""
    total = 0
    for place, value in enumerate(network.state_dict().values()):
        total += (place + 1) * int(_digest(value.detach().float()))
    return total


def _digest(parameter: Tensor) -> Tensor:
    """A sum over the bits of a tensor, exact in any order."""
    return parameter.detach().contiguous().view(-1).view(torch.int32).sum()


def is_lost_connection(error: BaseException) -> bool:
    """Whether an error says that another process has gone or does not answer.

    nccl's and the store's have a type; gloo raises a plain RuntimeError, which only its source
    files' name tells apart.
    """
    if isinstance(error, dist.DistError | OtherRankFailed):
        return True
    return type(error) is RuntimeError and "gloo" in str(error)
