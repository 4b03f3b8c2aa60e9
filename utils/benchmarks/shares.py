"""Shares of a time: of the loader in training, of all but the network in sampling."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from model.codecs import PixelCodec
from utils.benchmarks.case import Case
from utils.benchmarks.convolution import name_of
from utils.benchmarks.own_steps import build_loop, process, take_step
from utils.benchmarks.results import LoaderShare
from utils.benchmarks.turns import WARM_UP_ROUNDS, wait_for
from utils.data import StepSampler, build_loader, load_image_set
from utils.devices import Precision
from utils.training.diffusion_task import DiffusionTask
from utils.training.prefetch import Prepared, PreparedBatches

# --- The loader in training ---


class TimedLoader:
    """Passes batches on, and keeps the seconds that each was waited for."""

    def __init__(self, batches: Iterator[Prepared]):
        self.batches = batches
        self.seconds: list[float] = []

    def __iter__(self) -> "TimedLoader":
        return self

    def __next__(self) -> Prepared:
        start = time.perf_counter()
        prepared = next(self.batches)
        self.seconds.append(time.perf_counter() - start)
        return prepared


def loader_share(folder: Path, case: Case, precision: Precision, steps: int) -> LoaderShare:
    """Of steps of our training loop on the images of a folder, read as train.py reads them.

    The network is the case's. Raises UserError for a folder without images.
    """
    mode = "L" if case.channels == 1 else "RGB"
    images = load_image_set(folder, case.image_size, conditional=False, mode=mode, quiet=True)
    all_steps = WARM_UP_ROUNDS + steps
    sampler = StepSampler(images, case.batch_size, 0, 0, all_steps)
    on_gpu = precision.device.type == "cuda"
    batches = iter(build_loader(images, sampler, case.batch_size, num_workers=-1, pin=on_gpu))
    task = DiffusionTask(process(), PixelCodec(), conditional=False)
    prepared = PreparedBatches(batches, task.draw, precision.device, 0, 0)
    loader = TimedLoader(prepared)
    network = precision.place(case.build_network())
    loop = build_loop(task, loader, network, precision, "muon")
    seconds = []
    try:
        for _ in range(all_steps):
            start = time.perf_counter()
            take_step(loop)
            seconds.append(time.perf_counter() - start)
    finally:
        prepared.close()
        batches.close()
    counted = slice(WARM_UP_ROUNDS, None)
    return LoaderShare(
        case=case.name,
        number_format=name_of(precision),
        images=len(images),
        seconds=seconds[counted],
        seconds_in_loader=loader.seconds[counted],
    )


# --- The network in sampling ---


class CallClock:
    """Seconds inside a network's calls, while this is entered."""

    def __init__(self, network: nn.Module, device: torch.device):
        self.network = network
        self.is_cuda = device.type == "cuda"
        self.marks: list[Any] = []  # the beginning and the end of each call
        self._hooks: list[Any] = []

    def __enter__(self) -> "CallClock":
        self._hooks = [
            self.network.register_forward_pre_hook(self._mark),
            self.network.register_forward_hook(self._mark),
        ]
        return self

    def __exit__(self, *_error: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _mark(self, *_call: object) -> None:
        if self.is_cuda:  # in the queue of the GPU, so that nothing waits
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append(event)
        else:
            self.marks.append(time.perf_counter())

    def seconds(self) -> float:
        """Of all calls, once the device has done them."""
        pairs = zip(self.marks[::2], self.marks[1::2], strict=True)
        if self.is_cuda:
            return sum(start.elapsed_time(end) for start, end in pairs) / 1000
        return sum(end - start for start, end in pairs)


def sampler_overhead(
    network: nn.Module, sample: Callable[[], Any], device: torch.device, rounds: int
) -> list[float]:
    """The share of a sampling that is not spent inside the network's calls, of each round."""
    shares = []
    for _ in range(rounds):
        with CallClock(network, device) as clock:
            start = time.perf_counter()
            sample()
            wait_for(device)
            seconds = time.perf_counter() - start
        shares.append(1 - clock.seconds() / seconds)
    return shares
