"""Nothing is lost and every run can be repeated: resume, its controls, and what must not change the
weights.
"""

import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from helpers import ROOT, TINY, assert_equal_states, metrics, wait_for_step
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from model import networks
from tools import train as train_script
from utils import devices
from utils.data import StepSampler
from utils.generation import load_for_inference
from utils.runs.files import read_checkpoint, save_checkpoint
from utils.training import length, recipe, run, run_length
from utils.training.stepping import Stepping

EVERYTHING = [
    "--num_workers",
    "2",
    "--grad_accum",
    "2",
    "--batch_size",
    "2",
    "--flip",
    "--dropout",
    "0.2",
]
EVERYTHING += ["--augment", "0.3", "--balance", "--ema_snapshots", "4"]
EVERYTHING += ["--vis_interval_epochs", "1", "--save_every_steps", "1", "--log_interval", "3"]


def train(images, results, name, *options, status=0, tiny=TINY):
    """train.py in this process; returns what it printed."""
    argv = [
        "--dataset_path",
        str(images),
        *tiny,
        "--run_name",
        name,
        "--result_path",
        str(results),
        "--use_gpu",
        "-1",
    ]
    with contextlib.redirect_stdout(io.StringIO()) as out, pytest.raises(SystemExit) as stop:
        train_script.main([*argv, *map(str, options)])
    assert stop.value.code == status, out.getvalue()
    return out.getvalue()


def rows(run):
    return [
        {key: value for key, value in row.items() if key != "images_per_second"}
        for row in metrics(run)
    ]


def start(images, results, name, *options, script="tools/train.py", env=None):
    command = [
        sys.executable,
        str(ROOT / script),
        "--dataset_path",
        str(images),
        *TINY,
        "--use_gpu",
        "-1",
    ]
    command += ["--run_name", name, "--result_path", str(results), *map(str, options)]
    return subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=results.parent,
        env={**os.environ, **(env or {})},
        start_new_session=True,
    )


@pytest.mark.parametrize(
    ("extra", "kills"),
    [
        (EVERYTHING, [(5, 4), (8, 7), (8, 7)]),  # killed after a step: the step of the last save
        pytest.param(EVERYTHING, [(6, 5), (7, 6), (8, 7)], marks=pytest.mark.fault),
        pytest.param(
            ["--vis", "False", "--save_every_steps", "2", "--log_interval", "1"],
            [(5, 4), (7, 6), (8, 6), (8, 6)],
            marks=pytest.mark.fault,
        ),
    ],
    ids=["everything", "everything-again", "bare"],
)
def test_kill_9_and_resume_changes_nothing(images, tmp_path, extra, kills):
    """Resumed at the end of epoch 1 and inside epoch 2 (4 steps each), then equal to an undisturbed
    run, to the bit.
    """
    results, options = tmp_path / "results", [*extra, "--epochs", "4"]
    for name in ("whole", "again"):
        whole = start(images, results, name, *options)
        assert whole.wait(120) == 0, whole.stderr.read()
    assert_equal_states(
        results / "whole/ckpt_last.pt", results / "again/ckpt_last.pt"
    )  # two fresh runs, first of all
    run = results / "cut"
    for kill_at, saved in kills:
        resume = ["--resume"] if run.exists() else []
        env = {"KILL_AT_STEP": str(kill_at)}
        process = start(
            images, results, "cut", *options, *resume, script="test/helper_kill.py", env=env
        )
        assert process.wait(60) == -signal.SIGKILL, process.stderr.read()
        assert read_checkpoint(run / "ckpt_last.pt")["state"]["step"] == saved
    last = start(images, results, "cut", *options, "--resume")
    assert last.wait(120) == 0, last.stderr.read()
    assert_equal_states(results / "whole/ckpt_last.pt", run / "ckpt_last.pt")
    assert rows(results / "whole") == rows(run)  # every step once, with its loss
    events = EventAccumulator(str(run), {"scalars": 0}).Reload()
    assert [event.step for event in events.Scalars("loss")] == list(range(1, 17))


