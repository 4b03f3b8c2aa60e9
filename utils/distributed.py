"""Which device, which number format, which process: everything about the machine that a run has to
know.
"""

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import parent_process
from multiprocessing.connection import wait as wait_for_any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

from utils.errors import UserError, name_list


@dataclass
class Ranks:
    """This process among those of the run."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0  # on this machine: the number of its GPU
    main_rank: int = 0
    asked: tuple | None = None  # by the last call of `any`

    @property
    def is_main(self) -> bool:
        """Whether this process saves, draws and prints."""
        return self.rank == self.main_rank

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, on each of them."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def check_equal(self, parameters: list[Tensor]) -> None:
        """RuntimeError unless all processes hold the same weights, to the bit."""
        if self.world_size > 1:
            digest = torch.stack(
                [p.detach().contiguous().view(-1).view(torch.int32).sum() for p in parameters]
            )
            low, high = digest.clone(), digest.clone()
            dist.all_reduce(low, dist.ReduceOp.MIN)
            dist.all_reduce(high, dist.ReduceOp.MAX)
            if not torch.equal(low, high):
                raise RuntimeError(
                    "the processes hold different weights: a bug, or machines that round differently"
                )

    def check_agreement(self, facts: dict) -> None:
        """UserError unless all processes have the same: other machines may have been given other
        options or images.
        """
        everyones = [facts] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(everyones, facts)
        lists = {key: [each.get(key) for each in everyones] for key in facts}
        if differ := [
            f"{key} {values}"
            for key, values in lists.items()
            if values.count(values[0]) < len(values)
        ]:
            raise UserError(f"the processes do not agree: {name_list(differ)}")

    def any(self, flag: bool) -> bool:
        """Whether the flag was set on a process in the call before this: nobody waits, and all get
        the same answer.
        """
        if self.world_size == 1:
            return flag
        flags, before = torch.tensor(float(flag)), self.asked
        self.asked = flags, dist.all_reduce(flags, async_op=True)
        return before is not None and before[1].wait() and before[0].item() > 0

    def main_is_busy(self, busy: bool) -> bool:
        """A sign of life while the main process works alone, so that the others' patience
        (--timeout) begins anew: the main process calls it now and then, at the end with False; the
        others, until it returns False.
        """
        if self.world_size > 1:
            flag = torch.tensor(float(busy))
            dist.broadcast(flag, self.main_rank)
            busy = busy if self.is_main else bool(flag.item())
        return busy


def choose_device(use_gpu: int, ranks: Ranks) -> torch.device:
    """The GPU numbered `use_gpu`, in a distributed run that of the process, else the CPU; use_gpu
    -1 is the CPU.
    """
    if use_gpu < 0:
        return torch.device("cpu")
    if torch.cuda.is_available():
        index = use_gpu if ranks.world_size == 1 else ranks.local_rank
        if index >= torch.cuda.device_count():
            raise UserError(
                f"GPU {index} is not there: this machine has {torch.cuda.device_count()} (numbered from 0)"
            )
        torch.cuda.set_device(index)
        return torch.device("cuda", index)
    if ranks.world_size == 1 and torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def wrap_network(network: nn.Module, ranks: Ranks, compiled: bool) -> nn.Module:
    """What the loss calls: the network itself, compiled on demand, with its gradients averaged over
    the processes.
    """
    if compiled:
        network = torch.compile(network)
    if ranks.world_size > 1:
        network = nn.parallel.DistributedDataParallel(network)
    return network


@dataclass
class Precision:
    """The number format of the network's calls, and the memory layout that suits it."""

    dtype: torch.dtype
    device: torch.device

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')} on {self.device}"

    def autocast(self) -> contextlib.AbstractContextManager:
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def scaler(self) -> torch.amp.GradScaler:
        """Scales the loss where fp16 would lose small gradients; else passes everything through."""
        return torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)

    def place(self, network: nn.Module) -> nn.Module:
        """To the device. On a CPU, fp32 convolutions are fastest with channels last, bf16 ones
        without.
        """
        last = self.device.type == "cpu" and self.dtype == torch.float32
        return network.to(
            self.device, memory_format=torch.channels_last if last else torch.preserve_format
        )


def choose_precision(amp: bool, device: torch.device) -> tuple[Precision, str]:
    """The format that --amp gives on this device, and a remark where it is not the expected one:
    bf16 where hardware computes in it, fp16 on older GPUs, fp32 where a smaller format would only
    slow things down.
    """
    if not amp:
        return Precision(torch.float32, device), ""
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)
        return Precision(torch.bfloat16 if native else torch.float16, device), ""
    if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported():
        return Precision(torch.bfloat16, device), ""
    return Precision(
        torch.float32, device
    ), f"--amp has no effect: this {device.type} does not compute in bf16"


GRACE = 10.0  # seconds that the other processes have to end by themselves after one has failed


