"""Which process is meant: its number alone is given to another one sooner or later.

A process is told apart by its number and the time at which it started: on Linux in clock ticks
since the machine started, with the identity of that start of the machine; elsewhere as `ps` says
it. Standard library only.
"""

import contextlib
import fcntl
import os
import signal
import struct
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

PROC = Path("/proc")
BOOT_ID = PROC / "sys" / "kernel" / "random" / "boot_id"
IS_LINUX = sys.platform == "linux"

# Fields of /proc/<pid>/stat behind the name of the program, counted from 0: see proc(5).
STATE_FIELD = 0
START_FIELD = 19
ENDED_STATES = ("Z", "X", "x")  # zombies, which nobody has waited for yet, and the dead

# struct flock with a lock of the whole file, for fcntl: l_type, l_whence, l_start, l_len, l_pid;
# on the BSDs, l_start, l_len, l_pid, l_type, l_whence.
FLOCK = "hhqqi" if IS_LINUX else "qqihh"
FLOCK_TYPE = 0 if IS_LINUX else 3
FLOCK_PID = 4 if IS_LINUX else 2


@dataclass(frozen=True)
class ProcessIdentity:
    """One process of this machine, now or in the past."""

    pid: int
    started: str  # as the system says it; only compared
    boot: str  # which start of the machine; "" where that is not known

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, record: object) -> "ProcessIdentity | None":
        """None for what is no record of a process."""
        if not isinstance(record, dict):
            return None
        pid, started, boot = record.get("pid"), record.get("started"), record.get("boot")
        if type(pid) is not int or pid <= 1:  # 0, 1 and negative numbers mean more than one
            return None
        if not isinstance(started, str) or not isinstance(boot, str):
            return None
        return cls(pid, started, boot)

    @property
    def is_alive(self) -> bool:
        """Whether this very process still runs. A zombie does not."""
        return identity_of(self.pid) == self


def identity_of(pid: int, may_have_ended: bool = False) -> ProcessIdentity | None:
    """The process that has this number now; None where none runs. `may_have_ended`: also a child
    that has ended, while nobody has waited for it.
    """
    found = _state_on_linux(pid) if IS_LINUX else _state_by_ps(pid)
    if found is None:
        return None
    state, started = found
    if state.startswith(ENDED_STATES) and not may_have_ended:
        return None
    return ProcessIdentity(pid, started, _boot_id())


def _state_on_linux(pid: int) -> tuple[str, str] | None:
    """Its state, and the clock ticks between the start of the machine and that of the process."""
    try:
        text = (PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The name of the program stands in brackets, and may hold brackets and spaces itself.
    fields = text.rpartition(")")[2].split()
    if len(fields) <= START_FIELD:
        return None
    return fields[STATE_FIELD], fields[START_FIELD]


def _state_by_ps(pid: int) -> tuple[str, str] | None:
    """Its state, and the date at which the process started, to the second."""
    command = ["ps", "-o", "stat=", "-o", "lstart=", "-p", str(pid)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=10, env={**os.environ, "LC_ALL": "C"}
        )
    except (OSError, subprocess.SubprocessError):
        return None
    state, *date = done.stdout.split()[:8] or [""]
    return (state, " ".join(date)) if date else None


def _boot_id() -> str:
    try:
        return BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""


# --- Signals ---


def send_signal(process: ProcessIdentity, number: int) -> bool:
    """Send a signal to this very process; False where it has ended or may not be signalled.

    Where the system has handles of processes (Linux), the signal cannot reach another one that gets
    the number between the check and the signal.
    """
    handle = _open_process(process.pid)
    try:
        if not process.is_alive:
            return False
        if handle is not None:
            signal.pidfd_send_signal(handle, number)
        else:
            os.kill(process.pid, number)
    except OSError:  # it has ended meanwhile, or is another user's
        return False
    finally:
        if handle is not None:
            os.close(handle)
    return True


def kill_group(leader: ProcessIdentity) -> bool:
    """Kill the process and the group that it leads: the workers and ranks that it started."""
    if not leader.is_alive:
        return False
    try:
        if os.getpgid(leader.pid) == leader.pid:
            os.killpg(leader.pid, signal.SIGKILL)
            return True
    except OSError:
        return False
    return send_signal(leader, signal.SIGKILL)


def _open_process(pid: int) -> int | None:
    """A handle of the process; None where the system has none."""
    if not hasattr(os, "pidfd_open"):
        return None
    with contextlib.suppress(OSError):
        return os.pidfd_open(pid)
    return None


# --- Who writes a folder ---


@dataclass(frozen=True)
class LockHolder:
    """That a process holds a lock. `process` is None where it cannot be told which one: it may run
    on another machine.
    """

    process: ProcessIdentity | None


def lock_holder(file: Path) -> LockHolder | None:
    """Who holds the lock (of `fcntl.lockf`) on a file; None where nobody does, or where the file or
    the file system's locks cannot be asked. Nothing is locked.
    """
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        question = [0] * 5
        question[FLOCK_TYPE] = fcntl.F_WRLCK
        answer = fcntl.fcntl(descriptor, fcntl.F_GETLK, struct.pack(FLOCK, *question))
        found = struct.unpack(FLOCK, answer[: struct.calcsize(FLOCK)])
    except OSError:
        return None
    finally:
        os.close(descriptor)
    if found[FLOCK_TYPE] == fcntl.F_UNLCK:
        return None
    return LockHolder(_holder_on_this_machine(found[FLOCK_PID], file))


def _holder_on_this_machine(pid: int, file: Path) -> ProcessIdentity | None:
    """The process of that number, if it has the file open: on a network file system the number may
    be one of another machine.
    """
    process = identity_of(pid) if pid > 1 else None
    if process is None:
        return None
    try:
        wanted = os.stat(file)
        with os.scandir(PROC / str(pid) / "fd") as descriptors:
            is_open = any(_is_same_file(entry, wanted) for entry in descriptors)
    except OSError:  # not Linux, or another user's process
        return None
    return process if is_open else None


def _is_same_file(entry: os.DirEntry, wanted: os.stat_result) -> bool:
    try:
        found = os.stat(entry.path)
    except OSError:
        return False
    return (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino)