def test_a_batch_that_was_split_for_memory_stays_so(images, tmp_path, monkeypatch):
    """The same as in one pass, up to rounding; and the same to the bit where more memory is free
    when the run is resumed.
    """
    place = TINY.index("--batch_size")
    tiny = [*TINY[:place], *TINY[place + 2 :], "--optim", "sgd", "--dropout", "0"]

    def versions(name):
        return read_checkpoint(tmp_path / name / "ckpt_last.pt")["versions"]

    train(images, tmp_path, "at_once", "--epochs", 4, tiny=tiny)
    assert (versions("at_once")["batch_size"], versions("at_once")["grad_accum"]) == (32, 1)
    little = 2e6  # bytes
    monkeypatch.setattr(run, "free_memory", lambda device, processes: little)
    said = train(images, tmp_path, "whole", "--epochs", 4, tiny=tiny)
    passes = versions("whole")["grad_accum"]
    assert passes > 1 and versions("whole")["batch_size"] * passes == 32
    assert f"32 images per step in {passes} passes of {32 // passes}, as" in said
    assert_equal_states(tmp_path / "at_once/ckpt_last.pt", tmp_path / "whole/ckpt_last.pt", 1e-4)

    train(images, tmp_path, "cut", "--epochs", 2, "--lr_func", "constant", tiny=tiny)
    train(images, tmp_path, "straight", "--epochs", 4, "--lr_func", "constant", tiny=tiny)
    monkeypatch.undo()
    for options in (["--epochs", 3], ["--epochs", 4, "--preset", "tiny"]):
        options += ["--lr_func", "constant", "--resume"]
        assert "up to rounding" not in train(images, tmp_path, "cut", *options, tiny=tiny)
    assert_equal_states(tmp_path / "straight/ckpt_last.pt", tmp_path / "cut/ckpt_last.pt")


def test_a_spoiled_restore_is_noticed(images, tmp_path, monkeypatch):
    """The controls: each part of a checkpoint, spoiled, changes the end of the run. So the tests
    above can fail.
    """
    half = devices.Precision(torch.float16, torch.device("cpu"))
    monkeypatch.setattr(run, "choose_precision", lambda amp, device: (half, ""))
    options = [
        "--epochs",
        3,
        "--flip",
        "--vis",
        "False",
        "--save_model_interval",
        "--save_model_interval_epochs",
        1,
    ]
    train(images, tmp_path, "whole", *options)
    end, middle = tmp_path / "whole/ckpt_last.pt", tmp_path / "whole/ckpt_2.pt"

    def spoil(name):
        contents = read_checkpoint(middle)
        if name == "ema":
            contents["ema"] = contents["network"]
        elif name == "optimizer":
            contents["optimizer"]["state"] = {}
        elif name == "scaler":
            contents["scaler"]["scale"] /= 4
        elif name == "step":
            contents["state"]["step"] -= 1
        elif name == "seed":
            contents["state"]["seed"] += 1
        return contents

    def ends_alike(name, contents):
        folder = tmp_path / name
        shutil.copytree(tmp_path / "whole", folder)
        (folder / "ckpt_last.pt").unlink()
        save_checkpoint(contents, folder / "ckpt_last.pt")
        train(images, tmp_path, name, *options, "--resume", "--seed", contents["state"]["seed"])
        try:
            assert_equal_states(end, folder / "ckpt_last.pt")
        except AssertionError:
            return False
        return True

    assert ends_alike("unspoiled", spoil(None))
    assert {
        name: ends_alike(name, spoil(name))
        for name in ("ema", "optimizer", "scaler", "step", "seed")
    } == {
        "ema": False,
        "optimizer": False,
        "scaler": False,
        "step": False,
        "seed": False,
    }
    # the sixth: the data position, which follows from the step
    original = StepSampler.__iter__
    monkeypatch.setattr(StepSampler, "__iter__", lambda self: iter([*list(original(self))[1:], 0]))
    assert not ends_alike("position", spoil(None))


