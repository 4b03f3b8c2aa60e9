"""Stands in for tools/train.py in tests of what starts it: the same files, lock and signals, in
milliseconds. --epochs are its steps, of 20 ms each; what it does besides stands in its name.
"""

import fcntl
import json
import os
import signal
import sys
import time
from pathlib import Path

STEP_SECONDS = 0.02


def main() -> int:
    options = dict(flag.removeprefix("--").split("=", 1) for flag in sys.argv[1:])
    run = Path(options["result_path"]) / options["run_name"]
    print("stdin:", repr(sys.stdin.read()), "leads its session:", os.getsid(0) == os.getpid())
    if options.get("plan") == "True":
        print(f"images      3 from {options['dataset_path']}\nwarning:    too few")
        return 0
    if "refuses" in run.name:
        print(f"error: {options['dataset_path']}/bag/1.png cannot be read", file=sys.stderr)
        return 2
    stopped: list[int] = []
    kept = signal.SIG_IGN if "deaf" in run.name else lambda number, _: stopped.append(number)
    signal.signal(signal.SIGTERM, kept)
    (run / "samples").mkdir(parents=True, exist_ok=True)
    lock = open(run / ".lock", "a")
    fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return train(run, options, stopped)


def train(run: Path, options: dict[str, str], stopped: list[int]) -> int:
    total = int(options.get("epochs", "25"))
    record = {"dataset_path": options["dataset_path"], "epochs": total, "global_batch": 4}
    contents = {"kind": "diffusion", "args": record, "config": {"length": {"total_steps": total}}}
    (run / "config.json").write_text(json.dumps(contents))
    done = 0
    if options.get("resume") == "True":
        done = int((run / "ckpt_last.pt").read_text())
    else:
        (run / "metrics.csv").write_text("step,epoch,loss,images_per_second\n")
    write_status(run, "running", done, total)
    while done < total and not stopped:
        time.sleep(STEP_SECONDS)
        done += 1
        with open(run / "metrics.csv", "a") as file:
            file.write(f"{done},{done},{1 / done},100\n")
        (run / "ckpt_last.pt.tmp").write_text(str(done))
        (run / "ckpt_last.pt.tmp").replace(run / "ckpt_last.pt")  # it may be killed at any time
        (run / "ema_last.pt").write_text(str(done))
    write_status(run, "stopped" if stopped else "finished", done, total)
    return 128 + stopped[0] if stopped else 0


def write_status(run: Path, state: str, step: int, total: int) -> None:
    temporary = run / "status.json.tmp"
    sentence = f"It is done: {run}/ema_last.pt"
    verdict = {"kind": "done", "best_step": step}
    temporary.write_text(
        json.dumps(
            {
                "state": state,
                "step": step,
                "total_steps": total,
                "sentence": sentence,
                "verdict": verdict,
            }
        )
    )
    temporary.replace(run / "status.json")


if __name__ == "__main__":
    sys.exit(main())
