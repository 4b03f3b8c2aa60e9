"""What the tests of the training half of the server share."""

import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType

from helpers import ROOT

from utils.serving.process_identity import ProcessIdentity, kill_group
from utils.serving.processes import Trainings
from utils.serving.run_state import Run
from utils.serving.safe_files import read_json
from utils.serving.training_form import TrainingForm

STUB = ROOT / "test" / "stub_training.py"
STUB_EVALUATION = ROOT / "test" / "stub_evaluation.py"
SCRIPT = ROOT / "tools" / "train.py"


@cache
def train_script() -> ModuleType:
    """tools/train.py as a module."""
    spec = importlib.util.spec_from_file_location("train", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def real_form(script: Path = SCRIPT) -> TrainingForm:
    """The form as tools/serve.py makes it; `script` is what it starts."""
    train = train_script()

    def check(arguments: list[str]) -> None:
        train.check(train.build_parser().parse_args(arguments))

    return TrainingForm(train.OPTIONS, script=script, check=check)


@contextmanager
def trainings_in(folder: Path, script: Path = STUB, **settings) -> Iterator[Trainings]:
    """Those of folder/results on folder/data, looked after until the end; runs are killed then."""
    trainings = Trainings(
        real_form(script), folder / "results", folder / "data", STUB_EVALUATION, **settings
    )
    trainings.start()
    try:
        yield trainings
    finally:
        trainings.close()
        end_all(folder / "results")


def end_all(results: Path) -> None:
    """Kill what the server has started and what still runs."""
    for file in [*results.glob("*/process.json"), *results.glob("*/evaluate.json")]:
        process = ProcessIdentity.from_dict(read_json(file.parent, file.name).get("process"))
        if process is not None and kill_group(process):
            wait_for(lambda process=process: not process.is_alive)


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.01)


def wait_for_state(trainings: Trainings, name: str, *states: str, seconds: float = 20) -> Run:
    """The run when it has one of these states."""
    end = time.monotonic() + seconds
    while True:
        run = trainings.find(name)
        if run.state in states:
            return run
        assert time.monotonic() < end, f"{name} is {run.state}: {run.error}"
        time.sleep(0.02)


def process_record(folder: Path) -> dict:
    return json.loads((folder / "process.json").read_text())


def start_by_hand(folder: Path, name: str, *flags: str, script: Path = STUB) -> subprocess.Popen:
    """A training as somebody starts it in a terminal."""
    place = [f"--run_name={name}", f"--dataset_path={folder / 'data' / 'images'}"]
    place += [f"--result_path={folder / 'results'}", *flags]
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    return subprocess.Popen([sys.executable, str(script), *place], **quiet)
