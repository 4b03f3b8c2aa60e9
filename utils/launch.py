"""The processes of a run: this one alone, those that torchrun started, or new ones."""

import contextlib
import ctypes
import hashlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from multiprocessing import parent_process
from multiprocessing.connection import wait as wait_for_any
from types import FrameType
from typing import NoReturn

import torch
import torch.distributed as dist

from utils.console import make_output_robust, say
from utils.errors import TOO_LITTLE_MEMORY, NotSaved, Stopped, UserError, is_out_of_memory
from utils.processes_of_others import is_of_torchrun, joins_others, number_of
from utils.ranks import NOT_SAVED, Ranks, is_lost_connection, saving_key
from utils.start import begin_at, start

Worker = Callable[[Ranks], None]

GRACE = 10.0  # seconds that the other processes have to end by themselves after one has failed
PR_SET_PDEATHSIG = 1  # of Linux's prctl

# Signals that ask a run to save and end: Ctrl-C, kill, a dropped terminal, a scheduler's warning.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)

USER_ERROR_STATUS = 2
FAILURE_STATUS = 1
INTERRUPTED_STATUS = 128 + signal.SIGINT


@dataclass(frozen=True)
class Processes:
    """How many processes a run has, and how they find each other."""

    distributed: bool
    world_size: int
    main_rank: int  # which of them saves, draws and prints
    timeout: float  # seconds that a process waits for the others in a step
    first_gpu: int  # of this machine's processes, the others have the next ones; -1: the CPU

    @property
    def on_gpu(self) -> bool:
        return self.first_gpu >= 0


def launch(worker: Worker, processes: Processes) -> NoReturn:
    """Call worker(ranks) in the run's processes (this one, torchrun's, new ones), and exit.

    The exit status is 0, 2 after a UserError, 1 after another failure, and 128 + the signal's
    number after a signal. `worker` must be picklable.
    """
    if joins_others(processes.distributed):
        _join_others(worker, processes)
    if not processes.distributed:
        sys.exit(_status_alone(worker))
    _check(processes, processes.world_size)
    _spawn_all(worker, processes)


def _status_alone(worker: Worker) -> int:
    """Run the worker in this process alone. Other errors propagate."""
    try:
        worker(Ranks())
    except Stopped as stop:
        return stop.status
    except NotSaved as error:
        say(f"error: {error}", error=True)
        return FAILURE_STATUS
    return 0


def _check(processes: Processes, gpus_needed: int) -> None:
    """Raise UserError for an impossible number of processes."""
    world_size = processes.world_size
    if not 0 <= processes.main_rank < world_size:
        raise UserError(
            f"--main_gpu {processes.main_rank} is outside the {world_size} processes "
            f"0..{world_size - 1}"
        )
    gpus = torch.cuda.device_count()
    needed = processes.first_gpu + gpus_needed
    if processes.on_gpu and 0 < gpus < needed:
        first = f" from --use_gpu {processes.first_gpu} on" if processes.first_gpu else ""
        raise UserError(
            f"{gpus_needed} processes on this machine need a GPU each{first}, it has {gpus}"
        )


# --- The processes of torchrun, or of another launcher ---


def _join_others(worker: Worker, processes: Processes) -> NoReturn:
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    found = {name: number_of(name) for name in names}
    rank, world_size, local_rank, local_world_size = found.values()
    if rank is None or world_size is None or local_rank is None or local_world_size is None:
        missing = ", ".join(name for name, value in found.items() if value is None)
        raise UserError(
            "RANK and WORLD_SIZE in the environment say that this is one of several processes, and "
            f"no number is in {missing}: start them by torchrun, or set LOCAL_RANK and "
            "LOCAL_WORLD_SIZE, which process on this machine it is and of how many"
        )
    processes = replace(processes, world_size=world_size)
    gpus_needed = local_world_size
    if not is_of_torchrun():
        if torch.cuda.device_count() == 1:
            gpus_needed, local_rank = 1, 0  # each process has been given a GPU, and sees no other
        if not processes.on_gpu or not torch.cuda.is_available():
            _share_threads(local_world_size)
    _check(processes, gpus_needed)
    _end_with_launcher()
    store = _met(processes)
    ranks = Ranks(
        rank,
        world_size,
        local_rank,
        processes.main_rank,
        store,
        local_world_size,
        processes.timeout,
    )
    _run_rank(worker, processes, ranks)


