"""Runs in the world: lost files and terminals, other classes, odd but legal options."""

import os
import signal
import subprocess
import sys

import pytest
import torch
from helpers import DEMO, ROOT, TINY, metrics, wait_for_step

from utils.runs.files import read_checkpoint

LONG = ["--epochs", "5000", "--vis", "False", "--log_interval", "1"]


def start(images, results, *options, script="tools/train.py", env=None):
    command = [sys.executable, str(ROOT / script), "--dataset_path", str(images), *TINY]
    command += ["--use_gpu", "-1", "--run_name", "a", "--result_path", str(results)]
    return subprocess.Popen(
        [*command, *map(str, options)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(env or {})},
    )


@pytest.mark.fault
@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_is_moved_away_ends_the_run_saved(images, tmp_path, workers):
    options = [*LONG, "--cache", "none", "--num_workers", workers]
    process = start(images, tmp_path, *options)
    wait_for_step(tmp_path / "a", 6)
    (images / "bag" / "000.png").rename(tmp_path / "elsewhere.png")
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 2 and "Traceback" not in error
    (said,) = [line for line in error.splitlines() if line.startswith("error: ")]
    assert "bag/000.png could be read when the run began and can no longer be read" in said
    step = read_checkpoint(tmp_path / "a/ckpt_last.pt")["state"]["step"]
    assert step >= 6 and step == int(metrics(tmp_path / "a")[-1]["step"])
    assert "bag/000.png" in (tmp_path / "a/log.txt").read_text()


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1], ids=lambda n: n.name)
def test_a_lost_terminal_and_a_scheduler_save(images, tmp_path, number):
    process = start(images, tmp_path, *LONG)
    wait_for_step(tmp_path / "a", 3)
    process.send_signal(number)
    assert process.wait(60) == 128 + number
    step = read_checkpoint(tmp_path / "a/ckpt_last.pt")["state"]["step"]
    assert step == int(metrics(tmp_path / "a")[-1]["step"])
    assert "stopped, saved" in (tmp_path / "a/log.txt").read_text()


def test_a_terminal_that_is_gone_does_not_keep_a_run_from_saving(images, tmp_path):
    """The other end of stdout and stderr is closed, as after a dropped connection."""
    command = [sys.executable, str(ROOT / "tools/train.py"), "--dataset_path", str(images), *TINY]
    command += ["--use_gpu", "-1", "--run_name", "a", "--result_path", str(tmp_path), *LONG]
    read, write = os.pipe()
    process = subprocess.Popen(command, stdout=write, stderr=write)
    os.close(write)
    os.close(read)
    wait_for_step(tmp_path / "a", 3)
    process.send_signal(signal.SIGHUP)
    assert process.wait(60) == 128 + signal.SIGHUP
    step = read_checkpoint(tmp_path / "a/ckpt_last.pt")["state"]["step"]
    assert step == int(metrics(tmp_path / "a")[-1]["step"])


def test_output_in_a_file_holds_lines_and_no_bar(script, images, tmp_path):
    done = script("train", "--dataset_path", images, *TINY, "--run_name", "a", "--epochs", 3)
    assert "\r" not in done.stderr and len(done.stderr.splitlines()) <= 3
    assert "12 of 12 steps (100%), loss 0." in done.stderr
    weights = tmp_path / "results/a/ema_last.pt"
    done = script("generate", "--weight_path", weights, "--num_images", 9, "--batch_size", 3)
    assert "\r" not in done.stderr and len(done.stderr.splitlines()) <= 3


