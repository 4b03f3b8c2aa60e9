"""Each system call of a save fails in turn, the disk fills up: a loadable checkpoint stays. Needs
root and strace.
"""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import ROOT, TINY, metrics, wait_for_step

from utils.runs.files import read_checkpoint, save_checkpoint
from utils.runs.names import holds_a_run

pytestmark = pytest.mark.fault

SAVE = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
import torch
from utils.runs.files import save_checkpoint
file = Path(sys.argv[1])
print("saving", flush=True)
weights = {{"w": torch.full((1000,), float(sys.argv[2]))}}
save_checkpoint({{"format_version": 1, "network": weights}}, file, True)
print("saved", flush=True)
"""
CALLS = ("openat", "write", "fsync", "rename", "link", "unlink")


def value(file: Path) -> float:
    return read_checkpoint(file)["network"]["w"][0].item()


def save(file: Path, number: int, *strace: str) -> subprocess.CompletedProcess:
    command = [*strace, sys.executable, "-c", SAVE, str(file), str(number)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def traced(folder: Path, *options: str) -> list[str]:
    """strace on the files of a save only."""
    names = ("ckpt_last.pt", "ckpt_last.pt.tmp", "ckpt_prev.pt", "ckpt_prev.pt.tmp")
    paths = [part for name in names for part in ("-P", str(folder / name))]
    return ["strace", "-f", "-qq", *paths, "-P", str(folder), *options]


def old_pair(folder: Path) -> Path:
    """Checkpoints 1 (previous) and 2 (last), and what an earlier kill may have left."""
    for number in (1, 2):
        assert save(folder / "ckpt_last.pt", number).returncode == 0
    (folder / "ckpt_prev.pt.tmp").write_bytes(b"left over")
    return folder / "ckpt_last.pt"


def test_the_order_of_a_save(tmp_path):
    file = old_pair(tmp_path)
    calls = "trace=openat,fsync,rename,renameat,renameat2,link,linkat,unlink,unlinkat"
    done = save(file, 3, *traced(tmp_path, "-y", "-e", calls))
    log = done.stderr
    kinds = re.findall(r"(fsync|rename)\w*\((.*)", log)
    steps = []
    for kind, rest in kinds:
        if kind == "fsync":
            steps.append("folder" if f"{tmp_path}>)" in rest else "data")
        else:
            steps.append("last" if 'ckpt_last.pt")' in rest else "previous")
    assert steps == ["data", "previous", "last", "folder"], log


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("fault", ["signal=KILL", "error=EIO", "error=ENOSPC"])
def test_a_save_in_which_a_system_call_fails(tmp_path, call, fault):
    """Whatever fails or dies, and at whichever of these calls: the last checkpoint or the one
    before it loads.
    """
    happened = 0
    for number in range(1, 4):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        file = old_pair(folder)
        name = {"rename": "/^rename", "link": "/^link", "unlink": "/^unlink"}.get(call, call)
        done = save(
            file,
            3,
            *traced(folder, "-e", f"trace={name}", "-e", f"inject={name}:{fault}:when={number}"),
        )
        happened += "INJECTED" in done.stderr or done.returncode < 0 or done.returncode == 137
        if file.exists():
            assert value(file) in (2.0, 3.0)
        else:
            assert value(folder / "ckpt_prev.pt") == 2.0
        if "saved" in done.stdout:
            assert value(file) == 3.0
        # and the next save works
        assert save(file, 4).returncode == 0 and value(file) == 4.0
    assert happened, f"{call} was never called"


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], check=True)
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_run_survives_a_full_disk(images, small_disk, tmp_path):
    """The disk fills up under a training: the old checkpoint stays whole, the run goes on, says so,
    recovers.
    """
    command = [
        sys.executable,
        str(ROOT / "tools/train.py"),
        "--dataset_path",
        str(images),
        *TINY,
        "--use_gpu",
        "-1",
    ]
    command += [
        "--result_path",
        str(small_disk),
        "--run_name",
        "a",
        "--log_interval",
        "1",
        "--channel_mult",
        "1",
    ]
    command += [
        "--channels",
        "4",
        "--head_channels",
        "4",
        "--image_size",
        "16",
        "--epochs",
        "100000",
        "--vis",
        "False",
    ]
    run = small_disk / "a"
    with open(tmp_path / "said", "w") as said:
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.DEVNULL)
    wait_for_step(run, 8)
    with pytest.raises(OSError), open(small_disk / "filler", "wb") as filler:
        while True:
            filler.write(b"\0" * 512)
            filler.flush()
    before = read_checkpoint(run / "ckpt_last.pt")["state"]["step"]
    end = time.monotonic() + 60
    for name in ("the checkpoint", "metrics.csv", "TensorBoard", "log.txt"):
        while (
            f"{name} could not be written" not in (tmp_path / "said").read_text()
            and time.monotonic() < end
        ):
            time.sleep(0.1)
        assert process.poll() is None and time.monotonic() < end, name
    assert read_checkpoint(run / "ckpt_last.pt")["state"]["step"] <= before + 8
    (small_disk / "filler").unlink()
    time.sleep(2)
    process.terminate()
    assert process.wait(60) == 128 + signal.SIGTERM
    after = read_checkpoint(run / "ckpt_last.pt")["state"]["step"]
    assert after > before + 8
    steps = [int(row["step"]) for row in metrics(run)]
    assert steps == sorted(set(steps)) and steps[-1] == after
    # and where there is no room from the start, nothing is begun
    (small_disk / "filler").write_bytes(b"\0" * (os.statvfs(small_disk).f_bavail * 4096 - 16384))
    command[command.index("a")] = "b"
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (
        done.returncode == 2
        and f"error: no checkpoint can be written into {small_disk / 'b'}" in done.stderr
    )
    (said,) = [line for line in done.stdout.splitlines() if "the checkpoint could not" in line]
    assert said.endswith("(No space left on device)")
    # and the name is free
    (small_disk / "filler").unlink()
    assert not holds_a_run(small_disk / "b")


def test_a_full_disk_during_a_save(small_disk):
    file = small_disk / "ckpt_last.pt"
    save_checkpoint({"format_version": 1, "network": {"w": torch.ones(50_000)}}, file, True)
    with pytest.raises((OSError, RuntimeError)):
        save_checkpoint({"format_version": 1, "network": {"w": torch.ones(2_000_000)}}, file, True)
    assert value(file) == 1.0 and [path.name for path in small_disk.iterdir()] == ["ckpt_last.pt"]
