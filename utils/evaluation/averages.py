"""EMAs of any length, put together after training from the snapshots of a run."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from model.ema import weights_of_snapshots
from utils.errors import UserError
from utils.runs.checkpoint import Checkpoint
from utils.runs.files import read_checkpoint, save_checkpoint
from utils.runs.names import AVERAGES, CHOSEN, SLIM


@dataclass(frozen=True)
class Snapshot:
    """An average that a run kept."""

    file: Path
    step: int
    length: float


def snapshots_of(run: Path) -> list[Snapshot]:
    """The snapshots of a run, up to the step of its ema_last.pt. Raises UserError for none."""
    files = sorted((run / AVERAGES).glob("step_*.pt"))
    if not files:
        raise UserError(
            f"{run / AVERAGES} holds no averages: train with --ema_snapshots 8 to keep some"
        )
    last = Checkpoint.read(run / SLIM).state["step"]
    found = []
    for file in files:
        contents = read_checkpoint(file)
        step = contents["state"]["step"]
        if step <= last:  # later ones are left from a run that was taken back
            lengths = sorted(float(length) for length in contents["averages"])
            found += [Snapshot(file, step, length) for length in lengths]
    if not found:
        raise UserError(f"the averages in {run / AVERAGES} are all of steps after {SLIM}'s")
    return found


def average_of(snapshots: Iterable[Snapshot], length: float) -> dict[str, Tensor]:
    """The weights of the average of this length at the last snapshot's step.

    Whole numbers among them (counts) are those of the last snapshot.
    """
    snapshots = list(snapshots)
    step = max(snapshot.step for snapshot in snapshots)
    shares = weights_of_snapshots([(each.step, each.length) for each in snapshots], length, step)
    total: dict[str, Tensor] = {}
    for snapshot, share in zip(snapshots, shares, strict=True):
        weights = read_checkpoint(snapshot.file)["averages"][str(snapshot.length)]
        for name, value in weights.items():
            if not value.is_floating_point():
                total[name] = value
                continue
            part = share * value.double()
            total[name] = part if name not in total else total[name] + part
    return {
        name: value.float() if value.dtype == torch.float64 else value
        for name, value in total.items()
    }


def with_average(checkpoint: Checkpoint, weights: dict[str, Tensor], length: float) -> Checkpoint:
    """A checkpoint for generation with this average."""
    checkpoint.ema = weights
    training = {**checkpoint.config.get("training", {}), "ema_length": length, "ema_decay": None}
    checkpoint.config["training"] = training
    return checkpoint


def write_chosen(run: Path, weights: dict[str, Tensor], length: float) -> Path:
    """Write ema_chosen.pt into the run's folder: ema_last.pt with another average."""
    contents = with_average(Checkpoint.read(run / SLIM), weights, length).to_dict()
    contents = {name: value for name, value in contents.items() if value is not None}
    file = run / CHOSEN
    save_checkpoint(contents, file)
    return file
