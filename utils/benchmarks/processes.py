"""One process with all threads beside several that share them: the same training at the same global
batch, in turns.

Each side is a group of processes that stays alive. It trains when it is told to, and waits without
computing while the other side has its turn.
"""

import contextlib
import itertools
import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist

from model.codecs import PixelCodec
from model.networks import build_network, check_image_size
from utils.benchmarks.own_steps import build_loop, process
from utils.devices import choose_device, choose_precision, usual_amp
from utils.errors import UserError
from utils.launch import Processes, join_group
from utils.ranks import Ranks
from utils.training.diffusion_task import DiffusionTask
from utils.training.fit import TrainingLoop
from utils.training.prefetch import Batch, PreparedBatches

WARM_UP_TURNS = 1
ON_THE_CPU = -1  # as --use_gpu
TIMEOUT = 600.0  # seconds that a process waits for the others
LEAVE = None  # the message that ends a process


@dataclass(frozen=True)
class Training:
    """What both sides train."""

    network: dict[str, Any]  # of build_network; with classes
    image_size: tuple[int, int]
    global_batch: int
    optim: str
    compression: str  # of the gradients, see wrap_network
    steps_per_turn: int


@dataclass(frozen=True)
class Side:
    """A number of processes, and how fast they were."""

    processes: int
    threads: int  # of each process
    images_per_second: float  # of all processes; the median of the turns


def compare(training: Training, processes: int, threads: int, rounds: int) -> tuple[Side, Side]:
    """One process with so many threads, and so many processes with a share of them each.

    Raises UserError where batch or threads cannot be shared out, and for a network that cannot be
    built or does not take the images.
    """
    _check(training, processes, threads)
    shares = {1: threads, processes: threads // processes}
    seconds: dict[int, list[float]] = {count: [] for count in shares}
    with contextlib.ExitStack() as stack:
        groups = {
            count: stack.enter_context(group_of(training, count, share))
            for count, share in shares.items()
        }
        for turn in range(WARM_UP_TURNS + rounds):
            # Neither side always comes first: what the machine does beside may have a rhythm.
            order = list(groups) if turn % 2 == 0 else list(reversed(groups))
            for count in order:
                taken = take_turn(groups[count], training.steps_per_turn)
                if turn >= WARM_UP_TURNS:
                    seconds[count].append(taken)
    one, several = (
        Side(count, share, training.global_batch / statistics.median(seconds[count]))
        for count, share in shares.items()
    )
    return one, several


def _check(training: Training, processes: int, threads: int) -> None:
    if training.global_batch % processes != 0:
        raise UserError(
            f"a global batch of {training.global_batch} images cannot be shared out evenly to "
            f"{processes} processes; {processes * math.ceil(training.global_batch / processes)} can"
        )
    if threads < processes:
        raise UserError(
            f"{processes} processes need a thread each, and there are {threads}: leave "
            "OMP_NUM_THREADS unset, or pass --threads"
        )
    try:
        with torch.device("meta"):
            factor = build_network(training.network).downsample_factor
        check_image_size(*training.image_size, factor)  # type: ignore[arg-type]
    except ValueError as error:  # such as widths that do not fit together
        raise UserError(str(error)) from None


# --- On the side that measures ---


@contextlib.contextmanager
def group_of(training: Training, count: int, threads: int) -> Iterator[list[Connection]]:
    """Connections to so many processes that train together when they are told to."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    spawn = torch.multiprocessing.get_context("spawn")
    ends, members = [], []
    for rank in range(count):
        mine, theirs = spawn.Pipe()
        arguments = (training, rank, count, threads, store.port, theirs)
        member = spawn.Process(target=_member, args=arguments, daemon=True)
        member.start()
        theirs.close()  # so that the end of the process ends the connection
        ends.append(mine)
        members.append(member)
    try:
        yield ends
        for end in ends:
            end.send(LEAVE)
        for member in members:
            member.join()
    finally:
        for member in members:
            member.kill()


def take_turn(group: list[Connection], steps: int) -> float:
    """Seconds of a step of the group: of its slowest process, in the mean of a turn.

    Raises RuntimeError where a process has ended.
    """
    for end in group:
        end.send(steps)
    try:
        return max(end.recv() for end in group)
    except EOFError:
        raise RuntimeError("a process of the benchmark has ended; its error is above") from None


# --- In the processes that train ---


def _member(
    training: Training, rank: int, count: int, threads: int, port: int, end: Connection
) -> None:
    """One process of a group: answers each number of steps with the seconds of one."""
    torch.set_num_threads(threads)
    store = dist.TCPStore("127.0.0.1", port, is_master=False)
    ranks = Ranks(rank, count, rank, store=store)
    join_group(Processes(count > 1, count, 0, TIMEOUT, first_gpu=ON_THE_CPU), ranks)
    loop = training_loop(training, ranks)
    with contextlib.suppress(EOFError, KeyboardInterrupt):  # the side that measures has gone
        while (steps := end.recv()) is not LEAVE:
            end.send(seconds_per_step(loop, steps))
    dist.destroy_process_group()


def seconds_per_step(loop: TrainingLoop, steps: int) -> float:
    """As in `TrainingLoop.run` between two looks at what was measured."""
    start = time.perf_counter()
    for _ in range(steps):
        loop.stop_is_asked()
        loop.take_step()
    loop.report()
    return (time.perf_counter() - start) / steps


def training_loop(training: Training, ranks: Ranks) -> TrainingLoop:
    """The loop of utils/training/fit.py on a fixed batch, whose images are this process's share."""
    torch.manual_seed(0)
    device = choose_device(ON_THE_CPU, ranks)  # and keep freed memory, as every process of a run
    precision, _ = choose_precision(usual_amp(device), device)
    network = precision.place(build_network(training.network))
    task = DiffusionTask(process(), PixelCodec(), conditional=True)
    batches = itertools.repeat(share_of_batch(training, ranks))
    loader = PreparedBatches(batches, task.draw, device, 0, 0, ranks=ranks)
    return build_loop(task, loader, network, precision, training.optim, ranks, training.compression)


def share_of_batch(training: Training, ranks: Ranks) -> Batch:
    """Images (B,C,H,W) uint8, labels (B,) and numbers (B,) of this process."""
    size = training.global_batch // ranks.world_size
    shape = (size, training.network["in_channels"], *training.image_size)
    generator = torch.Generator().manual_seed(ranks.rank)
    images = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
    numbers = torch.arange(size)
    return images, numbers % training.network["num_classes"], numbers
