"""Start-up and memory of a contender, each time in a process of its own."""

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from utils.benchmarks.case import Case
from utils.benchmarks.convolution import name_of
from utils.benchmarks.results import ContenderResult
from utils.devices import Precision
from utils.errors import UserError

ROOT = Path(__file__).resolve().parent.parent.parent
CHILD = "utils.benchmarks.fresh_process"
ENOUGH_OF_IT = 500  # characters of an error


@dataclass(frozen=True)
class Fresh:
    """What a process of its own took."""

    start_up: float  # seconds, from its start to the end of its first training step
    memory: int  # bytes at most, beyond what it had before the network was built


def measure_fresh(key: str, case: Case, precision: Precision, threads: int) -> Fresh:
    """Start a process that takes a few training steps. Raises UserError where it fails."""
    request = {
        "contender": key,
        "case": asdict(case),
        "number_format": name_of(precision),
        "use_gpu": use_gpu_of(precision.device),
        "threads": threads,
    }
    command = [sys.executable, "-m", CHILD, json.dumps(request)]
    with tempfile.TemporaryFile("w+") as errors:  # a pipe that nobody reads could fill up
        start = time.perf_counter()
        with subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()  # comes after the first step
            start_up = time.perf_counter() - start
            rest = process.stdout.read()
        if process.returncode != 0:
            errors.seek(0)
            raise UserError(
                f"{key}: its own process ended with status {process.returncode}: "
                f"{errors.read().strip()[-ENOUGH_OF_IT:]}"
            )
    return Fresh(start_up, json.loads(rest)["memory"])


def use_gpu_of(device: torch.device) -> int:
    """The number by which `choose_device` finds it again."""
    if device.type == "cpu":
        return -1
    return device.index or 0


def measure_all_fresh(
    results: list[ContenderResult],
    case: Case,
    precision: Precision,
    rounds: int,
    threads: int,
) -> None:
    """Fill in start-up and memory of the contenders in this number format, which take turns."""
    in_this_format = [each for each in results if each.number_format == name_of(precision)]
    for _ in range(rounds):
        for result in in_this_format:
            fresh = measure_fresh(result.key, case, precision, threads)
            result.start_up.append(fresh.start_up)
            result.memory.append(fresh.memory)