def launch(
    worker: Callable,
    args: object,
    distributed: bool,
    world_size: int,
    main_gpu: int,
    timeout: float,
) -> None:
    """Call worker(args, ranks) -> exit status in the run's processes (this one, torchrun's, new
    ones), and exit.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        rank, world_size, local_rank = (
            int(os.environ[key]) for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        )
        _check_ranks(world_size, main_gpu, int(os.environ["LOCAL_WORLD_SIZE"]), args.use_gpu)
        _end_with_launcher()
        store = next(dist.rendezvous("env://", timeout=timedelta(seconds=timeout)))[0]
        _run_rank(worker, args, Ranks(rank, world_size, local_rank, main_gpu), timeout, store)
    if not distributed:
        sys.exit(worker(args, Ranks()))
    _check_ranks(world_size, main_gpu, world_size, args.use_gpu)
    # This process holds the store, so its port is free until the last process has gone.
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # for the workers, until they are ready for it
    start = (worker, args, world_size, main_gpu, timeout, store.port)
    processes = torch.multiprocessing.spawn(
        _spawned, start, nprocs=world_size, join=False
    ).processes
    received = []
    for number in (
        signal.SIGINT,
        signal.SIGTERM,
    ):  # the workers save and end; those that still start just end
        signal.signal(
            number,
            lambda n, _: received.append(n) or [process.terminate() for process in processes],
        )
    sys.exit(_wait_for(processes, received))


def _wait_for(processes: list, received: list[int]) -> int:
    """Wait until all have ended, GRACE seconds at most after one has failed; the exit status of the
    run.
    """
    deadline = None
    while alive := [process for process in processes if process.is_alive()]:
        wait_for_any([process.sentinel for process in alive], timeout=1)
        if deadline is None and any(process.exitcode for process in processes):
            deadline = time.monotonic() + GRACE
        if deadline and time.monotonic() > deadline:
            break
    for process in alive:
        process.kill()
        process.join()
    codes = [process.exitcode for process in processes]
    if said := [128 + n for n in received] + [
        code for code in codes if code in (2, 130, 143)
    ]:  # by the process itself
        return said[0]
    # Not SIGABRT: so NCCL ends a healthy process that waits for another.
    killed = [
        i
        for i, code in enumerate(codes)
        if code < 0 and code != -signal.SIGABRT and processes[i] not in alive
    ]
    for rank in killed or [processes.index(process) for process in alive]:
        how = f"was killed by {signal.Signals(-codes[rank]).name}" if killed else "did not answer"
        print(
            f"error: rank {rank} {how}; the run has ended, what was saved is whole", file=sys.stderr
        )
    return 1 if any(codes) else 0


def _check_ranks(world_size: int, main_gpu: int, local_world_size: int, use_gpu: int) -> None:
    if not 0 <= main_gpu < world_size:
        raise UserError(
            f"--main_gpu {main_gpu} is outside the {world_size} processes 0..{world_size - 1}"
        )
    if use_gpu >= 0 and 0 < (gpus := torch.cuda.device_count()) < local_world_size:
        raise UserError(
            f"{local_world_size} processes on this machine need as many GPUs, it has {gpus}"
        )


def _end_with_launcher() -> None:
    """Have the kernel send SIGTERM when the launcher is killed: this process then saves and ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    if (parent := parent_process()) and parent.pid != os.getppid():  # it was killed before that
        os._exit(1)


def _spawned(
    rank: int,
    worker: Callable,
    args: object,
    world_size: int,
    main_gpu: int,
    timeout: float,
    port: int,
):
    _end_with_launcher()
    if (
        args.use_gpu < 0 or not torch.cuda.is_available()
    ):  # the processes share this machine's cores
        torch.set_num_threads(max(1, torch.get_num_threads() // world_size))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=timeout))
    _run_rank(worker, args, Ranks(rank, world_size, rank, main_gpu), timeout, store)


def _run_rank(
    worker: Callable, args: object, ranks: Ranks, timeout: float, store: dist.Store
) -> None:
    """Call the worker in this process of several, and exit with its status; after an error by
    os._exit, as the others may be gone, and leaving the process group would wait for them. Only the
    main process prints.
    """
    backend = "cpu:gloo,cuda:nccl" if args.use_gpu >= 0 and torch.cuda.is_available() else "gloo"
    place = {"store": store, "rank": ranks.rank, "world_size": ranks.world_size}
    tqdm.set_lock(threading.RLock())  # its own lock would outlive a process that is killed
    try:
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout), **place)
        with (
            contextlib.nullcontext()
            if ranks.is_main
            else contextlib.redirect_stdout(open(os.devnull, "w"))
        ):
            status = worker(args, ranks)
        dist.barrier()  # until the main process has saved
        dist.destroy_process_group()
    except (UserError, OSError) as error:
        if store.add(str(error), 1) == 1:  # the first to say so
            print(f"error: {error}", file=sys.stderr, flush=True)
        os._exit(2 if isinstance(error, UserError) else 1)
    except KeyboardInterrupt:
        os._exit(130)
    except Exception as error:
        if "gloo" not in str(error) and not isinstance(error, dist.DistError):
            traceback.print_exc()
        elif (
            "timed out" in str(error).lower()
        ):  # else a process has ended, which has its own message
            print(
                f"rank {ranks.rank} ended: the others did not answer for {timeout:g} s",
                file=sys.stderr,
                flush=True,
            )
        os._exit(1)
    sys.exit(status)