def _share_threads(local_world_size: int) -> None:
    """Where processes on this machine may use the same cores, each takes its share of threads."""
    cores = os.cpu_count() or 1
    is_bound = hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) < cores
    if "OMP_NUM_THREADS" not in os.environ and not is_bound:
        torch.set_num_threads(max(1, torch.get_num_threads() // local_world_size))


def _met(processes: Processes) -> dist.Store:
    """The store of the processes, when all of them have come. Ctrl-C ends the wait; ends this
    process where they do not come.
    """
    place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    if not is_of_torchrun():
        rank = os.environ["RANK"]
        say(f"process {rank} of {processes.world_size} waits for the others at {place}", error=True)
    handler = signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python's would wait for torch
    try:
        return next(dist.rendezvous("env://", timeout=timedelta(seconds=processes.timeout)))[0]
    except dist.DistError as error:
        say(f"error: the processes did not meet at {place}: {error}", error=True)
        sys.exit(FAILURE_STATUS)
    finally:
        signal.signal(signal.SIGINT, handler)


# --- New processes on this machine ---


def _spawn_all(worker: Worker, processes: Processes) -> NoReturn:
    """Start the processes, forward signals to them, and exit with their status."""
    # This process holds the store, so its port is free until the last process has gone.
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # for the workers, until they are ready for it
    started = torch.multiprocessing.spawn(
        _spawned,
        (worker, processes, store.port, start()),
        nprocs=processes.world_size,
        join=False,
    ).processes
    received: list[int] = []

    def hand_on(number: int, _frame: FrameType | None) -> None:
        """The workers save and end; those that are still starting just end."""
        received.append(number)
        for process in started:
            process.terminate()

    for number in STOP_SIGNALS:
        if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, hand_on)
    sys.exit(_wait_for(started, received, store))


def _spawned(rank: int, worker: Worker, processes: Processes, port: int, began: float) -> NoReturn:
    """What a new process does first."""
    begin_at(began)
    make_output_robust()
    _end_with_launcher()
    if not processes.on_gpu or not torch.cuda.is_available():
        # The processes share this machine's cores.
        torch.set_num_threads(max(1, torch.get_num_threads() // processes.world_size))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    timeout = timedelta(seconds=processes.timeout)
    try:
        store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=timeout)
    except dist.DistError as error:  # torch keeps what a new process raises to itself
        say(f"error: process {rank} did not find the others: {error}", error=True)
        sys.exit(FAILURE_STATUS)
    world_size = processes.world_size
    main_rank = processes.main_rank
    ranks = Ranks(rank, world_size, rank, main_rank, store, world_size, processes.timeout)
    _run_rank(worker, processes, ranks)


def _wait_for(processes: list, received: list[int], store: dist.Store) -> int:
    """Wait until all have ended: after one has failed, GRACE seconds at most, and as long as
    another one saves. Returns the run's exit status.
    """
    deadline: float | None = None
    alive = [process for process in processes if process.is_alive()]
    while alive:
        wait_for_any([process.sentinel for process in alive], timeout=1)
        if deadline is None and any(process.exitcode for process in processes):
            deadline = time.monotonic() + GRACE
        is_late = deadline is not None and time.monotonic() > deadline
        if is_late and not _one_saves(processes, alive, store):
            break
        alive = [process for process in processes if process.is_alive()]
    for process in alive:
        process.kill()
        process.join()
    codes = [process.exitcode for process in processes]
    if received and any(codes):  # else all were done already
        is_lost = store.add(NOT_SAVED, 0) > 0
        return FAILURE_STATUS if is_lost else 128 + received[0]
    # These have been explained by the process itself.
    stop_codes = [128 + number for number in STOP_SIGNALS]
    explained = [code for code in codes if code == USER_ERROR_STATUS or code in stop_codes]
    if explained:
        return explained[0]
    _name_the_culprits(processes, alive, codes)
    return FAILURE_STATUS if any(codes) else 0


def _one_saves(processes: list, alive: list, store: dist.Store) -> bool:
    """Whether one of those that are alive saves before it ends; a dead one never says that it is
    done.
    """
    return any(store.add(saving_key(processes.index(process)), 0) > 0 for process in alive)


def _name_the_culprits(processes: list, unanswering: list, codes: list[int]) -> None:
    """Say which processes were killed; where none was, which did not answer."""
    # Not SIGABRT: NCCL aborts a healthy process that waits for a dead one.
    killed = [
        rank
        for rank, code in enumerate(codes)
        if code < 0 and code != -signal.SIGABRT and processes[rank] not in unanswering
    ]
    ending = "the run has ended; what was saved before is intact"
    for rank in killed:
        name = signal.Signals(-codes[rank]).name
        say(f"error: rank {rank} was killed by {name}; {ending}", error=True)
    if killed:
        return
    for process in unanswering:
        rank = processes.index(process)
        say(f"error: rank {rank} did not answer; {ending}", error=True)


def _end_with_launcher() -> None:
    """Have the kernel send SIGTERM when the launcher is killed, so that this process saves."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    parent = parent_process()
    if parent is not None and parent.pid != os.getppid():  # it was killed before that
        os._exit(FAILURE_STATUS)


# --- One process of several ---


def _run_rank(worker: Worker, processes: Processes, ranks: Ranks) -> NoReturn:
    """Call the worker in this process of several, and exit with its status.

    After an error by os._exit: the others may be gone, and leaving the process group would wait
    for them. Only the main process prints.
    """
    status = 0
    try:
        join_group(processes, ranks)
        ranks.beat()
        with _quiet_unless(ranks.is_main):
            try:
                worker(ranks)
            except Stopped as stop:
                status = stop.status
        _leave(ranks)
    except BaseException as error:
        ranks.tell_of_failure()
        try:
            failure = _explain(error, processes, ranks)
        except Exception:
            traceback.print_exception(error)
            failure = FAILURE_STATUS
        os._exit(failure)
    if not ranks.stop_beating():  # Python must not end while a thread is in torch's code
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def _leave(ranks: Ranks) -> None:
    """Leave the group when the main process has saved, however long that takes."""
    with contextlib.suppress(dist.DistError):  # the process that holds the store has left already
        ranks.wait_for_all()
    dist.destroy_process_group()


def join_group(processes: Processes, ranks: Ranks) -> None:
    """Make this process one of the group whose store the ranks have. Waits for the others."""
    gpus = processes.on_gpu and torch.cuda.is_available()
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if gpus else "gloo",
        timeout=timedelta(seconds=processes.timeout),
        store=ranks.store,
        rank=ranks.rank,
        world_size=ranks.world_size,
    )


@contextlib.contextmanager
def _quiet_unless(printing: bool):
    if printing:
        yield
        return
    with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):
        yield


def _explain(error: BaseException, processes: Processes, ranks: Ranks) -> int:
    """Say what ended this process, once where several say the same; its exit status."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED_STATUS
    if isinstance(error, NotSaved):
        ranks.tell_of_lost_save()
    if isinstance(error, UserError | OSError | NotSaved) or is_out_of_memory(error):
        sentence = str(error) or TOO_LITTLE_MEMORY
        if _is_first_to_say(sentence, ranks):
            say(f"error: {sentence}", error=True)
        return USER_ERROR_STATUS if isinstance(error, UserError) else FAILURE_STATUS
    if not is_lost_connection(error):
        traceback.print_exception(error)
    elif "timed out" in str(error).lower():  # else a process has ended, and has said why
        say(
            f"rank {ranks.rank} ended: the others did not answer for {processes.timeout:g} s",
            error=True,
        )
    return FAILURE_STATUS


def _is_first_to_say(sentence: str, ranks: Ranks) -> bool:
    key = hashlib.sha256(sentence.encode(errors="surrogateescape")).hexdigest()
    try:
        return ranks.store is None or ranks.store.add(key, 1) == 1
    except RuntimeError:  # the store has gone with its process
        return True
