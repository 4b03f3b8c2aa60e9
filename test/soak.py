#!/usr/bin/env python3
"""Kill training runs again and again, resume them, and compare how they end with runs that nobody disturbed.

    python test/soak.py --minutes 20

A tiny network on real images; half of the kills (SIGKILL) wait for a checkpoint to be half written, some hit the whole
process group of a run on two processes. Prints the figures that README quotes; exit status 1 if anything was lost.
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

from tools import train as train_script  # noqa: E402
from utils import checkpoint, run_folder, trainer  # noqa: E402, F401  (imported once, shared by the forks)
from utils.options import UserError  # noqa: E402

OPTIONS = ["--channels", "8", "--channel_mult", "1,2", "--head_channels", "8", "--image_size", "8", "--epochs", "12"]
OPTIONS += ["--num_vis", "1", "--sample_steps", "2", "--vis_interval_epochs", "4", "--flip", "--use_gpu", "-1"]
OPTIONS += ["--save_every_steps", "1", "--save_model_interval", "--save_model_interval_epochs", "2", "--keep", "2"]
ONE, TWO = ["--batch_size", "8"], ["--batch_size", "4", "--distributed", "--world_size", "2"]


def make_images(folder: Path) -> Path:
    """Two classes of the demo set, 30 images."""
    for name in ("bag", "boot"):
        (folder / "images" / name).mkdir(parents=True)
        for file in sorted((ROOT / "datasets/demo" / name).iterdir())[:15]:
            shutil.copy(file, folder / "images" / name)
    return folder / "images"


def argv(work: Path, name: str, two: bool, resume: bool) -> list[str]:
    place = ["--dataset_path", str(work / "images"), "--result_path", str(work / "results"), "--run_name", name]
    return [*place, *OPTIONS, *(TWO if two else ONE), *(["--resume"] if resume else [])]


def start(work: Path, name: str, two: bool, resume: bool) -> int:
    """Start a run as the leader of its own process group; its process number. One process is forked: quick."""
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


def disturb(work: Path, name: str, two: bool, resume: bool, chance: random.Random) -> str:
    """Start a run and kill it: "finished", "killed", "killed in a save" or "failed with ..."."""
    run = work / "results" / name
    for file in run.glob("*.tmp"):
        file.unlink()
    pid = start(work, name, two, resume)
    in_save = chance.random() < 0.6
    deadline = time.monotonic() + (60 if in_save else chance.uniform(0.3, 6 if two else 1.5))
    wanted = chance.randint(1, 12)  # the save to hit
    seen, there = 0, False
    while time.monotonic() < deadline:
        if (status := ended(pid)) is not None:
            return "finished" if status == 0 else f"failed with {status}"
        if in_save:
            before, there = there, (run / "ckpt_last.pt.tmp").exists() or (run / "ema_last.pt.tmp").exists()
            seen += there and not before
            if seen >= wanted and there:
                break
        time.sleep(0.0002 if in_save else 0.005)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)
    return "killed in a save" if any(run.glob("*.tmp")) else "killed"


def left_over(work: Path) -> int:
    """Processes that still name this soak's folder, a second after their group was killed."""
    for _ in range(50):
        count = 0
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                parts = (process / "cmdline").read_bytes().split(b"\0")
                count += int(process.name) != os.getpid() and str(work).encode() + b"/images" in parts
        if count == 0:
            return 0
        time.sleep(0.1)
    return count


def loadable(run: Path) -> bool:
    if not (run / "ckpt_last.pt").exists() and not (run / "ckpt_prev.pt").exists():
        return not (run / "metrics.csv").exists()  # killed before the first step
    with contextlib.redirect_stdout(None):
        try:
            run_folder.find_checkpoint(run, -1)
            return True
        except UserError:
            return False


def same(a: Path, b: Path) -> bool:
    """Whether two runs ended in the same weights, EMA, optimizer and losses, to the bit."""
    one, two = (checkpoint.read_checkpoint(run / "ckpt_last.pt") for run in (a, b))

    def equal(x, y) -> bool:
        if isinstance(x, torch.Tensor):
            return torch.equal(x, y)
        if isinstance(x, dict):
            return x.keys() == y.keys() and all(equal(x[key], y[key]) for key in x)
        return len(x) == len(y) and all(map(equal, x, y)) if isinstance(x, list) else x == y

    def losses(run: Path) -> list[str]:
        return [line.rsplit(",", 1)[0] for line in (run / "metrics.csv").read_text().splitlines()]

    parts = ("network", "ema", "optimizer", "state")
    return all(equal(one[part], two[part]) for part in parts) and losses(a) == losses(b)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    chance, end = random.Random(args.seed), time.monotonic() + 60 * args.minutes
    counts = dict.fromkeys(
        ("kills", "in a save", "groups", "runs", "mismatches", "unloadable", "failed", "left over"), 0
    )
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        make_images(work)
        for two in (False, True):
            pid = start(work, f"reference{two}", two, resume=False)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, "the undisturbed run failed"
        while time.monotonic() < end:
            two, name = counts["runs"] % 4 == 3, f"run{counts['runs']}"
            run, outcome = work / "results" / name, ""
            while outcome != "finished" and time.monotonic() < end + 120:
                resume = (run / "ckpt_last.pt").exists() or (run / "ckpt_prev.pt").exists()
                if not resume:
                    shutil.rmtree(run, ignore_errors=True)
                outcome = disturb(work, name, two, resume, chance)
                counts["kills"] += outcome.startswith("killed")
                counts["in a save"] += outcome == "killed in a save"
                counts["groups"] += two and outcome.startswith("killed")
                counts["left over"] += left_over(work) if two else 0
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
