"""A contender in a process of its own, which waits while others have their turn. So each has the
memory, the allocator and the settings that its own training script has, and none those of another.
"""

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from utils.benchmarks.case import Case
from utils.benchmarks.contenders import OVERHEAD
from utils.benchmarks.convolution import name_of
from utils.devices import Precision
from utils.errors import UserError

ROOT = Path(__file__).resolve().parent.parent.parent
CHILD = "utils.benchmarks.contender_worker"
ENOUGH_OF_IT = 500  # characters of an error


class ContenderProcess:
    """Started, and the first steps taken, once this is there; ended by `close`.

    Raises UserError, then and later, where the process fails.
    """

    start_up: float  # seconds, from its start to the end of its first training step
    memory: int  # bytes at most in three steps, beyond what it had before the network was built
    parameters: int
    operations: float  # floating-point, of a forward pass on one image

    def __init__(self, key: str, case: Case, precision: Precision, threads: int):
        request = {
            "contender": key,
            "case": asdict(case),
            "number_format": name_of(precision),
            "device": str(precision.device),
            "threads": threads,
        }
        self.key = key
        self._errors = tempfile.TemporaryFile("w+")  # a pipe that nobody reads could fill up
        start = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, "-m", CHILD, json.dumps(request)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self._read()
        self.start_up = time.perf_counter() - start
        facts = self._read()
        self.memory, self.parameters = facts["memory"], facts["parameters"]
        self.operations = facts["operations"]

    def seconds(self, what: str, repeats: int, begins_warm: bool) -> float:
        """Mean seconds of so many runs of TRAIN, CALL or SAMPLE, behind one that is not counted
        where the turn is to begin warm.
        """
        return self._ask(what, repeats, begins_warm)

    def sampler_overhead(self, rounds: int) -> list[float]:
        """The share of each of so many samplings that passes outside the network."""
        return self._ask(OVERHEAD, rounds)

    def close(self) -> None:
        """End the process, if it has not ended."""
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def __enter__(self) -> "ContenderProcess":
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _ask(self, what: str, repeats: int, begins_warm: bool = False) -> Any:
        assert self._process.stdin is not None
        asked = {"what": what, "repeats": repeats, "begins_warm": begins_warm}
        try:
            self._process.stdin.write(json.dumps(asked) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended; the answer that is missing says so
        return self._read()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        status = self._process.wait()
        self._errors.seek(0)
        words = self._errors.read().strip()[-ENOUGH_OF_IT:]
        self.close()
        raise UserError(f"{self.key}: its own process ended with status {status}: {words}")