def test_fine_tuning_on_other_classes(script, images, tmp_path):
    """Rows of the same name are kept, new ones begin as the null row; the plan says which."""
    first = ["--dataset_path", images, *TINY, "--epochs", 1]
    script("train", *first, "--run_name", "first")
    source = tmp_path / "results/first/ema_last.pt"
    for name in ("boot", "coat"):
        folder = tmp_path / "others" / name
        folder.mkdir(parents=True)
        for file in sorted((DEMO / name).iterdir())[:4]:
            (folder / file.name).write_bytes(file.read_bytes())
    tune = ["--dataset_path", tmp_path / "others", *TINY, "--epochs", 1, "--lr", 1e-12]
    tune += ["--pretrain", "--pretrain_path", source]
    out = script("train", *tune, "--run_name", "tuned").stdout
    (said,) = [line for line in out.splitlines() if "coat" in line and "warning" in line]
    before = read_checkpoint(source)["ema"]["condition.label.weight"]  # bag, boot, trouser, null
    after = read_checkpoint(tmp_path / "results/tuned/ema_last.pt")["ema"]["condition.label.weight"]
    expected = torch.stack([before[1], before[3], before[3]])  # boot, coat, null
    assert (after - expected).abs().max() < 1e-6


def test_grey_pictures_with_three_channels(script, images, tmp_path):
    """So that a colour network can be tuned on them, and a grey one on colours."""
    grey = ["--dataset_path", images, *TINY, "--epochs", 1]
    script("train", *grey, "--run_name", "colour", "--mode", "RGB")
    colour = tmp_path / "results/colour/ema_last.pt"
    assert read_checkpoint(colour)["config"]["network"]["in_channels"] == 3
    tune = [*grey, "--pretrain", "--pretrain_path", colour]
    script("train", *tune, "--run_name", "tuned", "--mode", "RGB")
    out = script("train", *tune, "--run_name", "grey", "--mode", "L").stdout
    assert "warning: " in out and "grey" in out.split("warning: ")[-1]


def test_legal_options_that_cannot_give_a_good_result(script, images, tmp_path):
    options = ["--dataset_path", images, *TINY, "--run_name", "a", "--epochs", 4]
    options += ["--timestep_spacing", "leading", "--sample_steps", 600, "--warmup_steps", 100]
    out = script("train", *options, "--plan").stdout
    assert "the sampler begins at time step 599" in out
    assert "16 steps are few" in out
    assert "--warmup_steps 100 is more than a tenth of the run and is shortened to 1" in out
    script("train", *options, "--vis", "False")
    rates = [float(row["lr"]) for row in metrics(tmp_path / "results/a")]
    assert max(rates) == 1.5e-3  # once the highest rate was a small part of --lr
    weights = tmp_path / "results/a/ema_last.pt"
    for extra in (["--sample_steps", 600], ["--sample_steps", 1]):
        command = ["--weight_path", weights, "--num_images", 1, "--timestep_spacing", "leading"]
        out = script("generate", *command, *extra).stdout
        assert "the images will stay noisy" in out and "--timestep_spacing trailing" in out


def test_a_longer_run_says_what_happens_to_its_learning_rate(script, images):
    options = ["--dataset_path", images, *TINY, "--run_name", "a", "--vis", "False"]
    script("train", *options, "--epochs", 2)
    out = script("train", *options, "--epochs", 4, "--resume").stdout
    assert "the run is now 16 steps long, previously 8: the learning rate at step 8" in out
    assert "instead of 0" in out


def test_generate_in_16_bits(script, images, tmp_path):
    """bf16 where the CPU has it, else said and done in float32; near to float32 in any case."""
    import numpy as np
    from PIL import Image

    script("train", "--dataset_path", images, *TINY, "--run_name", "a", "--epochs", 1)
    weights = tmp_path / "results/a/ema_last.pt"
    command = ["--weight_path", weights, "--num_images", 3, "--sample_steps", 4, "--sample", "ddim"]
    script("generate", *command, "--generate_name", "full")
    script("generate", *command, "--generate_name", "half", "--amp")
    for i in range(3):
        full, half = (
            np.asarray(Image.open(tmp_path / "results" / name / f"{i:05d}.png")).astype(int)
            for name in ("full", "half")
        )
        assert np.abs(full - half).mean() < 16


def test_seeds_that_are_too_many(script):
    error = script("generate", "--seed", 2**32 - 2, "--num_images", 3, status=2).stderr
    assert "needs seeds up to 4294967296; 4294967295 is the largest" in error


