"""Which process is meant, also after its number has been given to another one."""

import dataclasses
import fcntl
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from utils.serving import process_identity
from utils.serving.process_identity import (
    ProcessIdentity,
    identity_of,
    kill_group,
    lock_holder,
    send_signal,
)

SLEEP = [sys.executable, "-c", "import time; print(flush=True); time.sleep(60)"]
LEADER = """
import subprocess, sys, time
print(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]).pid, flush=True)
time.sleep(60)
"""
HOLD_LOCK = """
import fcntl, sys, time
file = open(sys.argv[1], "a")
fcntl.lockf(file, fcntl.LOCK_EX)
print("locked", flush=True)
time.sleep(60)
"""


@pytest.fixture
def process():
    process = subprocess.Popen(SLEEP, stdout=subprocess.PIPE, start_new_session=True)
    process.stdout.readline()
    yield process
    process.kill()
    process.wait()


def test_a_process_is_alive_until_it_ends_and_no_zombie_is(process):
    identity = identity_of(process.pid)
    assert identity is not None and identity.is_alive
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and is a zombie
    assert not identity.is_alive
    assert identity_of(process.pid, may_have_ended=True) == identity
    process.wait()
    assert not identity.is_alive and identity_of(process.pid, may_have_ended=True) is None


def test_another_process_with_the_same_number_is_not_taken_for_it(process):
    identity = identity_of(process.pid)
    earlier = dataclasses.replace(identity, started=str(int(identity.started) - 1))
    before_a_restart = dataclasses.replace(identity, boot="of yesterday")
    for other in (earlier, before_a_restart):
        assert not other.is_alive
        assert not send_signal(other, signal.SIGKILL) and not kill_group(other)
    assert process.poll() is None
    assert send_signal(identity, signal.SIGKILL)
    assert process.wait(10) == -signal.SIGKILL


def test_the_answer_of_ps_tells_processes_apart_too(process, monkeypatch):
    monkeypatch.setattr(process_identity, "IS_LINUX", False)
    identity = identity_of(process.pid)
    assert identity is not None and identity.is_alive and len(identity.started.split()) == 5
    time.sleep(1.1)  # its times are whole seconds
    other = subprocess.Popen(SLEEP, stdout=subprocess.PIPE)
    try:
        assert identity_of(other.pid).started != identity.started
    finally:
        other.kill()
        other.wait()
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert not identity.is_alive
    process.wait()
    assert not identity.is_alive


def test_an_identity_survives_json():
    own = identity_of(os.getpid())
    assert ProcessIdentity.from_dict(json.loads(json.dumps(own.to_dict()))) == own
    good = own.to_dict()
    # Signals to these numbers reach groups of processes, or the first one of the machine.
    for number in (0, 1, -1, -own.pid, True, "7", None, 7.0):
        assert ProcessIdentity.from_dict({**good, "pid": number}) is None
    for record in (None, [], {}, "", {**good, "started": 3}, {**good, "boot": None}):
        assert ProcessIdentity.from_dict(record) is None


def test_a_group_is_killed_with_its_leader():
    leader = subprocess.Popen(
        [sys.executable, "-c", LEADER], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    child = identity_of(int(leader.stdout.readline()))
    assert child.is_alive
    assert kill_group(identity_of(leader.pid))
    leader.wait(10)
    end = time.monotonic() + 10
    while child.is_alive:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_who_is_no_leader_is_killed_alone(process):
    child = subprocess.Popen(SLEEP, stdout=subprocess.PIPE)
    assert os.getpgid(child.pid) == os.getpgid(0)
    assert kill_group(identity_of(child.pid))  # not this test's own group
    assert child.wait(10) == -signal.SIGKILL


def test_who_holds_a_lock(tmp_path):
    file = tmp_path / ".lock"
    assert lock_holder(file) is None
    file.touch()
    assert lock_holder(file) is None
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD_LOCK, str(file)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "locked\n"
        assert lock_holder(file).process == identity_of(holder.pid)
        with open(file, "a") as other, pytest.raises(OSError):
            fcntl.lockf(other, fcntl.LOCK_EX | fcntl.LOCK_NB)  # asking has not dropped it
    finally:
        holder.kill()
        holder.wait()
    assert lock_holder(file) is None


def test_a_holder_on_another_machine_is_no_process_of_this_one(tmp_path, monkeypatch, process):
    """A network file system says the number of a process of another machine."""
    file = tmp_path / ".lock"
    file.touch()

    def foreign_answer(_descriptor, _command, question):
        return question[:24] + process.pid.to_bytes(4, sys.byteorder) + question[28:]

    monkeypatch.setattr(process_identity.fcntl, "fcntl", foreign_answer)
    holder = lock_holder(file)
    assert holder is not None and holder.process is None


def test_a_lock_that_is_a_pipe_or_a_link_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/etc/passwd")
    assert lock_holder(tmp_path / "pipe") is None
    assert lock_holder(tmp_path / "link") is None
