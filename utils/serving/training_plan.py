"""What a training would do: the text of tools/train.py --plan, with a time limit."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO

from utils.options.table import ROOT
from utils.processes_of_others import own_environment
from utils.serving.processes import Trainings
from utils.serving.refusal import (
    INVALID_REQUEST,
    RATE_LIMIT,
    SERVER_ERROR,
    TIMEOUT,
    UNAVAILABLE,
    Refusal,
)
from utils.serving.run_facts import last_error
from utils.serving.safe_files import without_paths
from utils.serving.training_form import JsonValue, check_run_name
from utils.text import printable

WARNING = "warning:"
LONGEST_TEXT = 200_000  # bytes
SECONDS_BETWEEN_LOOKS = 0.2
USER_ERROR_STATUS = 2  # with which a script ends after a user's mistake


@dataclass(frozen=True)
class TrainingPlan:
    text: str
    warnings: list[str]


class Planner:
    """Makes plans, one at a time: each imports torch and reads images. Threads may use it."""

    def __init__(self, trainings: Trainings, seconds: float = 300.0):
        self._trainings = trainings
        self._seconds = seconds
        self._is_busy = threading.Lock()

    def plan(self, name: str, dataset: str, options: Mapping[str, JsonValue]) -> TrainingPlan:
        """Raises Refusal, with the script's own sentence where that refuses the options."""
        trainings = self._trainings
        path = trainings.data.path(dataset)
        check_run_name(name)
        texts = trainings.form.texts(options)
        arguments = trainings.form.arguments(name, path, trainings.results, texts)
        trainings.form.check_together(arguments)
        if not self._is_busy.acquire(blocking=False):
            raise Refusal(
                429, "another plan is being made", RATE_LIMIT, code="is_planning", retry_after=5
            )
        try:
            status, text, errors = self._run([*arguments, "--plan=True"])
        finally:
            self._is_busy.release()
        text, errors = (without_paths(each, trainings.roots) for each in (text, errors))
        if status != 0:
            sentence = last_error(errors) or "the plan could not be made"
            if status == USER_ERROR_STATUS:
                raise Refusal(422, sentence, INVALID_REQUEST, "options", "refused_by_script")
            raise Refusal(500, sentence, SERVER_ERROR)
        warnings = [
            line.removeprefix(WARNING).strip()
            for line in text.splitlines()
            if line.startswith(WARNING)
        ]
        return TrainingPlan(text, warnings)

    def _run(self, arguments: Sequence[str]) -> tuple[int, str, str]:
        """Exit status, what it printed, and its errors. Raises Refusal after the time limit."""
        with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
            try:
                process = subprocess.Popen(
                    [sys.executable, str(self._trainings.form.script), *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=errors,
                    cwd=ROOT,
                    env=own_environment(),
                    start_new_session=True,
                )
            except OSError:
                raise Refusal(500, "the plan could not be started", SERVER_ERROR) from None
            try:
                status = self._wait_for(process)
            finally:
                _end(process)
            return status, _text(output), _text(errors)

    def _wait_for(self, process: subprocess.Popen) -> int:
        """Its exit status. Raises Refusal after the time limit, and where the server closes."""
        until = time.monotonic() + self._seconds
        while time.monotonic() < until:
            if self._trainings.is_closing.is_set():
                raise Refusal(503, "the server is about to end", UNAVAILABLE)
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(SECONDS_BETWEEN_LOOKS)
        raise Refusal(504, f"there was no plan after {self._seconds:g} seconds", TIMEOUT)


def _end(process: subprocess.Popen) -> None:
    """Kill what is left of it and its workers."""
    if process.poll() is None:
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _text(stream: IO[bytes]) -> str:
    stream.seek(0)
    return printable(stream.read(LONGEST_TEXT).decode("utf-8", "replace"))