def test_what_must_not_change_the_weights(images, tmp_path):
    options = ["--epochs", 2, "--flip", "--dropout", 0.2]
    train(images, tmp_path, "plain", *options)
    variants = {
        "workers": ["--num_workers", 2],
        "no-previews": ["--vis", "False"],
        "previews": ["--vis_interval_epochs", 1, "--num_vis", 3, "--sample", "ddpm"],
        "saves": [
            "--save_every_steps",
            1,
            "--save_model_interval",
            "--save_model_interval_epochs",
            1,
        ],
        "logs": ["--log_interval", 3],
    }
    for name, extra in variants.items():
        train(images, tmp_path, name, *options, *extra)
        assert_equal_states(tmp_path / "plain/ckpt_last.pt", tmp_path / name / "ckpt_last.pt")
        assert rows(tmp_path / "plain") == rows(tmp_path / name)


def test_resume_with_changed_settings(images, tmp_path, capsys):
    options = ["--epochs", 1]
    train(images, tmp_path, "a", *options)

    def refused(*extra):
        with pytest.raises(train_script.opt.UserError) as error:
            train(images, tmp_path, "a", "--resume", "--epochs", 2, *extra)
        return str(error.value)

    assert "global_batch 4 before, 8 now; --allow_changes" in refused("--batch_size", 8)
    assert "noise_schedule cosine before, linear now" in refused("--noise_schedule", "linear")
    assert "lr 0.0015 before, 0.01 now" in refused("--lr", 0.01)
    assert "seed 0 before, 1 now" in refused("--seed", 1)
    assert "grad_accum': 2" in train(
        images, tmp_path, "a", "--resume", "--batch_size", 2, "--grad_accum", 2, *options
    )
    first = next(images.rglob("*.png"))
    first.write_bytes(next(path for path in images.rglob("*.png") if path != first).read_bytes())
    assert "the images" in refused()
    train(images, tmp_path, "a", "--resume", "--epochs", 2, "--allow_changes", "--lr", 0.01)
    assert read_checkpoint(tmp_path / "a/ckpt_last.pt")["state"]["step"] == 8
    train(
        images,
        tmp_path,
        "a",
        "--resume",
        "--epochs",
        2,
        "--allow_changes",
        "--lr",
        0.01,
        "--seed",
        1,
    )
    assert read_checkpoint(tmp_path / "a/ckpt_last.pt")["state"]["seed"] == 1
    train(images, tmp_path, "a", "--resume", "--epochs", 2, "--allow_changes", "--lr", 0.01)
    assert "finished" in train(images, tmp_path, "a", "--resume", "--epochs", 2, "--lr", 0.01)
    for key, value in (("torch", "1.0"), ("threads", 99), ("device", "cuda")):
        contents = read_checkpoint(tmp_path / "a/ckpt_last.pt")
        contents["versions"][key] = value
        save_checkpoint(contents, tmp_path / "a/ckpt_last.pt")
        out = train(images, tmp_path, "a", "--resume", "--epochs", 2, "--lr", 0.01)
        assert re.search(f"warning: .*'{key}': '?{value}", out) and "finished" in out


def test_resume_with_another_optimizer_or_fewer_epochs(images, tmp_path):
    """The settings of this run count, not those in the checkpoint; state of another kind of
    optimizer is left out.
    """
    train(images, tmp_path, "a", "--epochs", 1)
    options = ["--resume", "--allow_changes", "--epochs"]
    train(images, tmp_path, "a", *options, 2, "--weight_decay", 0.5)
    group = read_checkpoint(tmp_path / "a/ckpt_last.pt")["optimizer"]["param_groups"][0]
    assert group["weight_decay"] == 0.5
    train(images, tmp_path, "a", *options, 3, "--optim", "sgd")
    train(images, tmp_path, "a", *options, 4, "--optim", "adam")
    with pytest.raises(train_script.opt.UserError, match="has done 16 steps; --epochs 1 is only 4"):
        train(images, tmp_path, "a", *options, 1, "--optim", "adam")


