"""Ours beside the peers that are installed, all in one run."""

import datetime
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils.benchmarks.case import Case
from utils.benchmarks.contenders import (
    DIFFUSERS,
    ENTRIES,
    Contender,
    build_contender,
    is_installed,
    left_out_lines,
)
from utils.benchmarks.convolution import convolution_peak, name_of
from utils.benchmarks.fresh import measure_all_fresh
from utils.benchmarks.results import (
    TRAINING_PASSES,
    CaseResult,
    Comparison,
    ContenderResult,
    Measure,
)
from utils.benchmarks.shares import loader_share, sampler_overhead
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
    all_formats: bool  # have processes of their own; False: the first one
    loader_steps: int
    images: Path  # a folder


def compare(plan: Plan, device: torch.device) -> Comparison:
    """Measure everything. Raises UserError where ours and diffusers' are not the same network."""
    threads = torch.get_num_threads()
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
        result = compare_case(case, formats, peaks, plan, device)
        result.largest_difference = difference
        say(f"{case.name}: start-up and memory ...", error=True)
        for precision in formats if plan.all_formats else formats[:1]:
            is_first = number == 0 and precision is formats[0]
            processes = plan.processes if is_first else 1
            measure_all_fresh(result.contenders, case, precision, processes, threads)
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
    device: torch.device,
) -> CaseResult:
    """All but the processes of their own."""
    contenders = build_all(case, formats, case.random_weights())
    drawing = {
        place: each for place, each in contenders.items() if not ENTRIES[place[0]].only_trains
    }

    def turns(what: str, actions: dict[Place, Callable[[], Any]]) -> dict[Place, list[float]]:
        say(f"{case.name}: {what} ...", error=True)
        return take_turns(actions, plan.rounds, device, shortest_turn=SHORTEST_TURN)

    training = turns("training steps", {place: each.train for place, each in contenders.items()})
    calls = turns("network calls", {place: each.call for place, each in drawing.items()})
    samplings = turns("sampling", {place: each.sample for place, each in drawing.items()})

    results = []
    for place, contender in contenders.items():
        key, number_format = place
        operations, peak = contender.operations, peaks[number_format]
        images = case.batch_size
        result = ContenderResult(
            key,
            number_format,
            parameters=sum(each.numel() for each in contender.network.parameters()),
            training=Measure(training[place], images, TRAINING_PASSES * operations, peak),
        )
        if place in drawing:
            result.call = Measure(calls[place], images, operations, peak)
            in_all = case.sample_steps * operations
            result.sampling = Measure(samplings[place], images, in_all, peak)
            result.sampler_overhead = sampler_overhead(
                contender.frozen(), contender.sample, device, plan.overhead_rounds
            )
        results.append(result)
    return CaseResult(
        name=case.name,
        preset=case.preset,
        batch_size=case.batch_size,
        sample_steps=case.sample_steps,
        network=case.network_config(),
        largest_difference=None,
        contenders=results,
    )


def build_all(
    case: Case, formats: Sequence[Precision], weights: dict[str, Tensor]
) -> dict[Place, Contender]:
    """Each contender that is installed in each number format."""
    keys = [key for key, entry in ENTRIES.items() if is_installed(entry)]
    return {
        (key, name_of(precision)): build_contender(key, case, precision, weights)
        for precision in formats
        for key in keys
    }


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
        "all_formats": plan.all_formats,
        "loader_steps": plan.loader_steps,
        "images": plan.images.name,
    }
