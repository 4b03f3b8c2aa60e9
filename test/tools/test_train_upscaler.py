"""train_upscaler.py as a user calls it: what it writes, resume, mistakes."""

import os
import signal
import subprocess
import sys

import pytest
import torch
from helpers import ROOT, assert_equal_states, metrics
from PIL import Image

from utils.data import read_image
from utils.data.pairs import CropSet, load_pairs, starts
from utils.runs.checkpoint import Checkpoint
from utils.runs.inference import inference_network

SMALL = ["--features", 8, "--blocks", 1, "--layers", 2, "--growth", 4, "--batch_size", 8]
SMALL += ["--image_size", 12, "--crop_size", 8, "--num_vis", 2]


@pytest.fixture
def photos(tmp_path):
    """40 files of 28 to 60 pixels a side, in colour, with a gradient that compresses badly."""
    folder = tmp_path / "photos"
    folder.mkdir()
    torch.manual_seed(0)
    for i in range(40):
        size = (28 + i % 7, 28 + i % 5)
        coarse = torch.rand(3, 7, 7)
        fine = torch.nn.functional.interpolate(coarse[None], size, mode="bicubic").clamp(0, 1)[0]
        pixels = (255 * fine).byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")
    return folder


def test_what_a_run_writes(photos, tmp_path, script):
    options = ["--dataset_path", photos, "--run_name", "sr", "--epochs", 3, "--val_fraction", 0.25]
    said = script("train_upscaler", *options, *SMALL).stdout
    run = tmp_path / "results" / "sr"
    assert "pairs       12,12 -> 24,24" in said and "bicubic interpolation has PSNR" in said
    last = said.strip().splitlines()
    assert last[-2].startswith("Held-out images: PSNR") and "(bicubic" in last[-2]
    assert last[-2].endswith("(RGB, 8 bits, without a border of 2 pixels).")

    rows = [row for row in metrics(run) if row["psnr"]]
    assert len(rows) >= 1
    for name in ("held_out_loss", "training_loss", "psnr", "ssim", "bicubic_psnr", "bicubic_ssim"):
        assert all(float(row[name]) > 0 for row in rows), name
    assert len({row["bicubic_psnr"] for row in rows}) == 1
    assert all(float(row["crop_psnr"]) > 0 for row in metrics(run))
    assert list((run / "samples").glob("*.png"))

    checkpoint = Checkpoint.read(run / "ema_last.pt")
    assert checkpoint.kind == "upscaler" and checkpoint.image_size == (12, 12)
    network = inference_network(checkpoint)
    assert network.scale == 2 and network(torch.zeros(1, 3, 5, 6)).shape == (1, 3, 10, 12)


def test_pairs_are_what_the_loader_makes_at_both_sizes(photos):
    pairs = load_pairs(photos, (12, 10), 3)
    assert len(pairs) == 40 == len(CropSet(pairs, 12))
    for i in (0, 17, 39):
        small, large, index = pairs[i]
        file = photos / pairs.large.name(i)
        assert index == i
        assert torch.equal(small.permute(1, 2, 0), torch.tensor(read_image(file, (12, 10))))
        assert torch.equal(large.permute(1, 2, 0), torch.tensor(read_image(file, (36, 30))))