@pytest.mark.fault
def test_decoding_does_not_count_against_the_timeout(images, tmp_path):
    """Half a minute of decoding on each of two processes whose patience is 8 seconds."""
    options = ["--epochs", 1, "--vis", "False", "--distributed", "--timeout", 8, "--batch_size", 2]
    env = {"SLOW_READ": "3", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    process = start(images, tmp_path, *options, script="test/helper_slow_read.py", env=env)
    error = process.communicate(timeout=180)[1]
    assert process.returncode == 0, error
    assert len(metrics(tmp_path / "a")) == 4


def test_files_that_cannot_be_used_are_named(script, images, tmp_path):
    """Another kind of checkpoint, weights that are not finite, another architecture."""
    options = ["--dataset_path", images, *TINY, "--epochs", 1, "--vis", "False"]
    script("train", *options, "--run_name", "a")
    source = read_checkpoint(tmp_path / "results/a/ema_last.pt")
    spoiled = {
        "upscaler": {**source, "kind": "upscaler"},
        "nan": {**source, "ema": {k: w * float("nan") for k, w in source["ema"].items()}},
    }
    for name, contents in spoiled.items():
        torch.save(contents, tmp_path / f"{name}.pt")
    for name, sentence in [
        ("upscaler", "is a checkpoint of kind upscaler, but diffusion is needed"),
        ("nan", "nan.pt are not finite: "),
    ]:
        file = tmp_path / f"{name}.pt"
        assert sentence in script("generate", "--weight_path", file, status=2).stderr
        tune = [*options, "--run_name", "b", "--pretrain", "--pretrain_path", file]
        assert sentence in script("train", *tune, status=2).stderr
    tune = [*options, "--run_name", "b", "--pretrain", "--network", "cspdarkunet"]
    tune += ["--pretrain_path", tmp_path / "results/a/ema_last.pt"]
    said = script("train", *tune, status=2).stderr
    assert "holds a unet, but this run builds a cspdarkunet: pass --network unet" in said


def test_options_without_effect_are_named(script, images):
    plan = ["--dataset_path", images, *TINY, "--plan"]
    out = script("train", *plan, "--world_size", 4, "--label_drop", 1).stdout
    assert "--world_size 4 and --main_gpu 0 have no effect without --distributed" in out
    assert "with --label_drop 1 no image keeps its label" in out
    out = script("train", *plan, "--gradient_compression", "bf16").stdout
    assert "--gradient_compression bf16 has no effect: one process exchanges no gradients" in out
    out = script("train", *plan).stdout
    assert "have no effect" not in out and "has no effect" not in out
    for options, remark in (
        (["--warmup_steps", 5, "--lr_func", "cosine"], "--warmup_steps 5 has no effect with"),
        (["--save_model_interval_epochs", 1], "1 has no effect without --save_model_interval"),
        (["--vis_interval_epochs", 1, "--vis", False], "1 has no effect without --vis"),
        (["--image_format", "webp", "--vis", False], "webp has no effect without --vis"),
        (["--cfg_scale", 3, "--vis", False], "has no effect without --vis or --eval_images"),
        (["--condition_drop", 0.3], "--condition_drop 0.3 has no effect without --condition_path"),
        (["--label_drop", 0.4, "--conditional", False], "0.4 has no effect without --conditional"),
        (["--allow_changes"], "--allow_changes True has no effect without --resume"),
        (["--weight_decay", 0.5, "--optim", "adam"], "0.5 has no effect with --optim adam"),
        (["--epochs", 3, "--minutes", 1], "--epochs 3 has no effect: --minutes sets the length"),
    ):
        assert remark in script("train", *plan, *options).stdout, options


def test_what_is_left_out_is_named_by_kind(script, images):
    (images / "boot" / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (images / "void").mkdir()
    (images / "void" / "broken.png").write_bytes(b"\x89PNG")
    out = script("train", "--dataset_path", images, *TINY, "--plan").stdout
    assert "1 .heic: an image format that this Pillow does not decode" in out
    assert "class folders without a readable image: void/" in out
    assert "files       15 seen = 13 used + 2 left out" in out
