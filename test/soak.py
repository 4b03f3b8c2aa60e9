#!/usr/bin/env python3
"""Kill training runs again and again, resume them, and compare how they end with runs that nobody
disturbed.

    python test/soak.py --minutes 20

A tiny network on real images; half of the kills (SIGKILL) wait for a checkpoint to be half written,
some hit the whole process group of a run on two processes, some its launcher alone, whose processes
then save and end. Prints the figures that README quotes; exit status 1 if anything was lost.
"""

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ["OMP_NUM_THREADS"] = "1"

import torch  # noqa: E402

import utils.training.fit  # noqa: E402, F401  (imported once, shared by the forks)
from tools import train as train_script  # noqa: E402
from utils.options import UserError  # noqa: E402
from utils.runs import files, folder  # noqa: E402

OPTIONS = [
    "--channels",
    "8",
    "--channel_mult",
    "1,2",
    "--head_channels",
    "8",
    "--image_size",
    "8",
    "--epochs",
    "12",
]
OPTIONS += [
    "--num_vis",
    "1",
    "--sample_steps",
    "2",
    "--vis_interval_epochs",
    "4",
    "--flip",
    "--use_gpu",
    "-1",
]
OPTIONS += [
    "--save_every_steps",
    "1",
    "--save_model_interval",
    "--save_model_interval_epochs",
    "2",
    "--keep",
    "2",
]
ONE, TWO = ["--batch_size", "8"], ["--batch_size", "4", "--distributed", "--world_size", "2"]


def make_images(folder: Path) -> Path:
    """Two classes of the demo set, 30 images."""
    for name in ("bag", "boot"):
        (folder / "images" / name).mkdir(parents=True)
        for file in sorted((ROOT / "datasets/demo" / name).iterdir())[:15]:
            shutil.copy(file, folder / "images" / name)
    return folder / "images"


def argv(work: Path, name: str, two: bool, resume: bool) -> list[str]:
    place = [
        "--dataset_path",
        str(work / "images"),
        "--result_path",
        str(work / "results"),
        "--run_name",
        name,
    ]
    return [*place, *OPTIONS, *(TWO if two else ONE), *(["--resume"] if resume else [])]


def start(work: Path, name: str, two: bool, resume: bool) -> int:
    """Start a run as the leader of its own process group; its process number. One process is
    forked: quick.
    """
    if two:
        command = [sys.executable, str(ROOT / "tools/train.py"), *argv(work, name, two, resume)]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        return subprocess.Popen(command, start_new_session=True, **quiet).pid
    child = os.fork()
    if child == 0:
        os.setsid()
        with open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), 1)
            os.dup2(nothing.fileno(), 2)
            torch.set_num_threads(1)
            status = 1
            try:
                train_script.main(argv(work, name, two, resume))
            except SystemExit as stop:
                status = stop.code or 0
            except UserError:
                status = 2
            os._exit(status)
    return child


def ended(pid: int) -> int | None:
    """The exit status of a child (negative: the signal), or None while it runs."""
    done, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


def half_written(run: Path, since: int) -> bool:
    """Whether a file of a checkpoint lies there half written, begun after `since` (nanoseconds)."""
    for file in run.glob("*.pt.tmp"):
        with contextlib.suppress(FileNotFoundError):
            if file.stat().st_mtime_ns >= since:
                return True
    return False


def disturb(
    work: Path, name: str, two: bool, resume: bool, chance: random.Random, counts: dict
) -> str:
    """Start a run and kill it: "finished", "killed" or "failed with ..."."""
    run, begun = work / "results" / name, time.time_ns()
    pid = start(work, name, two, resume)
    in_save = chance.random() < 0.6
    deadline = time.monotonic() + (60 if in_save else chance.uniform(0.3, 6 if two else 1.5))
    wanted = chance.randint(1, 12)  # the save to hit
    seen, there = 0, False
    while time.monotonic() < deadline:
        if (status := ended(pid)) is not None:
            return "finished" if status == 0 else f"failed with {status}"
        if in_save:
            before, there = there, half_written(run, begun)
            seen += there and not before
            if seen >= wanted and there:
                break
        time.sleep(0.0002 if in_save else 0.005)
    launcher_alone = two and chance.random() < 0.3
    with contextlib.suppress(ProcessLookupError):
        (os.kill if launcher_alone else os.killpg)(pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)
    counts["kills"] += 1
    counts["launchers"] += launcher_alone
    counts["groups"] += two and not launcher_alone
    counts["in a save"] += not launcher_alone and half_written(run, begun)
    counts["left over"] += left_over(pid, 30 if launcher_alone else 5)
    return "killed"


