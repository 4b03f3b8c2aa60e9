"""tools/evaluate.py on a run's weights, as a process of its own, and what it found."""

import contextlib
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from utils.runs.names import BEST_SLIM, SLIM
from utils.serving.child_processes import ChildProcesses
from utils.serving.process_identity import ProcessIdentity
from utils.serving.run_facts import LONGEST_ERROR, last_error
from utils.serving.safe_files import (
    read_json,
    read_tail,
    stamp_of,
    whole_number,
    without_paths,
    write_json,
)

REQUEST = "evaluate.json"  # what was asked for, and of which process
RESULT = "evaluate_result.json"  # what the script writes
OUTPUT = "evaluate.txt"
RESULTS = "evaluate"  # folder of its images and its picture

RUNNING = "running"
FINISHED = "finished"
FAILED = "failed"

FIGURES = ("n", "n_real", "kid", "kid_se", "fd", "precision", "recall", "density", "coverage")


@dataclass(frozen=True)
class RunEvaluation:
    """An evaluation of a run's weights on request."""

    state: str
    started: float  # unix seconds
    num_images: int
    sample_steps: int
    file: str  # whose weights
    error: str | None = None
    figures: dict[str, float] | None = None
    floor: dict[str, float] | None = None  # the figures between two halves of the real images

    @property
    def is_alive(self) -> bool:
        return self.state == RUNNING


@dataclass(frozen=True)
class _Request:
    process: ProcessIdentity | None
    started: float
    num_images: int
    sample_steps: int
    file: str


def weights_to_evaluate(folder: Path) -> str | None:
    """The best weights of a run, or its last ones."""
    for name in (BEST_SLIM, SLIM):
        if stamp_of(folder / name) is not None:
            return name
    return None


def start_evaluation(
    folder: Path,
    script: Path,
    dataset: Path,
    file: str,
    num_images: int,
    sample_steps: int,
    options: Mapping[str, str],
    children: ChildProcesses,
) -> None:
    """Start the script. `options`: others of it, by name. The images of an earlier evaluation are
    removed. OSError where that fails.
    """
    shutil.rmtree(folder / RESULTS, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        (folder / RESULT).unlink()
    arguments = [
        str(dataset),
        f"--weight_path={folder / file}",
        f"--num_images={num_images}",
        f"--sample_steps={sample_steps}",
        f"--json={folder / RESULT}",
        f"--result_path={folder / RESULTS}",
    ]
    arguments += [f"--{name}={text}" for name, text in options.items()]
    process = children.start(folder, script, arguments, folder / OUTPUT, append=False)
    request = _Request(process, time.time(), num_images, sample_steps, file)
    write_json(asdict(request), folder / REQUEST)


def find_evaluation(folder: Path, roots: list[Path]) -> RunEvaluation | None:
    """The last evaluation that was asked for; None where there was none."""
    found = read_json(folder, REQUEST)
    request = _parsed(found)
    if request is None:
        return None
    running = RunEvaluation(
        RUNNING, request.started, request.num_images, request.sample_steps, request.file
    )
    if request.process is not None and request.process.is_alive:
        return running
    result = read_json(folder, RESULT)
    figures = _figures(result)
    if figures is None:
        sentence = last_error(read_tail(folder, OUTPUT)) or "the evaluation ended without a result"
        error = without_paths(sentence[:LONGEST_ERROR], roots)
        return replace(running, state=FAILED, error=error)
    floor = _figures(result.get("floor"))
    return replace(running, state=FINISHED, figures=figures, floor=floor)


def _parsed(found: dict) -> _Request | None:
    num_images, sample_steps = (
        whole_number(found.get(name)) for name in ("num_images", "sample_steps")
    )
    started, file = found.get("started"), found.get("file")
    if num_images is None or sample_steps is None or file not in (BEST_SLIM, SLIM):
        return None
    if not isinstance(started, int | float):
        return None
    process = ProcessIdentity.from_dict(found.get("process"))
    return _Request(process, float(started), num_images, sample_steps, file)


def _figures(result: object) -> dict[str, float] | None:
    """The figures among what the script wrote."""
    if not isinstance(result, dict):
        return None
    figures = {}
    for name in FIGURES:
        value = result.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            figures[name] = float(value)
    return figures or None