def test_a_run_killed_before_its_first_checkpoint_starts_anew(images, tmp_path):
    run = tmp_path / "a"
    (run / "samples").mkdir(parents=True)
    (run / "config.json").write_text("{}")
    (run / "ckpt_last.pt.tmp").write_bytes(b"half")
    with pytest.raises(train_script.opt.UserError, match="leave --resume out to start"):
        train(images, tmp_path, "a", "--epochs", 1, "--resume")
    train(images, tmp_path, "a", "--epochs", 1)
    assert read_checkpoint(run / "ckpt_last.pt")["state"]["step"] == 4


def test_resume_makes_up_for_what_a_kill_left_out(images, tmp_path):
    """Killed after ckpt_last.pt and before the other files: they come with the next start, of a
    finished run too.
    """
    options = ["--epochs", 3, "--save_model_interval", "--save_model_interval_epochs", 1]
    train(images, tmp_path, "a", *options)
    run = tmp_path / "a"
    slim, numbered = run / "ema_last.pt", run / "ckpt_3.pt"
    grid = (run / "samples/epoch_0003.png").read_bytes()
    save_checkpoint({"format_version": 1, "ema": {}}, slim)
    numbered.unlink()
    (run / "samples/epoch_0003.png").unlink()
    assert "finished" in train(images, tmp_path, "a", *options, "--resume")
    last = read_checkpoint(run / "ckpt_last.pt")
    assert all(
        torch.equal(last["ema"][key], read_checkpoint(slim)["ema"][key]) for key in last["ema"]
    )
    assert_equal_states(run / "ckpt_last.pt", numbered)
    assert (run / "samples/epoch_0003.png").read_bytes() == grid


def test_killed_after_going_back_to_an_earlier_epoch(images, tmp_path):
    """The last checkpoint and the metrics are of the same run from the first moment."""
    options = [
        "--epochs",
        "3",
        "--save_model_interval",
        "--save_model_interval_epochs",
        "1",
        "--log_interval",
        "1",
    ]
    train(images, tmp_path, "a", *options)
    before = rows(tmp_path / "a")
    back = [*options, "--resume", "--start_epoch", "1"]
    process = start(
        images, tmp_path, "a", *back, script="test/helper_kill.py", env={"KILL_AT_STEP": "7"}
    )
    assert process.wait(60) == -signal.SIGKILL
    assert read_checkpoint(tmp_path / "a/ckpt_last.pt")["state"]["step"] == 4
    train(images, tmp_path, "a", *options, "--resume")
    assert rows(tmp_path / "a") == before


def test_an_error_ends_a_run_with_workers(images, tmp_path):
    """The workers ignore signals, so that a run can save; they must not keep it from ending."""
    process = start(
        images, tmp_path, "a", *EVERYTHING, script="test/helper_kill.py", env={"FAIL_AT_STEP": "3"}
    )
    assert process.wait(30) == 1 and "an error on purpose" in process.stderr.read()
    assert read_checkpoint(tmp_path / "a/ckpt_last.pt")["state"]["step"] == 2


def test_a_name_that_is_not_utf_8(images, tmp_path):
    (images / "bag").rename(images / os.fsdecode(b"caf\xe9"))
    (images / "boot" / os.fsdecode(b"\xe9.png")).write_bytes(b"broken")
    assert "caf\\xe9, trouser" in train(images, tmp_path, "a", "--epochs", 1)
    assert (
        read_checkpoint(tmp_path / "a/ema_last.pt")["config"]["data"]["class_names"][1]
        == "caf\\xe9"
    )


def test_another_signal_during_the_last_save_does_no_harm(images, tmp_path):
    options = ["--epochs", "5000", "--vis", "False", "--log_interval", "1"]
    env = {"SLOW_SAVE": "0.6"}
    process = start(images, tmp_path, "a", *options, script="test/helper_kill.py", env=env)
    wait_for_step(tmp_path / "a", 3)
    for _ in range(4):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
    assert process.wait(60) == 128 + signal.SIGTERM, process.stderr.read()
    state = read_checkpoint(tmp_path / "a/ckpt_last.pt")["state"]
    assert state["step"] == int(metrics(tmp_path / "a")[-1]["step"])


