"""train.py through its command line, as a user calls it, on real images."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from helpers import DEMO, ROOT, TINY, assert_equal_states, copy_some, metrics, wait_for_step
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from utils.data import StepSampler, load_image_set
from utils.runs.files import read_checkpoint


def test_a_run_leaves_all_that_it_promises(script, images, tmp_path):
    options = [
        "--dataset_path",
        images,
        *TINY,
        "--run_name",
        "a",
        "--epochs",
        3,
        "--vis_interval_epochs",
        2,
    ]
    options += [
        "--save_model_interval",
        "--save_model_interval_epochs",
        1,
        "--start_model_interval",
        2,
    ]
    out = script("train", *options).stdout
    run = tmp_path / "results" / "a"
    for text in [
        "13 at 8,8, grey",
        "3: bag, boot, trouser",
        "M parameters",
        "12 = 3 epochs x 4",
        "s per step",
        "MB",
    ]:
        assert text in out
    assert all(line in (run / "log.txt").read_text() for line in out.splitlines())
    expected = {
        ".lock",
        ".owner",
        "ckpt_last.pt",
        "ckpt_prev.pt",
        "ema_last.pt",
        "ckpt_2.pt",
        "ckpt_3.pt",
        "config.json",
        "status.json",
    }
    found = {path.name for path in run.iterdir() if not path.name.startswith("events.")}
    assert found == expected | {"log.txt", "metrics.csv", "samples"}
    assert sorted(path.name for path in (run / "samples").iterdir()) == [
        "epoch_0002.png",
        "epoch_0003.png",
    ]
    assert (
        Image.open(run / "samples" / "epoch_0003.png").size[1] >= 3 * 64
    )  # a row per class, enlarged to be seen
    config = json.loads((run / "config.json").read_text())
    assert config["args"]["epochs"] == 3 and config["config"]["data"]["class_names"] == [
        "bag",
        "boot",
        "trouser",
    ]

    rows = metrics(run)
    assert [int(row["step"]) for row in rows] == list(range(1, 13)) and [
        row["epoch"] for row in rows[3:5]
    ] == [
        "1",
        "2",
    ]
    assert all(
        float(row["loss"]) > 0 and float(row["grad_norm"]) > 0 and float(row["lr"]) > 0
        for row in rows
    )
    events = EventAccumulator(str(run), {"scalars": 0, "images": 0}).Reload()
    assert {"loss", "lr", "grad_norm", "images_per_second", "loss_q1", "loss_q4"} <= set(
        events.Tags()["scalars"]
    )
    logged = [event.value for event in events.Scalars("loss")]
    assert logged == pytest.approx([float(row["loss"]) for row in rows], rel=1e-6)
    assert len(events.Images("samples")) == 2

    contents, slim = read_checkpoint(run / "ckpt_last.pt"), read_checkpoint(run / "ema_last.pt")
    assert contents["state"] == {"epoch": 3, "step": 12, "seed": 0}
    assert (
        contents["config"]["network"]["num_classes"] == 3
        and contents["config"]["diffusion"]["prediction"] == "v"
    )
    assert "network" not in slim and all(
        torch.equal(slim["ema"][key], contents["ema"][key]) for key in slim["ema"]
    )
    assert any(
        (contents["ema"][key] - contents["network"][key]).abs().max() > 0 for key in contents["ema"]
    )
    assert not any(key.startswith(("module.", "_orig_mod.")) for key in contents["network"])


def test_resume_goes_on_from_the_exact_state(script, images, tmp_path):
    """Three epochs at once, and one, killed by SIGTERM inside the second, resumed: bit for bit the
    same.
    """
    options = [
        "--dataset_path",
        images,
        *TINY,
        "--epochs",
        3,
        "--log_interval",
        1,
        "--dropout",
        0.2,
        "--flip",
    ]
    results = tmp_path / "results"
    script("train", *options, "--run_name", "whole")
    command = [
        sys.executable,
        ROOT / "tools/train.py",
        *options,
        "--run_name",
        "cut",
        "--result_path",
        results,
    ]
    command = [str(part) for part in [*command, "--use_gpu", "-1"]]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for_step(results / "cut", 2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    step = read_checkpoint(results / "cut" / "ckpt_last.pt")["state"]["step"]
    assert step >= 2
    script("train", *options, "--run_name", "cut", "--resume")
    assert_equal_states(results / "whole" / "ckpt_last.pt", results / "cut" / "ckpt_last.pt")
    columns = ("step", "loss", "lr", "grad_norm")
    one, two = (
        [[row[key] for key in columns] for row in metrics(results / name)]
        for name in ("whole", "cut")
    )
    assert one == two
    # finished: says so, changes nothing; more epochs go on
    assert "finished" in script("train", *options, "--run_name", "cut", "--resume").stdout
    script("train", *options, "--run_name", "cut", "--resume", "--epochs", 4)
    assert len(metrics(results / "cut")) == 16


def test_what_is_not_set_is_as_before(script, images, tmp_path):
    """The shift of the noise too, of which no preset knows."""
    options = ["--dataset_path", images, *TINY, "--vis", "False", "--noise_schedule", "flow"]
    for name, shift in (("a", 3), ("b", 1)):
        script("train", *options, "--epochs", 1, "--noise_shift", shift, "--run_name", name)
        script("train", *options, "--epochs", 2, "--run_name", name, "--resume")
        saved = read_checkpoint(tmp_path / "results" / name / "ckpt_last.pt")
        assert saved["config"]["diffusion"].get("noise_shift", 1.0) == shift
        assert saved["state"]["epoch"] == 2
    other = ["--epochs", 3, "--noise_shift", 2, "--run_name", "a", "--resume"]
    assert "noise_shift 3.0 before, 2.0 now" in script("train", *options, *other, status=2).stderr


def test_resume_from_a_numbered_epoch(script, images, tmp_path):
    options = ["--dataset_path", images, *TINY, "--epochs", 3, "--save_model_interval", "True"]
    options += ["--save_model_interval_epochs", 1, "--run_name", "a"]
    script("train", *options)
    run = tmp_path / "results" / "a"
    end = (run / "ckpt_3.pt").read_bytes()
    rows = metrics(run)
    script("train", *options, "--resume", "--start_epoch", 1)
    assert len(metrics(run)) == 12 and [r["loss"] for r in metrics(run)] == [
        r["loss"] for r in rows
    ]
    (run / "end.pt").write_bytes(end)
    assert_equal_states(run / "end.pt", run / "ckpt_last.pt")
    assert (
        "saved epochs: 1, 2, 3"
        in script("train", *options, "--resume", "--start_epoch", 7, status=2).stderr
    )


def test_two_processes_train_as_one(script, images, tmp_path):
    options = ["--dataset_path", images, *TINY, "--epochs", 3, "--flip", "--log_interval", 5]
    # Adam turns the rounding of a gradient that is zero into a whole step; SGD does not.
    options += ["--optim", "sgd", "--lr", 0.01]
    script("train", *options, "--run_name", "one", "--batch_size", 8)
    script(
        "train", *options, "--run_name", "two", "--distributed", "--world_size", 2, "--main_gpu", 1
    )
    script("train", *options, "--run_name", "accumulated", "--batch_size", 2, "--grad_accum", 4)
    results = tmp_path / "results"
    for name in ("two", "accumulated"):
        assert_equal_states(results / "one" / "ckpt_last.pt", results / name / "ckpt_last.pt", 1e-4)
        for a, b in zip(metrics(results / "one"), metrics(results / name), strict=True):
            assert all(
                abs(float(a[key]) - float(b[key])) < 1e-4 for key in ("loss", "grad_norm", "lr")
            )
            assert all(
                abs(float(a[q] or 0) - float(b[q] or 0)) < 1e-4 for q in ("loss_q1", "loss_q4")
            )


def test_torchrun(images, tmp_path):
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
    ]
    command += [
        str(ROOT / "tools/train.py"),
        "--dataset_path",
        str(images),
        *TINY,
        "--epochs",
        "1",
        "--use_gpu",
        "-1",
    ]
    subprocess.run(
        [*command, "--run_name", "a", "--result_path", str(tmp_path)], check=True, timeout=120
    )
    assert read_checkpoint(tmp_path / "a" / "ckpt_last.pt")["state"]["step"] == 2
    assert len(metrics(tmp_path / "a")) == 2


def test_pretrain(script, images, tmp_path):
    options = ["--dataset_path", images, *TINY, "--epochs", 1]
    script("train", *options, "--run_name", "a")
    weights = read_checkpoint(tmp_path / "results/a/ckpt_last.pt")["ema"]
    torch.save({f"module.{key}": value for key, value in weights.items()}, tmp_path / "bare.pt")
    for name, source in [("b", tmp_path / "results/a/ema_last.pt"), ("c", tmp_path / "bare.pt")]:
        script(
            "train",
            *options,
            "--run_name",
            name,
            "--pretrain",
            "--pretrain_path",
            source,
            "--lr",
            1e-12,
        )
        started = read_checkpoint(tmp_path / "results" / name / "ckpt_last.pt")
        for part in ("network", "ema"):
            assert all((started[part][key] - weights[key]).abs().max() < 1e-6 for key in weights)
    source, eps = tmp_path / "results/a/ema_last.pt", ["--prediction", "eps"]
    other = script(
        "train", *options, "--run_name", "e", "--pretrain", "--pretrain_path", source, *eps
    )
    assert "warning: " in other.stdout and "'prediction': 'v'" in other.stdout
    wider = script(
        "train",
        *options,
        "--run_name",
        "d",
        "--pretrain",
        "--pretrain_path",
        source,
        "--channels",
        16,
        status=2,
    )
    assert (
        "do not fit" in wider.stderr
        and "condition.label.weight (4, 32) instead of (4, 64)" in wider.stderr
    )


@pytest.mark.parametrize(
    "options",
    [
        [
            "--conditional",
            "False",
            "--network",
            "cspdarkunet",
            "--optim",
            "sgd",
            "--lr_func",
            "linear",
            "--loss",
            "huber",
        ],
        [
            "--sample",
            "plms",
            "--prediction",
            "eps",
            "--noise_schedule",
            "linear",
            "--act",
            "gelu",
            "--optim",
            "adam",
        ],
        [
            "--sample",
            "ddpm",
            "--prediction",
            "x0",
            "--time_embedding",
            "scale_shift",
            "--vis",
            "False",
            "--amp",
        ],
        [
            "--image_size",
            "8,12",
            "--num_workers",
            "2",
            "--image_format",
            "webp",
            "--fp16",
            "False",
            "--seed",
            "5",
        ],
    ],
    ids=lambda options: options[1],
)
def test_options_work_together(script, images, tmp_path, options):
    script("train", "--dataset_path", images, *TINY, "--run_name", "a", "--epochs", 1, *options)
    contents = read_checkpoint(tmp_path / "results/a/ckpt_last.pt")
    assert contents["state"]["step"] == 4
    if "--conditional" in options:
        assert (
            contents["config"]["data"]["class_names"] == []
            and contents["config"]["network"]["num_classes"] is None
        )
    if "--vis" in options:
        assert not list((tmp_path / "results/a/samples").iterdir())
    if "--image_size" in options:
        assert contents["config"]["data"]["image_size"] == [8, 12]
        assert [p.name for p in (tmp_path / "results/a/samples").iterdir()] == ["epoch_0001.webp"]


def test_plan_stops_before_anything_is_written(script, images, tmp_path):
    out = script(
        "train", "--dataset_path", images, *TINY, "--plan", "--epochs", 1000, "--grad_accum", 2
    ).stdout
    assert "2,000 = 1,000 epochs x 2" in out and "8 images per step on 1 process" in out
    assert not (tmp_path / "results").exists()


def test_an_earlier_run_is_not_overwritten(script, images, tmp_path):
    options = ["--dataset_path", images, *TINY, "--run_name", "a", "--epochs", 1]
    script("train", *options)
    before = {
        path: path.read_bytes() for path in (tmp_path / "results/a").iterdir() if path.is_file()
    }
    assert "holds an earlier run" in script("train", *options, status=2).stderr
    assert before == {
        path: path.read_bytes() for path in (tmp_path / "results/a").iterdir() if path.is_file()
    }


def test_a_loss_that_is_no_number_stops_the_run(script, images, tmp_path):
    options = [
        "--dataset_path",
        images,
        *TINY,
        "--run_name",
        "a",
        "--epochs",
        50,
        "--optim",
        "sgd",
        "--grad_clip",
        0,
    ]
    options += ["--lr_func", "constant", "--lr", 1e9, "--save_model_interval", "--vis", "False"]
    error = script("train", *options, status=2).stderr
    step = int(re.search(r"step (\d+): the loss is .*--lr", error)[1])
    dataset = load_image_set(images, (8, 8), conditional=True)
    names = [dataset.files[i] for i in StepSampler(dataset, 4, 0, step - 1, step)]
    assert (
        f"The images: {', '.join(names)}\n" in error
        and ", ".join(names) in (tmp_path / "results/a/log.txt").read_text()
    )
    contents = read_checkpoint(tmp_path / "results/a/ckpt_last.pt")
    assert all(value.isfinite().all() for value in contents["network"].values())


def test_help_is_quick():
    def fastest(*command):
        times = []
        for _ in range(3):
            start = time.perf_counter()
            subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
            times.append(time.perf_counter() - start)
        return min(times)

    assert fastest(str(ROOT / "tools/train.py"), "--help") < 1.5 * fastest("-c", "import torch")


@pytest.mark.fault
def test_twenty_starts_of_one_run_have_one_winner(images, tmp_path):
    command = [
        sys.executable,
        str(ROOT / "tools/train.py"),
        "--dataset_path",
        str(images),
        *TINY,
        "--use_gpu",
        "-1",
    ]
    command += [
        "--result_path",
        str(tmp_path),
        "--run_name",
        "a",
        "--epochs",
        "100000",
        "--vis",
        "False",
    ]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    running = [subprocess.Popen(command, **quiet) for _ in range(20)]
    end = time.monotonic() + 200
    while (
        len(alive := [process for process in running if process.poll() is None]) > 1
        and time.monotonic() < end
    ):
        time.sleep(0.1)
    assert len(alive) == 1
    wait_for_step(tmp_path / "a", 5)
    alive[0].terminate()
    assert alive[0].wait(60) == 128 + signal.SIGTERM
    for process in running:
        if process is not alive[0]:
            said = process.stderr.read()
            assert (
                process.returncode == 2
                and said.count("\n") == 1
                and "being written by another process" in said
            )


def test_a_few_seconds_choose_the_smallest_network_and_as_many_steps_as_fit(
    script, images, tmp_path
):
    options = ["--dataset_path", images, "--image_size", 8, "--run_name", "a", "--num_vis", 1]
    options += ["--minutes", 0.1, "--sample_steps", 2, "--use_gpu", -1]
    out = script("train", *options, "--plan").stdout
    assert "preset      tiny (chosen for the time there is)" in out
    assert "small " in out and "steps in 0.1 minutes" in out and "GB of memory" in out
    assert "3: bag, boot, trouser" in out
    script("train", *options)
    config = json.loads((tmp_path / "results" / "a" / "config.json").read_text())["config"]
    steps = config["length"]["total_steps"]
    assert config["length"]["minutes"] == 0.1 and steps >= 10
    assert metrics(tmp_path / "results" / "a")[-1]["step"] == str(steps)
    assert config["network"]["channels"] == 32 and config["training"]["optim"] == "muon"


def test_several_processes_choose_a_network_for_augmented_images(script, images, tmp_path):
    """Few images are augmented, of which the networks that are timed are told too."""
    options = ["--dataset_path", images, "--image_size", 8, "--minutes", 0.1, "--vis", "False"]
    out = script("train", *options, "--distributed", "--world_size", 2).stdout
    assert "preset      tiny" in out and "augment" in out
    assert metrics(tmp_path / "results/demo")


def test_the_end_within_an_epoch_is_of_the_epoch_that_has_begun(script, tmp_path):
    """Its evaluation says so beside its row, and its preview has that number."""
    options = ["--dataset_path", DEMO, *TINY, "--minutes", 0.05, "--eval_interval_epochs", 1]
    script("train", *options)
    run = tmp_path / "results/demo"
    length = json.loads((run / "config.json").read_text())["config"]["length"]
    rows = metrics(run)
    assert length["epochs"] == 1 and len(rows) == length["total_steps"] < 1900 / 4
    assert rows[-1]["held_out_loss"] and {row["epoch"] for row in rows} == {"1"}
    assert [file.name for file in (run / "samples").iterdir()] == ["epoch_0001.png"]


def test_one_folder_of_images_is_learned_without_classes(script, images, tmp_path):
    """The article's unconditional command: images/*.jpg, and no flag for it."""
    options = ["--dataset_path", images / "boot", *TINY, "--run_name", "a", "--epochs", 1]
    out = script("train", *options).stdout
    assert "classes     none are learned" in out
    config = read_checkpoint(tmp_path / "results/a/ckpt_last.pt")["config"]
    assert config["network"]["num_classes"] is None and not config["training"]["conditional"]
    out = script("train", *options, "--resume", "--epochs", 2).stdout
    assert "classes     none are learned" in out
    nested = tmp_path / "nested"
    shutil.copytree(images / "boot", nested / "images")
    out = script("train", "--dataset_path", nested, *options[2:-4], "--plan").stdout
    assert "4 at 8,8" in out and "classes     none are learned" in out


