"""What a run measured of itself now and then: evaluations.jsonl, a line an evaluation."""

import contextlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from utils.runs.names import EVALUATIONS

DIGITS = 6  # of each number

# Beside losses: of generated images their KID and its standard error; of restored ones PSNR and
# SSIM, and where they were enlarged, the same of bicubic interpolation.
SCORES = ("kid", "kid_se", "psnr", "ssim", "bicubic_psnr", "bicubic_ssim")


@dataclass(frozen=True)
class Evaluation:
    """What was measured after `step` training steps, with the averaged weights.

    Two evaluations compare where they have the same `measure`, and then image by image, by the
    images' numbers.
    """

    step: int
    # t, from the least noisy to the noisiest; [0] where nothing is noised; empty: no loss measured
    time_steps: list[int]
    held_out: np.ndarray  # (m, len(time_steps)): the loss of each held-out image
    training: np.ndarray  # (m, len(time_steps)): the same of as many training images
    scores: dict[str, float] = field(default_factory=dict)  # others, by the names in SCORES
    measure: str = ""  # a digest of all that a loss depends on, but for the network and the image
    held_out_images: list[int] = field(default_factory=list)  # (m,) the numbers of the images
    training_images: list[int] = field(default_factory=list)  # (m,)
    convention: str = ""  # of PSNR and SSIM

    @property
    def held_out_loss(self) -> float:
        """The mean over images and time steps."""
        return float(self.held_out.mean())

    @property
    def is_finite(self) -> bool:
        values = [*self.held_out.flat, *self.training.flat, *self.scores.values()]
        return bool(np.isfinite(values).all())

    def scalars(self) -> dict[str, float]:
        """What goes into metrics.csv and TensorBoard."""
        values: dict[str, float] = {}
        if self.time_steps:
            values["held_out_loss"] = self.held_out_loss
            values["training_loss"] = float(self.training.mean())
        levels = self.time_steps if len(self.time_steps) > 1 else []
        for i, t in enumerate(levels):
            values[f"held_out_loss_t{t}"] = float(self.held_out[:, i].mean())
            values[f"training_loss_t{t}"] = float(self.training[:, i].mean())
        return values | self.scores

    def to_line(self) -> str:
        record = asdict(self) | {
            "held_out": _rounded(self.held_out),
            "training": _rounded(self.training),
        }
        return json.dumps(record) + "\n"

    @classmethod
    def from_line(cls, line: str) -> "Evaluation":
        """Raises ValueError, KeyError, TypeError, OverflowError or RecursionError for a line that
        is none.
        """
        record = json.loads(line)
        time_steps = [int(t) for t in record["time_steps"]]
        evaluation = cls(
            step=int(record["step"]),
            time_steps=time_steps,
            held_out=_table(record["held_out"], len(time_steps)),
            training=_table(record["training"], len(time_steps)),
            scores={name: float(value) for name, value in record["scores"].items()},
            measure=str(record["measure"]),
            held_out_images=[int(number) for number in record["held_out_images"]],
            training_images=[int(number) for number in record["training_images"]],
            convention=str(record.get("convention", "")),
        )
        evaluation.check()
        return evaluation

    def check(self) -> None:
        """Raise ValueError for what no run has measured."""
        counts = (len(self.held_out), len(self.training))
        if counts != (len(self.held_out_images), len(self.training_images)):
            raise ValueError("each loss needs the number of its image")
        if self.time_steps and 0 in counts:
            raise ValueError("there are time steps, but no losses")
        unknown = [name for name in self.scores if name not in SCORES]
        if unknown or ("kid" in self.scores) != ("kid_se" in self.scores):
            raise ValueError(f"the scores are {SCORES}, not {sorted(self.scores)}")
        if self.step < 1 or not self.is_finite:
            raise ValueError("a step or a loss makes no sense")


def _table(rows: list, columns: int) -> np.ndarray:
    """(m, columns). Raises ValueError for rows of another length."""
    table = np.array(rows, float)
    if len(rows) == 0:
        return np.empty((0, columns))
    if table.ndim != 2 or table.shape[1] != columns:
        raise ValueError(f"{table.shape} losses for {columns} time steps")
    return table


def _rounded(values: np.ndarray) -> list[list[float]]:
    return [[float(f"{value:.{DIGITS}g}") for value in row] for row in values]


def read_evaluations(folder: Path) -> tuple[list[Evaluation], int]:
    """The evaluations of the run in this folder, by step, and the number of damaged lines, which a
    kill cut short. OSError where the file is there and cannot be read.
    """
    file = folder / EVALUATIONS
    if not file.exists():
        return [], 0
    by_step: dict[int, Evaluation] = {}
    damaged = 0
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            evaluation = Evaluation.from_line(line)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            damaged += 1
            continue
        by_step[evaluation.step] = evaluation
    return [by_step[step] for step in sorted(by_step)], damaged


def append_evaluation(folder: Path, evaluation: Evaluation) -> None:
    """Add a line. OSError where that cannot be written; then the file is as it was."""
    file = folder / EVALUATIONS
    size = file.stat().st_size if file.exists() else 0
    try:
        with open(file, "a", encoding="utf-8") as stream:
            stream.write(evaluation.to_line())
    except OSError:
        with contextlib.suppress(OSError):
            os.truncate(file, size)
        raise


def evaluations_up_to(folder: Path, step: int) -> list[Evaluation]:
    """What was measured up to `step`. OSError where the file is there and cannot be read."""
    return [evaluation for evaluation in read_evaluations(folder)[0] if evaluation.step <= step]


def cut_back_evaluations(folder: Path, step: int) -> None:
    """Drop what was measured after `step`. OSError where that fails."""
    kept = evaluations_up_to(folder, step)
    file = folder / EVALUATIONS
    if file.exists():
        temporary = file.with_suffix(".tmp")
        temporary.write_text("".join(each.to_line() for each in kept), encoding="utf-8")
        os.replace(temporary, file)