def test_ctrl_c_with_workers_saves(images, tmp_path):
    """As a terminal sends it: to the whole process group, the workers that read images too."""
    options = [*EVERYTHING, "--epochs", "5000", "--vis", "False", "--log_interval", "1"]
    process = start(images, tmp_path / "results", "a", *options)
    wait_for_step(tmp_path / "results/a", 3)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) == 128 + signal.SIGINT, process.stderr.read()
    state = read_checkpoint(tmp_path / "results/a/ckpt_last.pt")["state"]
    assert state["step"] == int(metrics(tmp_path / "results/a")[-1]["step"])


def test_numbered_checkpoints_are_bounded(images, tmp_path):
    options = [
        "--epochs",
        5,
        "--save_model_interval",
        "--save_model_interval_epochs",
        1,
        "--keep",
        2,
        "--vis",
        "False",
    ]
    train(images, tmp_path, "a", *options)
    assert sorted(path.name for path in (tmp_path / "a").glob("ckpt_?.pt")) == [
        "ckpt_4.pt",
        "ckpt_5.pt",
    ]


def test_short_epochs_are_not_saved_each(images, tmp_path, monkeypatch):
    """And what was done since the last save is done again, as it was."""
    options = ["--batch_size", 16, "--vis", False]
    train(images, tmp_path, "each", *options, "--epochs", 12)
    monkeypatch.setattr(length, "SAVED_BYTES_PER_SECOND", 1e5)  # of a disk that takes long
    out = train(images, tmp_path, "few", *options, "--epochs", 12)
    epochs = int(re.search(r"written every ([\d,]+) epochs", out)[1].replace(",", ""))
    saved = range(0, 12, epochs)
    each, few = tmp_path / "each", tmp_path / "few"
    assert read_checkpoint(few / "ckpt_prev.pt")["state"]["step"] == saved[-1]
    shutil.copy(few / "ckpt_prev.pt", few / "ckpt_last.pt")  # as a kill before the end leaves it
    train(images, tmp_path, "few", *options, "--epochs", 12, "--resume")
    assert_equal_states(each / "ckpt_last.pt", few / "ckpt_last.pt")
    assert rows(each) == rows(few)


