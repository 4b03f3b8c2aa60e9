"""Ours beside the peers that are installed, all in one run."""

import contextlib
import datetime
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from utils.benchmarks.case import Case
from utils.benchmarks.contender_process import ContenderProcess
from utils.benchmarks.contenders import (
    CALL,
    DIFFUSERS,
    ENTRIES,
    SAMPLE,
    TRAIN,
    is_installed,
    left_out_lines,
)
from utils.benchmarks.convolution import convolution_peak, name_of
from utils.benchmarks.results import (
    TRAINING_PASSES,
    CaseResult,
    Comparison,
    ContenderResult,
    Measure,
)
from utils.benchmarks.shares import loader_share
from utils.benchmarks.turns import take_turns
from utils.console import say
from utils.devices import Precision, formats_of

SHORTEST_TURN = 0.1  # seconds
CPU_INFO = Path("/proc/cpuinfo")  # Linux

Place = tuple[str, str]  # a contender's key and a number format


@dataclass(frozen=True)
class Plan:
    """What is measured, and how often."""

    cases: tuple[Case, ...]
    rounds: int  # of everything that takes turns
    overhead_rounds: int
    processes: int  # of each contender in the first case and format; one in the others
    loader_steps: int
    images: Path  # a folder


def compare(plan: Plan, device: torch.device) -> Comparison:
    """Measure everything. Raises UserError where ours and diffusers' are not the same network."""
    formats = [each for each in formats_of(device) if each.dtype != torch.float16]
    found = Comparison(
        date=datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        machine=machine_of(device),
        versions=versions(),
        options=options_of(plan),
        left_out=left_out_lines(),
    )
    for line in found.left_out:
        say(line, error=True)
    differences = [check_networks(case) for case in plan.cases]  # before any long work
    say("the fastest convolutions ...", error=True)
    found.peaks = [convolution_peak(precision) for precision in formats]
    peaks = {peak.number_format: peak.operations_per_second for peak in found.peaks}
    for number, (case, difference) in enumerate(zip(plan.cases, differences, strict=True)):
        more_processes = plan.processes - 1 if number == 0 else 0
        result = compare_case(case, formats, peaks, plan, more_processes)
        result.largest_difference = difference
        found.cases.append(result)
    say("the loader ...", error=True)
    found.loader = loader_share(plan.images, plan.cases[0], formats[-1], plan.loader_steps)
    return found


def check_networks(case: Case) -> float | None:
    """The difference between our output and diffusers', where it is installed. Raises UserError
    where it is more than rounding.
    """
    if not is_installed(ENTRIES[DIFFUSERS]):
        return None
    from utils.benchmarks.diffusers_peer import build_network, largest_difference

    weights = case.random_weights()
    return largest_difference(case.build_network(weights), build_network(case, weights), case)


# --- What takes turns ---


def compare_case(
    case: Case,
    formats: Sequence[Precision],
    peaks: dict[str, float],
    plan: Plan,
    more_processes: int,  # of each contender in the first format, for start-up and memory
) -> CaseResult:
    """Everything about one image size."""
    keys = [key for key, entry in ENTRIES.items() if is_installed(entry)]
    with contextlib.ExitStack() as stack:
        say(f"{case.name}: start-up and memory ...", error=True)
        contenders: dict[Place, ContenderProcess] = {}
        for precision in formats:
            for key in keys:
                process = ContenderProcess(key, case, precision, torch.get_num_threads())
                contenders[key, name_of(precision)] = stack.enter_context(process)
        results = measure(contenders, case, peaks, plan)
    for _ in range(more_processes):
        for key in keys:
            with ContenderProcess(key, case, formats[0], torch.get_num_threads()) as process:
                results[key, name_of(formats[0])].add_process(process.start_up, process.memory)
    return CaseResult(
        name=case.name,
        preset=case.preset,
        batch_size=case.batch_size,
        sample_steps=case.sample_steps,
        network=case.network_config(),
        largest_difference=None,
        contenders=list(results.values()),
    )


def measure(
    contenders: dict[Place, ContenderProcess],
    case: Case,
    peaks: dict[str, float],
    plan: Plan,
) -> dict[Place, ContenderResult]:
    """What the processes of one case do in turns."""

    def turns(what: str, words: str, places: Iterable[Place]) -> dict[Place, list[float]]:
        say(f"{case.name}: {words} ...", error=True)
        timers = {place: partial(contenders[place].seconds, what) for place in places}
        return take_turns(timers, plan.rounds, shortest_turn=SHORTEST_TURN)

    drawing = [place for place in contenders if not ENTRIES[place[0]].only_trains]
    training = turns(TRAIN, "training steps", contenders)
    calls = turns(CALL, "network calls", drawing)
    samplings = turns(SAMPLE, "sampling", drawing)

    results = {}
    for place, contender in contenders.items():
        key, number_format = place
        operations, peak = contender.operations, peaks[number_format]
        images = case.batch_size
        result = ContenderResult(
            key,
            number_format,
            parameters=contender.parameters,
            training=Measure(training[place], images, TRAINING_PASSES * operations, peak),
        )
        result.add_process(contender.start_up, contender.memory)
        if place in drawing:
            result.call = Measure(calls[place], images, operations, peak)
            in_all = case.sample_steps * operations
            result.sampling = Measure(samplings[place], images, in_all, peak)
            result.sampler_overhead = contender.sampler_overhead(plan.overhead_rounds)
        results[place] = result
    return results


# --- Where it ran ---


def machine_of(device: torch.device) -> dict[str, Any]:
    return {
        "device": str(device),
        "device_name": device_name(device),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "platform": platform.platform(),
    }


def device_name(device: torch.device) -> str:
    """Of the GPU or the CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = CPU_INFO.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Of Python, torch and the peers."""
    peers = [each for each in ENTRIES.values() if each.package and is_installed(each)]
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        **{each.pip_name: version(each.pip_name) for each in peers},
    }


def options_of(plan: Plan) -> dict[str, Any]:
    return {
        "preset": plan.cases[0].preset,
        "cases": [case.name for case in plan.cases],
        "batch_size": plan.cases[0].batch_size,
        "sample_steps": plan.cases[0].sample_steps,
        "rounds": plan.rounds,
        "overhead_rounds": plan.overhead_rounds,
        "processes": plan.processes,
        "loader_steps": plan.loader_steps,
        "images": plan.images.name,
    }
