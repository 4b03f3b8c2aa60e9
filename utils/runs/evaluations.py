"""What a run measured of itself now and then: evaluations.jsonl, a line an evaluation."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

EVALUATIONS = "evaluations.jsonl"
DIGITS = 6  # of each number


@dataclass(frozen=True)
class Evaluation:
    """What was measured after `step` training steps, with the averaged weights."""

    step: int
    time_steps: list[int]  # t, from the least noisy to the noisiest; empty: no loss was measured
    held_out: np.ndarray  # (m, len(time_steps)): the loss of each held-out image
    training: np.ndarray  # (m, len(time_steps)): the same of as many training images
    scores: dict[str, float] = field(default_factory=dict)  # others, such as kid and kid_se

    @property
    def held_out_loss(self) -> float:
        """The mean over images and time steps."""
        return float(self.held_out.mean())

    def scalars(self) -> dict[str, float]:
        """What goes into metrics.csv and TensorBoard."""
        values: dict[str, float] = {}
        if self.time_steps:
            values["held_out_loss"] = self.held_out_loss
            values["training_loss"] = float(self.training.mean())
        for i, t in enumerate(self.time_steps):
            values[f"held_out_loss_t{t}"] = float(self.held_out[:, i].mean())
            values[f"training_loss_t{t}"] = float(self.training[:, i].mean())
        return values | self.scores

    def to_line(self) -> str:
        record = {
            "step": self.step,
            "time_steps": self.time_steps,
            "held_out": _rounded(self.held_out),
            "training": _rounded(self.training),
            "scores": self.scores,
        }
        return json.dumps(record) + "\n"

    @classmethod
    def from_line(cls, line: str) -> "Evaluation":
        """Raises ValueError, KeyError or TypeError for a line that is none."""
        record = json.loads(line)
        return cls(
            step=int(record["step"]),
            time_steps=[int(t) for t in record["time_steps"]],
            held_out=np.array(record["held_out"], float),
            training=np.array(record["training"], float),
            scores=dict(record["scores"]),
        )


def _rounded(values: np.ndarray) -> list[list[float]]:
    return [[float(f"{value:.{DIGITS}g}") for value in row] for row in values]


def read_evaluations(folder: Path) -> list[Evaluation]:
    """The evaluations of the run in this folder, by step. Lines that a kill cut short are left out.
    OSError where the file is there and cannot be read.
    """
    file = folder / EVALUATIONS
    if not file.exists():
        return []
    by_step: dict[int, Evaluation] = {}
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            evaluation = Evaluation.from_line(line)
        except (ValueError, KeyError, TypeError):
            continue
        by_step[evaluation.step] = evaluation
    return [by_step[step] for step in sorted(by_step)]


def append_evaluation(folder: Path, evaluation: Evaluation) -> None:
    """OSError where that cannot be written."""
    with open(folder / EVALUATIONS, "a", encoding="utf-8") as file:
        file.write(evaluation.to_line())


def cut_back_evaluations(folder: Path, step: int) -> list[Evaluation]:
    """Drop what was measured after `step`; returns the others. OSError where that fails."""
    kept = [evaluation for evaluation in read_evaluations(folder) if evaluation.step <= step]
    file = folder / EVALUATIONS
    if file.exists():
        temporary = file.with_suffix(".tmp")
        temporary.write_text("".join(each.to_line() for each in kept), encoding="utf-8")
        os.replace(temporary, file)
    return kept
