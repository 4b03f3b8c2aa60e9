"""What the files of a run folder are called. Standard library only: for whatever watches runs."""

import re
from collections.abc import Iterable
from pathlib import Path

LAST = "ckpt_last.pt"  # resumes
PREVIOUS = "ckpt_prev.pt"  # the one before
SLIM = "ema_last.pt"  # for generation only
BEST = "ckpt_best.pt"  # the best so far, by the run's criterion
BEST_SLIM = "ema_best.pt"
CHOSEN = "ema_chosen.pt"  # another average, by choose_ema.py
METRICS = "metrics.csv"
POSITION = ("step", "epoch")  # its columns that say where a row belongs
EVALUATIONS = "evaluations.jsonl"
STATUS = "status.json"
CONFIG = "config.json"
LOG = "log.txt"
SAMPLES = "samples"
AVERAGES = "averages"
LOCK = ".lock"

NUMBERED = re.compile(r"ckpt_(0|[1-9][0-9]{0,14})\.pt")
PREVIEW = re.compile(r"epoch_([0-9]{4,15})\.(\w+)")


def averages_name(step: int) -> str:
    """The file name of the averages of a step."""
    return f"step_{step:09d}.pt"


def step_of_averages(name: str) -> int | None:
    """The step of the averages in a file of this name; None for another file."""
    found = re.fullmatch(r"step_(\d+)\.pt", name)
    return None if found is None else int(found[1])


def is_of_a_run(name: str) -> bool:
    """Whether a file of weights has one of the names that every run's files have."""
    return name in (LAST, PREVIOUS, SLIM, BEST, BEST_SLIM, CHOSEN) or bool(NUMBERED.fullmatch(name))


def can_be_resumed(path: Path) -> bool:
    """Whether an earlier run has left a checkpoint that --resume takes without --start_epoch."""
    return any((path / name).exists() for name in (LAST, PREVIOUS))


def holds_a_run(path: Path) -> bool:
    """Whether an earlier run has left metrics or weights of any kind in the folder, which a new run
    would write over.
    """
    names = (LAST, PREVIOUS, METRICS, SLIM, BEST, BEST_SLIM, CHOSEN)
    if any((path / name).exists() for name in names):
        return True
    kept = [file.name for file in path.glob("ckpt_*.pt")]
    averages = [file.name for file in (path / AVERAGES).glob("*")]
    return bool(epochs_of(kept)) or any(step_of_averages(name) is not None for name in averages)


def preview_name(epoch: int) -> str:
    """The file name of a preview, without its ending."""
    return f"epoch_{epoch:04d}"


def numbered_name(epoch: int) -> str:
    """The file name of a checkpoint that is kept under its epoch's number."""
    return f"ckpt_{epoch}.pt"


def epochs_of(names: Iterable[str]) -> list[int]:
    """The epochs of the checkpoints among these file names, ascending."""
    matches = [NUMBERED.fullmatch(name) for name in names]
    return sorted(int(match[1]) for match in matches if match)
