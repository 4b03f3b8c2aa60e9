"""Trainings that the server starts, and that do not depend on it. A stub stands in for
tools/train.py; the script itself is trained with in test_training_processes.py.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import ROOT, copy_some
from training_helpers import (
    STUB,
    STUB_EVALUATION,
    end_all,
    process_record,
    real_form,
    start_by_hand,
    trainings_in,
    wait_for,
    wait_for_state,
)

from utils.errors import UserError
from utils.serving.process_identity import ProcessIdentity, identity_of
from utils.serving.processes import Trainings
from utils.serving.refusal import Refusal

LONG = {"epochs": 100_000}
SHORT = {"epochs": 3}

# A server that starts what it is told to, and is then killed.
SERVER = f"""
import os, signal, sys
from pathlib import Path
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "test")!r}]
from training_helpers import STUB_EVALUATION, real_form, STUB, wait_for_state
from utils.serving.processes import Trainings
folder = Path(sys.argv[1])
trainings = Trainings(real_form(STUB), folder / "results", folder / "data", STUB_EVALUATION)
for name in sys.argv[2:]:
    trainings.enqueue(name, "images", {LONG})
wait_for_state(trainings, sys.argv[2], "running")
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    copy_some(tmp_path / "data" / "images")
    (tmp_path / "results").mkdir()
    return tmp_path


@pytest.fixture
def trainings(folder: Path):
    with trainings_in(folder, grace=0.3) as found:
        yield found


def refusal(call, *arguments) -> Refusal:
    with pytest.raises(Refusal) as refused:
        call(*arguments)
    return refused.value


# --- One run ---


def test_a_run_from_start_to_end(folder, trainings):
    run = trainings.enqueue("a", "images", SHORT)
    assert run.state in ("starting", "running") and run.can_stop and run.queue_position is None
    run = wait_for_state(trainings, "a", "finished")
    assert (run.step, run.total_steps, run.progress) == (3, 3, 1.0)
    assert (run.dataset, run.kind, run.can_resume, run.can_stop) == (
        "images",
        "diffusion",
        True,
        False,
    )
    assert (run.verdict, run.best_step, run.sentence) == ("done", 3, "It is done: a/ema_last.pt")
    assert [each.file for each in run.checkpoints] == ["ckpt_last.pt", "ema_last.pt"]
    assert abs(run.started - time.time()) < 60 and run.error is None
    output = (folder / "results" / "a" / "output.txt").read_text()
    assert "stdin: '' leads its session: True" in output
    wait_for(lambda: process_record(folder / "results" / "a")["exit_status"] == 0)


def test_a_stopped_run_saves_and_goes_on_with_its_options(trainings):
    trainings.enqueue("a", "images", LONG)
    run = wait_for_state(trainings, "a", "running")
    wait_for(lambda: (trainings.find("a").step or 0) > 0)
    assert trainings.find("a").seconds_left > 0
    assert refusal(trainings.resume, "a", {}).code == "cannot_resume"
    run = trainings.stop("a")
    assert run.state in ("stopping", "stopped")
    stopped = wait_for_state(trainings, "a", "stopped")
    assert stopped.can_resume and stopped.step > 0
    assert refusal(trainings.stop, "a").code == "not_running"
    trainings.resume("a", {})
    wait_for_state(trainings, "a", "running")
    wait_for(lambda: trainings.find("a").step > stopped.step)
    assert trainings.find("a").total_steps == LONG["epochs"]
    trainings.stop("a")
    stopped = wait_for_state(trainings, "a", "stopped")
    trainings.resume("a", {"epochs": stopped.step + 2})  # other options, where some are given
    finished = wait_for_state(trainings, "a", "finished")
    assert finished.step == finished.total_steps == stopped.step + 2


def test_a_run_by_minutes_is_made_longer_by_minutes(folder, trainings):
    trainings.enqueue("a", "images", SHORT)
    wait_for_state(trainings, "a", "finished")
    file = folder / "results" / "a" / "config.json"
    config = json.loads(file.read_text())
    config["args"] |= {"epochs": None, "minutes": 8.0}  # as train.py writes it
    file.write_text(json.dumps(config))
    refused = refusal(trainings.resume, "a", {"epochs": 9})
    assert refused.status == 422 and "more minutes make it longer" in refused.message
    trainings.resume("a", {"minutes": 16})
    run = wait_for_state(trainings, "a", "finished")
    assert run.total_steps == 25  # the stand-in's, where it is told no epochs


