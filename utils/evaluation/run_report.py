"""The verdict on a run, read from its folder: also while it trains, and after a kill."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.evaluation.verdict import (
    SIGNIFICANT,
    Circumstances,
    Verdict,
    gap_between,
    judge,
    sentence,
)
from utils.runs.evaluations import Evaluation, read_evaluations
from utils.runs.files import read_checkpoint
from utils.runs.names import BEST_SLIM, CONFIG, EVALUATIONS, STATUS
from utils.runs.safeguards import reason
from utils.training.length import twice_as_long

MOST_ROWS = 25  # of the table; more evaluations are thinned out


@dataclass(frozen=True)
class RunReport:
    """A run's evaluations and what they say."""

    path: Path
    state: str  # running, finished, stopped, failed; or "unknown"
    step: int
    total_steps: int
    evaluations: list[Evaluation]
    verdict: Verdict
    circumstances: Circumstances
    remarks: list[str]

    @property
    def sentence(self) -> str:
        return sentence(self.verdict, self.circumstances)

    def lines(self) -> list[str]:
        """For people."""
        state = "running, or cut off" if self.state == "running" else self.state
        lines = [f"run         {self.path}: step {self.step:,} of {self.total_steps:,}, {state}"]
        if self.evaluations:
            lines += ["", *self._table(), ""]
        lines += [f"warning: {remark}" for remark in self.remarks]
        return [*lines, self.sentence]

    def _table(self) -> list[str]:
        has_kid = any("kid" in each.scores for each in self.evaluations)
        has_psnr = any("psnr" in each.scores for each in self.evaluations)
        has_loss = any(each.time_steps for each in self.evaluations)
        head = f"{'step':>10}"
        if has_loss:
            head += f"{'held-out loss':>16}{'training loss':>16}{'difference':>13}"
        if has_kid:
            head += f"{'1000 x KID':>22}"
        if has_psnr:
            head += f"{'PSNR':>12}{'SSIM':>10}"
        rows = [head]
        for each in thinned(self.evaluations):
            row = f"{each.step:>10,}"
            if has_loss:
                row += _loss_cells(each)
            if "kid" in each.scores:
                kid, error = (1000 * each.scores[name] for name in ("kid", "kid_se"))
                row += f"{f'{kid:.2f} +- {error:.2f}':>22}"
            if "psnr" in each.scores:
                row += f"{each.scores['psnr']:>9.2f} dB{each.scores.get('ssim', math.nan):>10.4f}"
            rows.append(row + ("  best" if each.step == self.verdict.best_step else ""))
        return rows

    def to_dict(self) -> dict:
        """For programs."""
        return {
            "run": str(self.path),
            "state": self.state,
            "step": self.step,
            "total_steps": self.total_steps,
            "verdict": self.verdict.to_dict(),
            "sentence": self.sentence,
            "best_file": BEST_SLIM if self.circumstances.best_file else None,
            "evaluations": [{"step": each.step, **each.scalars()} for each in self.evaluations],
            "warnings": self.remarks,
        }


def _loss_cells(evaluation: Evaluation) -> str:
    if not evaluation.time_steps:
        return " " * 45
    gap, z = gap_between(evaluation)
    mark = "*" if abs(z) > SIGNIFICANT else " "
    training = float(evaluation.training.mean())
    return f"{evaluation.held_out_loss:>16.5f}{training:>16.5f}{gap:>+12.1%}{mark}"


def thinned(evaluations: list[Evaluation]) -> list[Evaluation]:
    """Some of many: the last one is among them."""
    every = math.ceil(len(evaluations) / MOST_ROWS)
    return evaluations[::-1][::every][::-1] if every else []


def read_run(path: Path) -> RunReport:
    """The report on the run in this folder. Raises UserError where it holds none."""
    config = _dict(_read_json(path / CONFIG, path), "config")
    status = _read_json(path / STATUS, path) if (path / STATUS).exists() else {}
    try:
        evaluations, damaged = read_evaluations(path)
    except OSError as error:
        raise UserError(f"{path / EVALUATIONS} cannot be read: {reason(error)}") from None
    last = evaluations[-1].step if evaluations else 0
    length = _dict(config, "length")
    total_steps = _whole(length.get("total_steps"), last)
    step = max(last, _whole(status.get("step"), last))
    verdict = judge(evaluations)
    remarks = [f"{damaged} damaged lines of {EVALUATIONS} are left out"] if damaged else []
    best_file, remark = _best_file(path, verdict)
    if remark:
        remarks.append(remark)
    circumstances = Circumstances(
        kind=str(_read_json(path / CONFIG, path).get("kind", "diffusion")),
        best_file=best_file,
        twice_as_long=twice_as_long(_whole(length.get("epochs"), 1), _minutes(length)),
        is_finished=step >= total_steps,
        holds_out=bool(_dict(_dict(config, "data"), "held_out").get("images")),
    )
    return RunReport(
        path=path,
        state=str(status.get("state", "unknown")),
        step=step,
        total_steps=total_steps,
        evaluations=evaluations,
        verdict=verdict,
        circumstances=circumstances,
        remarks=remarks,
    )


def _read_json(file: Path, run: Path) -> dict:
    if not run.is_dir():
        raise UserError(f"{run} is no folder; name a run's folder, <result_path>/<run_name>")
    try:
        contents = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{run} is no folder of a run: there is no {file.name} in it; a run's folder is "
            "<result_path>/<run_name> of train.py"
        ) from None
    except OSError as error:
        raise UserError(f"{file} cannot be read: {reason(error)}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is damaged: {error}") from None
    if not isinstance(contents, dict):
        raise UserError(f"{file} is damaged: it holds no JSON object")
    return contents


def _dict(values: dict, name: str) -> dict:
    found = values.get(name)
    return found if isinstance(found, dict) else {}


def _whole(value: Any, default: int) -> int:
    return value if type(value) is int else default


def _minutes(length: dict) -> float | None:
    """The minutes that a run was to last; None for one of epochs."""
    minutes = length.get("minutes")
    return minutes if isinstance(minutes, float) and math.isfinite(minutes) else None


def _best_file(path: Path, verdict: Verdict) -> tuple[Path | None, str]:
    """The file with the weights of the best step; None and a remark where it holds others."""
    if verdict.best_step is None:
        return None, ""
    file = path / BEST_SLIM
    try:
        state = read_checkpoint(file).get("state", {})
    except UserError as error:
        return None, str(error)
    step = state.get("step") if isinstance(state, dict) else None
    if step == verdict.best_step:
        return file, ""
    return None, (
        f"{file} is of step {step}, but the best one by the evaluations is of step "
        f"{verdict.best_step}: the run went back to an earlier epoch, or could not write it"
    )