def test_a_damaged_last_checkpoint_gives_way_to_the_previous_one(images, tmp_path):
    train(images, tmp_path, "whole", "--epochs", 3)
    train(images, tmp_path, "a", "--epochs", 2)
    last = tmp_path / "a/ckpt_last.pt"
    data = bytearray(last.read_bytes())
    data[len(data) // 3] ^= 16
    last.write_bytes(data)
    out = train(images, tmp_path, "a", "--epochs", 3, "--resume", "--allow_changes")
    assert re.search(
        r"warning: \S*ckpt_last.pt is damaged.*the run resumes from \S*ckpt_prev.pt", out
    )
    assert read_checkpoint(last)["state"]["step"] == 12


def test_a_run_of_some_minutes_is_resumed_with_the_steps_that_it_began_with(
    images, tmp_path, monkeypatch
):
    """They were measured once; a resumed run measures nothing, and equals an uninterrupted one."""
    options = ["--num_workers", 0, "--minutes", 8, "--save_model_interval"]
    options += ["--save_model_interval_epochs", 1, "--dropout", 0.2]
    monkeypatch.setattr(run_length, "steps_within", lambda *_: 7)  # epochs have 4
    out = train(images, tmp_path, "a", *options)
    assert "7 = 1.75 epochs of 4" in out
    assert read_checkpoint(tmp_path / "a/ckpt_last.pt")["config"]["length"]["minutes"] == 8
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b" / ".owner").unlink()

    def measure(*_):
        raise AssertionError("measured again")

    monkeypatch.setattr(run_length, "steps_within", measure)
    for name, more in (("b", ["--minutes", 8]), ("c", [])):
        if name == "c":
            shutil.copytree(tmp_path / "b", tmp_path / "c")
        train(images, tmp_path, name, *options[:2], "--dropout", 0.2, *more, "--resume")
        out = train(
            images,
            tmp_path,
            name,
            *options[:2],
            *options[4:],
            *more,
            "--resume",
            "--start_epoch",
            1,
        )
        assert "7 = 1.75 epochs of 4, 4 done" in out
        assert_equal_states(tmp_path / "a/ckpt_last.pt", tmp_path / name / "ckpt_last.pt")
        assert rows(tmp_path / "a") == rows(tmp_path / name)


def test_more_minutes_lengthen_a_run_and_epochs_stay_epochs(images, tmp_path, monkeypatch):
    monkeypatch.setattr(run_length, "steps_within", lambda *_: 6)
    train(images, tmp_path, "a", "--num_workers", 0, "--minutes", 2)
    out = train(images, tmp_path, "a", "--num_workers", 0, "--minutes", 3, "--resume")
    assert "9 = 2.25 epochs of 4, 6 done" in out and "previously 6" in out
    assert "has no effect" not in out
    out = train(images, tmp_path, "a", "--num_workers", 0, "--epochs", 50, "--resume")
    assert "--epochs 50 has no effect: the run is 3 minutes long" in out
    train(images, tmp_path, "b", "--num_workers", 0, "--epochs", 2)
    with pytest.raises(train_script.opt.UserError, match="--epochs may raise"):
        train(images, tmp_path, "b", "--num_workers", 0, "--minutes", 3, "--resume")


def test_another_network_is_not_offered_to_be_resumed(images, tmp_path):
    train(images, tmp_path, "a", "--num_workers", 0, "--epochs", 1)
    for options, advice in (
        (["--channels", 16], "its network is another one"),
        (["--weight_decay", 0.3], "--allow_changes resumes anyway"),
    ):
        with pytest.raises(train_script.opt.UserError, match=advice):
            train(images, tmp_path, "a", "--num_workers", 0, "--resume", *options)


def test_time_steps_by_equal_weights_are_refused_in_a_resumed_run_too(images, tmp_path):
    train(images, tmp_path, "a", "--num_workers", 0, "--epochs", 1, "--loss_weight", "uniform")
    options = ["--time_steps", "weighted", "--allow_changes", "--epochs", 2, "--resume"]
    with pytest.raises(train_script.opt.UserError, match="which is uniform"):
        train(images, tmp_path, "a", "--num_workers", 0, *options)


def test_a_network_as_the_documentation_writes_one_is_trained(images, tmp_path, monkeypatch):
    """Augmented, with classes and previews, timed for a plan, resumed, rebuilt from its file."""
    page = (ROOT / "docs/code.md").read_text(encoding="utf-8")
    example = page.partition("```python run\n")[2].partition("```")[0]
    for registry in (networks.DENOISERS, networks.NETWORKS):
        monkeypatch.setitem(registry, "plain", None)
        monkeypatch.delitem(registry, "plain")  # and after the test again
    found = {}
    exec(compile(example, "code.md", "exec"), found)
    for registry in (networks.DENOISERS, networks.NETWORKS):
        monkeypatch.setitem(registry, "cspdarkunet", found["Plain"])
    options = ["--network", "cspdarkunet", "--num_workers", 0, "--num_vis", 1]
    train(images, tmp_path, "a", *options, "--minutes", 1, "--plan", tiny=OF_A_PRESET)
    train(images, tmp_path, "a", *options, "--epochs", 1, "--augment", 0.5)
    said = train(images, tmp_path, "a", *options, "--epochs", 2, "--augment", 0.5, "--resume")
    assert "8 of 8 steps" in said or "step 8 of 8" in said
    network, *_ = load_for_inference(tmp_path / "a" / "ema_last.pt")
    assert type(network) is found["Plain"] and network.config["augmentation"] == 9
    with pytest.raises(train_script.opt.UserError, match="a Plain keeps all its activations"):
        train(images, tmp_path, "b", *options, "--checkpoint_activations", 0)


def test_a_bare_resume_keeps_the_sampler_and_what_saves_memory(images, tmp_path):
    """Other options on what is saved and drawn are those of each command, which is said."""
    given = ["--num_workers", 0, "--channels", 8, "--epochs", 1]
    given += ["--sample", "ddim", "--checkpoint_activations", 0, "--num_vis", 2]
    train(images, tmp_path, "a", *given)

    def settings():
        contents = read_checkpoint(tmp_path / "a" / "ema_last.pt")
        args = json.loads((tmp_path / "a/config.json").read_text())["args"]
        return contents["config"]["sampling"]["sampler"], args["checkpoint_activations"]

    assert settings() == ("ddim", [0])
    said = train(images, tmp_path, "a", "--num_workers", 0, "--epochs", 2, "--resume")
    assert settings() == ("ddim", [0])
    assert "changed are --num_vis 1 (2 before)" in said and "--sample" not in said
    said = train(images, tmp_path, "a", *given, "--epochs", 3, "--resume")
    assert "changed are --num_vis 2 (1 before)" in said
    said = train(images, tmp_path, "a", *given, "--epochs", 4, "--resume", "--sample", "plms")
    assert "changed are --sample plms (ddim before)" in said and settings()[0] == "plms"


def test_two_lengths_of_the_average(images, tmp_path):
    with pytest.raises(train_script.opt.UserError, match="leave one of them out"):
        train(images, tmp_path, "a", "--ema_length", 0.1, "--ema_decay", 0.99)
    train(images, tmp_path, "a", "--ema_decay", 0.99, "--epochs", 1)
    training = read_checkpoint(tmp_path / "a" / "ema_last.pt")["config"]["training"]
    assert training["ema_decay"] == 0.99 and training["ema_length"] is None
    train(images, tmp_path, "a", "--ema_decay", 0.99, "--epochs", 2, "--resume")
    train(images, tmp_path, "a", "--epochs", 3, "--resume")
    training = read_checkpoint(tmp_path / "a" / "ema_last.pt")["config"]["training"]
    assert training["ema_decay"] == 0.99 and training["ema_length"] is None
    with pytest.raises(train_script.opt.UserError, match="ema_decay 0.99 before, None now"):
        train(images, tmp_path, "a", "--ema_length", 0.2, "--epochs", 4, "--resume")


def test_a_checkpoint_of_an_earlier_version_that_has_both_is_resumed(images, tmp_path):
    train(images, tmp_path, "a", "--ema_decay", 0.99, "--epochs", 1)
    file = tmp_path / "a" / "ckpt_last.pt"
    for recorded in ({"ema_length": 0.1}, {}):
        contents = read_checkpoint(file)
        contents["config"]["training"].pop("ema_length")
        contents["config"]["training"] |= recorded
        save_checkpoint(contents, file)
        epochs = contents["state"]["epoch"] + 1
        train(images, tmp_path, "a", "--epochs", epochs, "--resume")


def test_a_resumed_run_has_as_many_epochs_as_before(images, tmp_path):
    train(images, tmp_path, "a", "--epochs", 3, "--save_model_interval")
    out = train(images, tmp_path, "a", "--resume")
    assert "12 = 3 epochs x 4, 12 done" in out and "previously" not in out
    out = train(images, tmp_path, "a", "--resume", "--epochs", 4)
    assert "16 = 4 epochs x 4, 12 done" in out
    assert "120 = 30 epochs x 4, 0 done" in train(images, tmp_path, "b", "--plan")


def test_a_resumed_run_warms_up_as_before(images, tmp_path):
    train(images, tmp_path, "a", "--epochs", 4, "--warmup_steps", 1)
    train(images, tmp_path, "a", "--resume")
    training = read_checkpoint(tmp_path / "a/ckpt_last.pt")["config"]["training"]
    assert training["warmup_steps"] == 1


def test_a_resumed_run_keeps_its_further_averages(images, tmp_path):
    train(images, tmp_path, "a", "--epochs", 2, "--ema_snapshots", 4)
    train(images, tmp_path, "a", "--epochs", 4, "--ema_snapshots", 4, "--resume")
    train(images, tmp_path, "b", "--epochs", 2, "--ema_snapshots", 4)
    train(images, tmp_path, "b", "--epochs", 4, "--resume")
    assert_equal_states(tmp_path / "a/ckpt_last.pt", tmp_path / "b/ckpt_last.pt")
    assert read_checkpoint(tmp_path / "b/ckpt_last.pt")["averages"]
    found = [sorted(path.name for path in (tmp_path / name).rglob("averages*")) for name in "ab"]
    assert found[0] == found[1] and found[0]
    train(images, tmp_path, "b", "--epochs", 5, "--ema_snapshots", 0, "--resume")
    assert not read_checkpoint(tmp_path / "b/ckpt_last.pt").get("averages")


OF_A_PRESET = ["--image_size", "8", "--num_vis", "1", "--sample_steps", "3", "--amp", "False"]


def test_a_preset_that_is_named_again_decides_nothing_anew(images, tmp_path, monkeypatch):
    def settings():
        contents = read_checkpoint(tmp_path / "a/ckpt_last.pt")
        return contents["config"]["network"], contents["config"]["training"]

    named = ["--preset", "tiny"]
    first = train(
        images, tmp_path, "a", *named, "--epochs", 1, "--ema_decay", 0.9, tiny=OF_A_PRESET
    )
    assert "preset      tiny (" in first
    before = settings()
    assert before[1]["augment"] > 0  # there are few images
    monkeypatch.setattr(recipe, "FEW_IMAGES", 5)  # as if more had been added
    for epochs, options in ((2, [*named, "--ema_decay", 0.9]), (3, named), (4, [])):
        out = train(
            images, tmp_path, "a", *options, "--epochs", epochs, "--resume", tiny=OF_A_PRESET
        )
        assert "preset      tiny, as before" in out and settings() == before
        assert json.loads((tmp_path / "a/config.json").read_text())["args"]["preset"] == "tiny"
    with pytest.raises(train_script.opt.UserError, match="--preset small is another network"):
        train(images, tmp_path, "a", "--preset", "small", "--resume", tiny=OF_A_PRESET)


def test_what_is_timed_for_the_choice_keeps_as_little_as_the_run(images, tmp_path, monkeypatch):
    seen = []

    def seconds(self, state, task, dataset):
        seen.append(len(state.network.checkpointed))
        return 0.01

    monkeypatch.setattr(Stepping, "seconds", seconds)
    levels = ["--checkpoint_activations", "0", "--minutes", 1, "--plan"]
    train(images, tmp_path, "a", *levels, tiny=OF_A_PRESET)
    assert len(seen) > 1 and min(seen) > 0


def test_what_is_left_open_is_as_before_in_a_resumed_run(images, tmp_path):
    """Also where the preset would decide otherwise by now."""
    given = ["--num_workers", 0, "--lr", 0.003, "--optim", "adamw", "--loss_weight", "uniform"]
    given += ["--norm_groups", 4, "--time_embedding", "additive", "--ema_length", 0.2]
    train(images, tmp_path, "a", *given, "--epochs", 3)
    train(
        images,
        tmp_path,
        "b",
        *given,
        "--epochs",
        3,
        "--save_model_interval",
        "--save_model_interval_epochs",
        1,
    )
    train(images, tmp_path, "b", "--num_workers", 0, "--epochs", 3, "--resume", "--start_epoch", 1)
    assert_equal_states(tmp_path / "a/ckpt_last.pt", tmp_path / "b/ckpt_last.pt")
    assert rows(tmp_path / "a") == rows(tmp_path / "b")


def test_a_file_from_elsewhere_that_leaves_options_of_its_network_out(images, tmp_path):
    """Each has a default."""
    train(images, tmp_path, "a", "--num_workers", 0, "--epochs", 1, "--time_embedding", "additive")
    file = tmp_path / "a" / "ckpt_last.pt"
    contents = read_checkpoint(file)
    del contents["config"]["network"]["time_embedding"]
    save_checkpoint(contents, file)
    train(images, tmp_path, "a", "--num_workers", 0, "--epochs", 2, "--resume")
    assert read_checkpoint(file)["state"]["epoch"] == 2
