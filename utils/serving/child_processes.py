"""Scripts that the server starts, and that outlive it."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from utils.options.table import ROOT
from utils.processes_of_others import own_environment
from utils.serving.process_identity import ProcessIdentity, identity_of

SECONDS_TO_END = 1.0  # that the threads of a process have which is dead already
OUTPUT_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK


class ChildProcesses:
    """Those that this server has started and not yet seen end. Not for several threads at once."""

    def __init__(self) -> None:
        self._running: list[tuple[Path, subprocess.Popen, ProcessIdentity]] = []

    def start(
        self, folder: Path, script: Path, arguments: Sequence[str], output: Path, append: bool
    ) -> ProcessIdentity:
        """Run a Python script for the run in a folder, in a session of its own; what it prints goes
        to a file. OSError where that fails.
        """
        place = os.O_APPEND | (0 if append else os.O_TRUNC)
        descriptor = os.open(output, OUTPUT_FLAGS | place, 0o644)
        try:
            process = subprocess.Popen(
                [sys.executable, str(script), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=descriptor,
                stderr=descriptor,
                cwd=ROOT,
                env=own_environment(),
                start_new_session=True,
            )
        finally:
            os.close(descriptor)
        identity = identity_of(process.pid, may_have_ended=True)
        if identity is None:
            process.kill()
            process.wait()
            raise OSError("the system does not say when a process started")
        self._running.append((folder, process, identity))
        return identity

    def ended(self) -> list[tuple[Path, ProcessIdentity, int]]:
        """Those that have ended since the last call: their run folders, and their exit statuses;
        negative: the number of the signal that ended it. They do not stay as zombies.
        """
        found = []
        running = []
        for folder, process, identity in self._running:
            status = _status_of(process, identity)
            if status is None:
                running.append((folder, process, identity))
            else:
                found.append((folder, identity, status))
        self._running = running
        return found


def _status_of(process: subprocess.Popen, identity: ProcessIdentity) -> int | None:
    """Its exit status; None while it runs. One whose first thread has ended is no longer alive, and
    the system says its status as soon as the other threads have ended too: soon.
    """
    status = process.poll()
    if status is None and not identity.is_alive:
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = process.wait(SECONDS_TO_END)
    return status