def test_one_folder_that_can_be_read_is_no_class(script, images, tmp_path):
    """Two folders with images, of which one holds none that can be decoded."""
    pictures = tmp_path / "pictures"
    shutil.copytree(images / "boot", pictures / "boot")
    (pictures / "bag").mkdir()
    (pictures / "bag" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    out = script("train", "--dataset_path", pictures, *TINY, "--plan").stdout
    assert "classes     none are learned" in out
    assert "of the folders bag, boot only boot holds images that can be read" in out
    asked = script("train", "--dataset_path", pictures, *TINY, "--conditional", "--plan").stdout
    assert "classes     1: boot" in asked


def test_classes_of_one_image_are_named(script, images, tmp_path):
    """As of a folder per object, which are no classes."""
    pictures = tmp_path / "pictures"
    for place, file in enumerate(sorted(images.rglob("*.png"))):
        (pictures / f"id{place:03}").mkdir(parents=True)
        shutil.copy(file, pictures / f"id{place:03}" / "photo.png")
    plan = ["--dataset_path", pictures, *TINY, "--plan"]
    out = script("train", *plan).stdout
    assert "13 of the 13 classes have a single image" in out and "--conditional False" in out
    said = script("train", *plan, "--val_fraction", 0.5, status=2).stderr
    assert "each class keeps an image to learn from" in said
    out = script("train", *plan, "--conditional", False).stdout
    assert "single image" not in out


def test_levels_that_are_computed_twice_change_nothing(script, images, tmp_path):
    options = ["--dataset_path", images, *TINY, "--epochs", 1, "--dropout", 0.3, "--vis", False]
    script("train", *options, "--run_name", "a")
    script("train", *options, "--run_name", "b", "--checkpoint_activations", "0,1")
    assert_equal_states(tmp_path / "results/a/ckpt_last.pt", tmp_path / "results/b/ckpt_last.pt")
    refused = script("train", *options, "--run_name", "c", "--checkpoint_activations", 2, status=2)
    assert "level 2 does not exist" in refused.stderr


def test_fine_tuning_takes_the_network_of_the_weights(script, images, tmp_path):
    """What is not given is as in the file, whatever the preset would choose."""
    options = ["--dataset_path", images, "--image_size", 8, "--epochs", 1, "--vis", False]
    network = ["--channels", 24, "--channel_mult", "1,2", "--norm_groups", 3, "--head_channels", 12]
    network += ["--blocks_per_level", 2, "--time_embedding", "additive", "--act", "gelu"]
    script("train", *options, *network, "--run_name", "a")
    source = tmp_path / "results/a/ema_last.pt"
    pretrain = ["--pretrain", "--pretrain_path", source]
    script("train", *options, "--run_name", "b", *pretrain)
    one, two = (
        read_checkpoint(tmp_path / "results" / name / "ckpt_last.pt")["config"]["network"]
        for name in "ab"
    )
    assert one == two
    wrong = script("train", *options, "--run_name", "c", *pretrain, "--channels", 48, status=2)
    assert "do not fit" in wrong.stderr
    said = script("train", *options, "--run_name", "d", *pretrain, "--act", "relu", "--plan").stdout
    assert "of a network with {'act': 'gelu'}, this run's has {'act': 'relu'}" in said


def test_the_weight_of_the_loss_follows_the_pictures(script, tmp_path):
    """Garments on a black ground weigh as drawings, noise as photographs; what is given wins."""
    garments = copy_some(tmp_path / "garments")
    noise = tmp_path / "noise"
    noise.mkdir()
    for i in range(8):
        pixels = np.random.RandomState(i).randint(0, 256, (28, 28), np.uint8)
        Image.fromarray(pixels).save(noise / f"{i}.png")

    def loss_of(folder, *options):
        plan = script("train", "--dataset_path", folder, *TINY, "--plan", *options).stdout
        return next(line for line in plan.splitlines() if line.startswith("loss "))

    assert "weighed as lognormal" in loss_of(garments) and "by that weight" in loss_of(garments)
    assert "weighed as min_snr" in loss_of(noise) and "evenly" in loss_of(noise)
    assert "weighed as min_snr" in loss_of(garments, "--loss_weight", "min_snr")