def left_over(group: int, seconds: float) -> int:
    """How many processes of a process group still run after so long: ranks, loader workers. They
    are then killed.
    """
    end = time.monotonic() + seconds
    while (
        count := sum(map(runs_in(group), Path("/proc").glob("[0-9]*")))
    ) and time.monotonic() < end:
        time.sleep(0.05)
    if count:
        os.killpg(group, signal.SIGKILL)
    return count


def runs_in(group: int):
    def check(process: Path) -> bool:
        try:
            state, _, its_group = (process / "stat").read_text().rsplit(")", 1)[1].split()[:3]
        except OSError:
            return False
        return int(its_group) == group and state != "Z"

    return check


def loadable(run: Path) -> bool:
    if not (run / "ckpt_last.pt").exists() and not (run / "ckpt_prev.pt").exists():
        return not (run / "metrics.csv").exists()  # killed before the first step
    with contextlib.redirect_stdout(None):
        try:
            folder.find_checkpoint(run, -1)
            return True
        except UserError:
            return False


def same(a: Path, b: Path) -> bool:
    """Whether two runs ended in the same weights, EMA, optimizer, losses and files, to the bit."""
    one, two = (files.read_checkpoint(run / "ckpt_last.pt") for run in (a, b))

    def equal(x, y) -> bool:
        if isinstance(x, torch.Tensor):
            return torch.equal(x, y)
        if isinstance(x, dict):
            return x.keys() == y.keys() and all(equal(x[key], y[key]) for key in x)
        return len(x) == len(y) and all(map(equal, x, y)) if isinstance(x, list) else x == y

    def losses(run: Path) -> list[str]:
        return [line.rsplit(",", 1)[0] for line in (run / "metrics.csv").read_text().splitlines()]

    def others(run: Path) -> list:
        return [
            files.read_checkpoint(run / name)["ema"]
            for name in ("ema_last.pt", "ckpt_10.pt", "ckpt_12.pt")
        ]

    parts = ("network", "ema", "optimizer", "state")
    alike = all(equal(one[part], two[part]) for part in parts) and losses(a) == losses(b)
    names = [
        sorted(file.relative_to(run).as_posix() for file in run.rglob("[!e.]*.*")) for run in (a, b)
    ]
    return alike and equal(others(a), others(b)) and names[0] == names[1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    chance, end = random.Random(args.seed), time.monotonic() + 60 * args.minutes
    counts = dict.fromkeys(
        (
            "kills",
            "in a save",
            "groups",
            "launchers",
            "runs",
            "mismatches",
            "unloadable",
            "failed",
            "left over",
        ),
        0,
    )
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        make_images(work)
        for two in (False, True):
            pid = start(work, f"reference{two}", two, resume=False)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, (
                "the undisturbed run failed"
            )
        while time.monotonic() < end:
            two, name = counts["runs"] % 4 == 3, f"run{counts['runs']}"
            run, outcome = work / "results" / name, ""
            while outcome != "finished" and time.monotonic() < end + 120:
                resume = (run / "ckpt_last.pt").exists() or (run / "ckpt_prev.pt").exists()
                if not resume:
                    shutil.rmtree(run, ignore_errors=True)
                outcome = disturb(work, name, two, resume, chance, counts)
                counts["unloadable"] += not loadable(run)
                if outcome.startswith("failed"):
                    counts["failed"] += 1
                    break
            if outcome == "finished":
                counts["runs"] += 1
                counts["mismatches"] += not same(work / "results" / f"reference{two}", run)
            shutil.rmtree(run, ignore_errors=True)
            print(", ".join(f"{value} {key}" for key, value in counts.items()), flush=True)
    sys.exit(any(counts[key] for key in ("mismatches", "unloadable", "failed", "left over")))


if __name__ == "__main__":
    main()
