"""The server's half with tools/train.py itself, on real images with a tiny network."""

import json
import os
import signal
import subprocess
import sys

import pytest
from helpers import ROOT, copy_some, metrics
from training_helpers import SCRIPT, process_record, trainings_in, wait_for, wait_for_state

from utils.runs.files import read_checkpoint
from utils.serving.processes import Trainings
from utils.serving.refusal import Refusal
from utils.serving.training_plan import Planner

pytestmark = [pytest.mark.serve, pytest.mark.slow]

TINY = {
    "channels": 8,
    "channel_mult": [1, 2],
    "head_channels": 8,
    "image_size": 8,
    "batch_size": 4,
    "num_vis": 1,
    "sample_steps": 3,
    "vis_interval_epochs": 5,
    "use_gpu": -1,
}
LONG = {**TINY, "epochs": 100_000}
SECONDS = 120

SERVER = f"""
import os, sys
from pathlib import Path
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "test")!r}]
from training_helpers import real_form, wait_for_state
from utils.serving.processes import Trainings
folder = Path(sys.argv[1])
script = folder / "none.py"
trainings = Trainings(real_form(), folder / "results", folder / "data", script)
trainings.enqueue("a", "images", {LONG})
wait_for_state(trainings, "a", "running", seconds={SECONDS})
os._exit(0)
"""


@pytest.fixture
def folder(tmp_path):
    copy_some(tmp_path / "data" / "images")
    return tmp_path


def wait_for_step(trainings: Trainings, name: str, step: int) -> None:
    run = trainings.find(name)
    while (run.step or 0) < step:
        run = wait_for_state(trainings, name, "starting", "running", seconds=SECONDS)


def test_start_restart_of_the_server_stop_resume_finish(folder):
    server = subprocess.run([sys.executable, "-c", SERVER, str(folder)], timeout=2 * SECONDS)
    assert server.returncode == 0
    with trainings_in(folder, SCRIPT) as trainings:
        assert trainings.find("a").state == "running"
        wait_for_step(trainings, "a", 20)
        trainings.stop("a")
        stopped = wait_for_state(trainings, "a", "stopped", seconds=SECONDS)
        last = stopped.folder / "ckpt_last.pt"
        assert read_checkpoint(last)["state"]["step"] == stopped.step
        assert stopped.options["image_size"] == "8,8" and stopped.dataset == "images"

        epochs = stopped.step // 4 + 3  # of 4 steps
        trainings.resume("a", {"epochs": epochs})
        finished = wait_for_state(trainings, "a", "finished", seconds=SECONDS)
        assert finished.step == finished.total_steps == 4 * epochs
        steps = [int(row["step"]) for row in metrics(finished.folder)]
        assert steps == list(range(1, 4 * epochs + 1))
        assert finished.previews and finished.has_weights
        assert str(folder) not in finished.sentence
        columns, _ = trainings.curves.of(finished.folder).read(10)
        assert columns["step"][-1] == finished.step and None not in columns["loss"]


def test_a_training_that_is_killed_goes_on_from_its_checkpoint(folder):
    with trainings_in(folder, SCRIPT) as trainings:
        trainings.enqueue("a", "images", {**LONG, "save_every_steps": 5})
        wait_for_step(trainings, "a", 30)
        run = trainings.find("a")
        os.kill(process_record(run.folder)["process"]["pid"], signal.SIGKILL)
        run = wait_for_state(trainings, "a", "interrupted", seconds=SECONDS)
        assert run.can_resume and json.loads((run.folder / "status.json").read_text())
        saved = read_checkpoint(run.folder / "ckpt_last.pt")["state"]["step"]
        assert saved > 0
        trainings.resume("a", {})
        wait_for_step(trainings, "a", run.step + 10)
        trainings.stop("a")
        stopped = wait_for_state(trainings, "a", "stopped", seconds=SECONDS)
        steps = [int(row["step"]) for row in metrics(stopped.folder)]
        assert steps == list(range(1, stopped.step + 1))  # none twice, none lost


def test_a_plan_is_the_scripts_own(folder):
    with trainings_in(folder, SCRIPT) as trainings:
        planner = Planner(trainings, seconds=SECONDS)
        plan = planner.plan("a", "images", {**TINY, "epochs": 2})
        assert "images      13 at 8,8" in plan.text and "8 = 2 epochs x 4" in plan.text
        assert any("steps are few" in warning for warning in plan.warnings)
        assert str(folder) not in plan.text and "from images" in plan.text
        with pytest.raises(Refusal, match="channels must be even") as refused:
            planner.plan("a", "images", {**TINY, "channels": 7})
        assert refused.value.status == 422
        with pytest.raises(Refusal) as late:
            Planner(trainings, seconds=0.1).plan("a", "images", TINY)
        assert late.value.status == 504
        assert [run.name for run in trainings.all()] == []


@pytest.mark.metrics
def test_an_evaluation_compares_generated_images_with_the_trained_ones(folder):
    with trainings_in(folder, SCRIPT) as trainings:
        trainings._evaluate_script = ROOT / "tools" / "evaluate.py"
        trainings.enqueue("a", "images", {**TINY, "epochs": 2})
        run = wait_for_state(trainings, "a", "finished", seconds=SECONDS)
        trainings.evaluate("a", 100, 5)
        with pytest.raises(Refusal, match="is running"):
            trainings.delete("a")
        wait_for(lambda: trainings.evaluation_of(run).state != "running", SECONDS)
        found = trainings.evaluation_of(run)
        assert (found.state, found.error) == ("finished", None)
        assert found.figures["n_real"] == 13 // 2  # the other half is for the floor
        assert found.figures["kid"] > 0
        trainings.delete("a")