def test_what_cannot_be_started_is_a_failed_run(folder, trainings):
    """Its images have gone while it waited."""
    trainings.enqueue("a", "images", LONG)
    wait_for_state(trainings, "a", "running")
    trainings.enqueue("b", "images", SHORT)
    assert trainings.find("b").state == "queued"
    shutil.rmtree(folder / "data" / "images")
    trainings.stop("a")
    run = wait_for_state(trainings, "b", "failed")
    assert "it could not be started" in run.error


def test_a_second_stop_kills_after_a_while(trainings):
    trainings.enqueue("deaf", "images", LONG)
    wait_for_state(trainings, "deaf", "running")
    asked = trainings.stop("deaf")
    assert asked.state == "stopping" and asked.kill_after > time.time()
    trainings.stop("deaf")  # too early: it changes nothing
    time.sleep(0.1)
    assert trainings.find("deaf").state == "stopping"
    wait_for(lambda: time.time() > asked.kill_after)
    trainings.stop("deaf")
    run = wait_for_state(trainings, "deaf", "interrupted")
    assert run.error == "the process was ended by SIGKILL" and run.can_resume
    trainings.resume("deaf", {})
    assert wait_for_state(trainings, "deaf", "running").error is None


def test_a_killed_run_is_interrupted_and_resumed(folder, trainings):
    trainings.enqueue("a", "images", LONG)
    wait_for_state(trainings, "a", "running")
    wait_for(lambda: (trainings.find("a").step or 0) > 0)
    wait_for((folder / "results" / "a" / "ckpt_last.pt").exists)  # it comes after the step
    os.kill(process_record(folder / "results" / "a")["process"]["pid"], signal.SIGKILL)
    run = wait_for_state(trainings, "a", "interrupted")
    assert json.loads((run.folder / "status.json").read_text())["state"] == "running"
    assert run.can_resume and not run.can_stop
    trainings.resume("a", {})
    wait_for_state(trainings, "a", "running")


@pytest.mark.parametrize("call", ["find", "all"])
def test_a_run_that_is_killed_while_it_is_looked_at(folder, trainings, monkeypatch, call):
    """After the ends of processes were noted, and before the state is found."""
    trainings.enqueue("a", "images", LONG)
    wait_for_state(trainings, "a", "running")
    process = ProcessIdentity.from_dict(process_record(folder / "results" / "a")["process"])
    look = getattr(trainings._runs, call)

    def killed_first(*arguments):
        if process.is_alive:
            os.kill(process.pid, signal.SIGKILL)
            wait_for(lambda: not process.is_alive)
        return look(*arguments)

    monkeypatch.setattr(trainings._runs, call, killed_first)
    run = trainings.find("a") if call == "find" else trainings.all()[0]
    assert (run.state, run.error) == ("interrupted", "the process was ended by SIGKILL")


def test_a_script_that_refuses_says_why(folder, trainings):
    trainings.enqueue("refuses", "images", SHORT)
    run = wait_for_state(trainings, "refuses", "failed")
    assert run.error == "images/bag/1.png cannot be read" and not run.can_resume
    assert str(folder) not in repr(run.error)
    trainings.enqueue("refuses", "images", SHORT)  # it has left nothing, so the name is free
    wait_for_state(trainings, "refuses", "failed")


def test_a_name_is_taken_once(trainings):
    trainings.enqueue("a", "images", SHORT)
    assert refusal(trainings.enqueue, "a", "images", SHORT).code == "run_exists"
    wait_for_state(trainings, "a", "finished")
    assert refusal(trainings.enqueue, "a", "images", SHORT).code == "run_exists"
    (trainings.results / "pictures").mkdir()  # of generate.py
    assert refusal(trainings.enqueue, "pictures", "images", SHORT).code == "run_exists"


