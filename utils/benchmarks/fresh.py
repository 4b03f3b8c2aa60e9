"""Start-up and memory of a contender, each time in a process of its own."""

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from utils.benchmarks.case import Case
from utils.benchmarks.convolution import name_of
from utils.benchmarks.results import ContenderResult
from utils.devices import Precision
from utils.errors import UserError

ROOT = Path(__file__).resolve().parent.parent.parent
CHILD = "utils.benchmarks.fresh_process"
LONGEST = 600.0  # seconds
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
        "device": str(precision.device),
        "threads": threads,
    }
    command = [sys.executable, "-m", CHILD, json.dumps(request)]
    start = time.perf_counter()
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()  # comes after the first step
        start_up = time.perf_counter() - start
        try:
            rest, errors = process.communicate(timeout=LONGEST)
        except subprocess.TimeoutExpired:
            process.kill()
            raise UserError(f"{key}: its own process took more than {LONGEST:g} s") from None
    if process.returncode != 0:
        raise UserError(
            f"{key}: its own process ended with status {process.returncode}: "
            f"{errors.strip()[-ENOUGH_OF_IT:]}"
        )
    return Fresh(start_up, json.loads(rest)["memory"])


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