@pytest.mark.parametrize("side", [4, 12, 16, 17, 31, 32, 33, 200])
@pytest.mark.parametrize("crop", [4, 8, 9])
def test_every_crop_lies_in_a_part(side, crop):
    part = min(2 * crop, side)
    firsts = starts(side, crop)
    assert firsts[0] == 0 and firsts[-1] == side - part
    inside = {first + i for first in firsts for i in range(part - min(crop, side) + 1)}
    assert inside == set(range(side - min(crop, side) + 1))
    assert len(firsts) <= -(-side // crop)


def test_parts_of_large_and_small_images_belong_together(photos):
    pairs = load_pairs(photos, (24, 20), 2)
    crops = CropSet(pairs, 5)
    assert crops.per_image == 4 * 3 and len(crops) == 40 * 12
    for i in (0, 7, 25, 479):
        small, large, index = crops[i]
        assert index == i and small.shape == (3, 10, 10) and large.shape == (3, 20, 20)
        whole = pairs[i // 12]
        row, column = divmod(i % 12, 3)
        top, left = crops.rows[row], crops.columns[column]
        assert torch.equal(small, whole[0][:, top : top + 10, left : left + 10])
        assert torch.equal(large, whole[1][:, 2 * top : 2 * top + 20, 2 * left : 2 * left + 20])
        assert crops.name(i) == pairs.large.name(i // 12)


def test_a_grey_folder_trains_a_grey_network(images, tmp_path, script):
    options = ["--dataset_path", images, "--run_name", "grey", "--epochs", 1, "--degrade"]
    script("train_upscaler", *options, *SMALL, "--scale", 3, "--network", "edsr")
    checkpoint = Checkpoint.read(tmp_path / "results/grey/ema_last.pt")
    network = checkpoint.config["network"]
    assert (network["name"], network["in_channels"], network["scale"]) == ("edsr", 1, 3)


def test_a_resumed_run_equals_one_without_a_break(photos, tmp_path, script):
    options = ["--dataset_path", photos, "--val_fraction", 0.25, *SMALL, "--degrade"]
    options += ["--lr_func", "constant", "--save_every_steps", 1]
    script("train_upscaler", *options, "--run_name", "whole", "--epochs", 2)
    script("train_upscaler", *options, "--run_name", "cut", "--epochs", 1)
    script("train_upscaler", *options, "--run_name", "cut", "--epochs", 2, "--resume")
    whole, cut = tmp_path / "results/whole", tmp_path / "results/cut"
    assert_equal_states(whole / "ckpt_last.pt", cut / "ckpt_last.pt")
    changed = script(
        "train_upscaler", *options, "--run_name", "cut", "--resume", "--crop_size", 12, status=2
    )
    assert "crop_size 8 before, 12 now" in changed.stderr


@pytest.mark.fault
def test_kill_9_and_resume_changes_nothing(photos, tmp_path):
    base = ["--dataset_path", photos, *SMALL, "--result_path", tmp_path, "--use_gpu", -1]
    base += ["--epochs", 2, "--save_every_steps", 1, "--val_fraction", 0.25, "--log_interval", 1]
    command = [sys.executable, ROOT / "test/helper_kill.py", *base]
    for name, kills in (("whole", [0]), ("cut", [2, 3, 5, 7, 0])):
        for kill_at in kills:
            resume = ["--resume"] if (tmp_path / name).exists() else []
            process = subprocess.run(
                [str(part) for part in (*command, "--run_name", name, *resume)],
                env={**os.environ, "SCRIPT": "train_upscaler", "KILL_AT_STEP": str(kill_at)},
            )
            assert process.returncode == (-signal.SIGKILL if kill_at else 0)
    assert_equal_states(tmp_path / "whole/ckpt_last.pt", tmp_path / "cut/ckpt_last.pt")
    assert evaluations(tmp_path / "whole") == evaluations(tmp_path / "cut")


def evaluations(run):
    return (run / "evaluations.jsonl").read_text()


@pytest.mark.fault
def test_two_processes_follow_one(photos, tmp_path):
    for name, spread in (("one", [8]), ("two", [4, "--distributed"])):
        command = [sys.executable, ROOT / "tools/train_upscaler.py", "--dataset_path", photos]
        command += [*SMALL, "--result_path", tmp_path, "--run_name", name, "--epochs", 5]
        command += ["--val_fraction", 0.25, "--use_gpu", -1, "--batch_size", *spread]
        subprocess.run([str(part) for part in command], check=True, timeout=120)
    one, two = (metrics(tmp_path / name) for name in ("one", "two"))
    assert len(one) == len(two) == 20
    for a, b in zip(one, two, strict=True):
        assert abs(float(a["loss"]) - float(b["loss"])) < 1e-4
        if a["psnr"]:
            assert abs(float(a["psnr"]) - float(b["psnr"])) < 0.01


def test_originals_that_are_too_small_are_said(photos, tmp_path, script):
    options = ["--dataset_path", photos, "--plan", *SMALL, "--scale", 4]
    said = script("train_upscaler", *options).stdout
    assert "have fewer pixels than 48,48" in said and "learns their blur" in said
    fitting = script("train_upscaler", *options[:-2], "--scale", 2).stdout
    assert "learns their blur" not in fitting


def test_a_kind_given_to_the_wrong_script_is_said(photos, images, tmp_path, script):
    script("train_upscaler", "--dataset_path", photos, "--run_name", "sr", "--epochs", 1, *SMALL)
    weights = tmp_path / "results/sr/ema_last.pt"
    generate = script("generate", "--weight_path", weights, status=2)
    assert "kind upscaler, but diffusion is needed; it is for tools/upscale.py" in generate.stderr
    resumed = script("train", "--dataset_path", images, "--run_name", "sr", "--resume", status=2)
    assert "kind upscaler, but diffusion is needed" in resumed.stderr
    pretrained = ["--dataset_path", images, "--pretrain", "--pretrain_path", weights]
    assert "kind upscaler" in script("train", *pretrained, "--plan", status=2).stderr


def test_it_starts_from_other_weights(photos, tmp_path, script):
    options = ["--dataset_path", photos, "--epochs", 1, *SMALL]
    script("train_upscaler", *options, "--run_name", "a")
    weights = tmp_path / "results/a/ema_last.pt"
    said = script(
        "train_upscaler", *options, "--run_name", "b", "--pretrain", "--pretrain_path", weights
    )
    assert "warning:    the weights" not in said.stdout
    other = [*options, "--run_name", "c", "--pretrain", "--pretrain_path", weights, "--scale", 3]
    assert "do not fit the network rdn" in script("train_upscaler", *other, status=2).stderr