def test_a_run_is_evaluated(trainings):
    trainings.enqueue("a", "images", SHORT)
    run = wait_for_state(trainings, "a", "finished")
    assert trainings.evaluation_of(run) is None
    trainings.evaluate("a", 100, 5)
    wait_for(lambda: trainings.evaluation_of(run).state != "running")
    found = trainings.evaluation_of(run)
    assert (found.state, found.figures, found.floor) == (
        "finished",
        {"n": 100, "kid": 0.25},
        {"kid": 0},
    )
    assert (found.num_images, found.sample_steps, found.file) == (100, 5, "ema_last.pt")
    images = trainings.results / "a/evaluate/evaluation/images"
    images.mkdir(parents=True)
    trainings.evaluate("a", 666, 5)
    assert not images.exists()  # of the evaluation before
    wait_for(lambda: trainings.evaluation_of(run).state != "running")
    found = trainings.evaluation_of(run)
    assert (found.state, found.error, found.figures) == (
        "failed",
        "images has too few images",
        None,
    )


# --- The queue ---


def test_one_after_the_other_in_order(folder, trainings):
    for name in ("a", "b", "c", "d"):
        trainings.enqueue(name, "images", LONG if name == "a" else SHORT)
    assert [trainings.find(name).queue_position for name in "abcd"] == [None, 0, 1, 2]
    assert [run.name for run in trainings.all()] == ["d", "c", "b", "a"]
    assert refusal(trainings.resume, "b", {}).code == "cannot_resume"
    assert refusal(trainings.stop, "b").code == "not_running"
    assert refusal(trainings.delete, "b").code == "is_queued"
    trainings.unqueue("c")
    assert refusal(trainings.find, "c").status == 404
    assert refusal(trainings.unqueue, "a").code == "not_queued"
    assert trainings.find("d").queue_position == 1
    time.sleep(1.5)  # more than one look at the queue
    assert [trainings.find(name).state for name in "bd"] == ["queued", "queued"]
    wait_for_state(trainings, "a", "running")
    trainings.stop("a")
    wait_for_state(trainings, "d", "finished")
    started = [process_record(folder / "results" / name)["started"] for name in "abd"]
    assert started == sorted(started)
    assert not (folder / "results" / "c").exists()


def test_several_at_once_and_not_too_many_waiting(folder):
    with trainings_in(folder, at_once=2, most_waiting=1) as trainings:
        for name in ("a", "b", "c"):
            trainings.enqueue(name, "images", LONG)
        states = [trainings.find(name).state for name in "abc"]
        assert states[2] == "queued" and "queued" not in states[:2]
        assert refusal(trainings.enqueue, "d", "images", LONG).status == 429
        for name in ("a", "b"):
            wait_for_state(trainings, name, "running")


def test_the_queue_survives_its_server(folder):
    with trainings_in(folder) as trainings:
        for name, options in (("a", LONG), ("b", SHORT), ("c", SHORT)):
            trainings.enqueue(name, "images", options)
        trainings.close()
        end_all(folder / "results")
    with trainings_in(folder) as trainings:
        assert trainings.find("a").state == "interrupted"
        for name in ("b", "c"):
            assert wait_for_state(trainings, name, "finished").total_steps == 3
        started = [process_record(folder / "results" / name)["started"] for name in "bc"]
        assert started == sorted(started)


def test_a_queue_that_cannot_be_written_is_said(folder, trainings):
    trainings.enqueue("a", "images", LONG)
    blocker = folder / "results" / ".serving" / "queue.json.tmp"
    blocker.mkdir()
    refused = refusal(trainings.enqueue, "b", "images", SHORT)
    assert refused.status == 500 and str(folder) not in refused.message
    assert refusal(trainings.find, "b").status == 404
    blocker.rmdir()
    trainings.enqueue("b", "images", SHORT)


def test_what_was_started_just_before_its_server_was_killed_is_not_started_again(folder):
    """The process runs, but its entry is still in the queue."""
    with trainings_in(folder) as trainings:
        trainings.enqueue("a", "images", LONG)
        wait_for_state(trainings, "a", "running")
        trainings.close()
        before = process_record(folder / "results" / "a")
        entry = {"name": "a", "dataset": "images", "options": {"epochs": "3"}, "since": 1.0}
        queue = folder / "results" / ".serving" / "queue.json"
        queue.write_text(json.dumps({"waiting": [entry]}))
        with trainings_in(folder, at_once=2) as later:
            wait_for(lambda: later.find("a").queue_position is None)
            assert later.find("a").state == "running"
            assert process_record(folder / "results" / "a") == before


# --- Servers come and go ---


def test_runs_do_not_depend_on_their_server(folder):
    server = subprocess.run([sys.executable, "-c", SERVER, str(folder), "a", "b"], timeout=60)
    assert server.returncode == -signal.SIGKILL
    with trainings_in(folder, grace=0.3) as trainings:
        run = trainings.find("a")
        assert run.state == "running" and run.can_stop
        wait_for(lambda: trainings.find("a").step > run.step)
        assert trainings.find("b").state == "queued"
        trainings.stop("a")
        wait_for_state(trainings, "a", "stopped")
        wait_for_state(trainings, "b", "running")


def test_a_folder_of_results_has_one_server(folder):
    code = SERVER.replace(
        "for name in", 'print("up", flush=True)\nimport time\ntime.sleep(60)\nfor name in'
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(folder), "a"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout.readline() == "up\n"
        with pytest.raises(UserError, match="another server"):
            Trainings(real_form(STUB), folder / "results", folder / "data", STUB_EVALUATION)
    finally:
        other.kill()
        other.wait()
    with trainings_in(folder):
        pass


def test_a_number_that_was_given_to_another_process(folder, trainings):
    """The machine was restarted, or much time has passed: no phantom, and nobody is signalled."""
    trainings.enqueue("a", "images", LONG)
    wait_for_state(trainings, "a", "running")
    wait_for(lambda: (trainings.find("a").step or 0) > 0)
    record_file = folder / "results" / "a" / "process.json"
    os.kill(process_record(record_file.parent)["process"]["pid"], signal.SIGKILL)
    wait_for_state(trainings, "a", "interrupted")
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        now = identity_of(bystander.pid)
        for process in (
            ProcessIdentity(now.pid, "1", now.boot),
            ProcessIdentity(now.pid, now.started, "another start of the machine"),
        ):
            record = process_record(record_file.parent)
            record |= {"process": process.to_dict(), "exit_status": None}
            record_file.write_text(json.dumps(record))
            run = trainings.find("a")
            assert run.state == "interrupted" and not run.can_stop and run.can_resume
            assert refusal(trainings.stop, "a").code == "not_running"
        time.sleep(0.2)
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


# --- Runs of others ---


def test_a_run_that_was_started_in_a_terminal(folder, trainings):
    by_hand = start_by_hand(folder, "theirs", "--epochs=100000")
    try:
        wait_for(lambda: (folder / "results" / "theirs" / "status.json").exists())
        run = wait_for_state(trainings, "theirs", "running")
        assert run.can_stop and run.dataset == "images"
        assert refusal(trainings.delete, "theirs").code == "is_running"
        assert trainings.enqueue("a", "images", SHORT).state == "queued"  # one at a time
        assert trainings.stop("theirs").state in ("stopping", "stopped")
        assert by_hand.wait(10) == 128 + signal.SIGTERM
    finally:
        by_hand.kill()
        by_hand.wait()
    assert wait_for_state(trainings, "theirs", "stopped").can_resume
    wait_for_state(trainings, "a", "finished")
    trainings.resume("theirs", {})
    wait_for_state(trainings, "theirs", "running")


def test_a_run_on_images_that_are_not_served_is_not_resumed(folder, trainings):
    shutil.copytree(folder / "data" / "images", folder / "elsewhere")
    by_hand = start_by_hand(
        folder, "theirs", "--epochs=3", f"--dataset_path={folder / 'elsewhere'}"
    )
    assert by_hand.wait(20) == 0
    run = trainings.find("theirs")
    assert (run.state, run.dataset, run.can_resume) == ("finished", None, False)
    assert "not in the data folder" in refusal(trainings.resume, "theirs", {}).message


@pytest.mark.parametrize(
    ("file", "contents"),
    [
        ("status.json", b'{"state": "runn'),
        ("status.json", b'{"state": ["running"], "step": -1, "total_steps": "many", "verdict": 3}'),
        (
            "status.json",
            b'{"state": "finished", "step": 1e999, "verdict": {"kind": {}, "best_step": NaN}}',
        ),
        (
            "config.json",
            b'{"kind": "diffusion", "args": [], "config": {"length": {"total_steps": true}}}',
        ),
        (
            "config.json",
            b'{"kind": "diffusion", "args": {"dataset_path": "/etc/\\u0000", "lr": {}}}',
        ),
        ("metrics.csv", b"step,epoch\n1"),
        ("process.json", b'{"process": {"pid": 1, "started": "", "boot": ""}, "started": "now"}'),
        ("process.json", b"\xff\xfe\x00"),
        ("evaluate.json", b'{"process": [], "started": 1, "num_images": -3, "file": "../../x"}'),
    ],
)
def test_what_a_run_folder_holds_may_be_damaged(folder, trainings, file, contents):
    run = folder / "results" / "a"
    run.mkdir()
    (run / "config.json").write_text('{"kind": "diffusion"}')
    (run / file).write_bytes(contents)
    found = trainings.find("a")
    assert found.state in ("interrupted", "failed", "finished")
    assert trainings.evaluation_of(found) is None
    texts = [found.error, found.sentence, found.dataset, found.verdict, *found.options]
    json.dumps([found.step, found.progress, found.total_steps, *texts], allow_nan=False)
    assert [each.name for each in trainings.all()] == ["a"]


# --- What leads elsewhere ---


@pytest.mark.parametrize(
    "name", ["..", ".", ".serving", "a/b", "../data", "a\0", "\udcff", "", "x" * 300]
)
def test_hostile_names(trainings, name):
    assert refusal(trainings.enqueue, name, "images", SHORT).status == 422
    assert refusal(trainings.enqueue, "a", name, SHORT).status == 404
    for call in (trainings.find, trainings.stop, trainings.delete, trainings.unqueue):
        assert refusal(call, name).status == 404
    assert sorted(path.name for path in trainings.results.iterdir()) == [".serving"]


def test_a_queue_that_somebody_else_has_written(folder):
    outside = folder / "outside"
    outside.mkdir()
    own = folder / "results" / ".serving"
    own.mkdir()
    good = {"name": "a", "dataset": "images", "options": {"epochs": "3"}, "since": 1.0}
    hostile = [
        {**good, "name": "../outside"},
        {**good, "name": str(outside)},
        {**good, "name": ".."},
        {**good, "name": "b", "dataset": "../../etc"},
        {**good, "name": "c", "options": {"result_path": str(outside)}},
        {**good, "name": "d", "options": {"epochs": "1 --plan"}},
        {**good, "name": 7},
        None,
        good,
        {**good, "options": {"epochs": "4"}},  # the second of that name
    ]
    (own / "queue.json").write_text(json.dumps({"waiting": hostile}))
    with trainings_in(folder) as trainings:
        assert wait_for_state(trainings, "a", "finished").total_steps == 3
        for name in ("b", "c", "d"):  # nobody is left without a word
            wait_for_state(trainings, name, "failed")
        assert {run.name for run in trainings.all()} == {"a", "b", "c", "d"}
    assert list(outside.iterdir()) == []


def test_links_are_no_runs_and_no_data(folder, trainings):
    outside = folder / "outside"
    copy_some(outside / "images")
    (outside / "config.json").write_text('{"kind": "diffusion"}')
    (folder / "results" / "linked").symlink_to(outside)
    (folder / "data" / "linked").symlink_to(outside / "images")
    assert trainings.all() == [] and trainings.data.names() == ["images"]
    assert refusal(trainings.delete, "linked").status == 404
    assert refusal(trainings.enqueue, "a", "linked", SHORT).status == 404
    assert refusal(trainings.enqueue, "linked", "images", SHORT).code == "run_exists"
    assert (outside / "config.json").exists()


def test_deleting_stays_within_the_run(folder, trainings):
    outside = folder / "outside"
    outside.mkdir()
    (outside / "precious").write_text("precious")
    trainings.enqueue("a", "images", LONG)
    wait_for_state(trainings, "a", "running")
    assert refusal(trainings.delete, "a").code == "is_running"
    assert (folder / "results" / "a" / "status.json").exists()
    trainings.stop("a")
    wait_for_state(trainings, "a", "stopped")
    wait_for(lambda: not trainings.find("a").is_alive)
    (folder / "results" / "a" / "samples" / "link").symlink_to(outside)
    trainings.delete("a")
    assert refusal(trainings.find, "a").status == 404
    assert not (folder / "results" / "a").exists()
    assert (outside / "precious").read_text() == "precious"
    pictures = folder / "results" / "pictures"  # a folder that is no run
    pictures.mkdir()
    assert refusal(trainings.delete, "pictures").status == 404 and pictures.exists()
    trainings.enqueue("a", "images", SHORT)  # the name is free again
    wait_for_state(trainings, "a", "finished")


def test_nothing_here_imports_torch():
    code = "import sys, utils.serving.processes; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0
