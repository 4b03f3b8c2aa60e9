"""train_upscaler.py as a user calls it: what it writes, resume, mistakes."""

import os
import signal
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from helpers import ROOT, assert_equal_states, metrics
from PIL import Image

from tools import train_upscaler as train_upscaler_script
from utils.data import read_image
from utils.data.pairs import CropSet, covers, load_pairs, starts
from utils.evaluation.restoration import Convention, restoration_scores
from utils.free_memory import SHARE_OF_MEMORY
from utils.ranks import Ranks
from utils.runs.checkpoint import Checkpoint
from utils.runs.evaluations import read_evaluations
from utils.runs.files import read_checkpoint, save_checkpoint
from utils.runs.inference import inference_network
from utils.training import restoration
from utils.training import run as run_module
from utils.training.estimates import cost_of_upscaler
from utils.training.upscaling_measures import enlarged_bicubic

SMALL = ["--features", 8, "--blocks", 1, "--layers", 2, "--growth", 4, "--batch_size", 8]
SMALL += ["--image_size", 12, "--crop_size", 8, "--num_vis", 2]
EDSR = [*SMALL[:4], *SMALL[8:], "--network", "edsr"]  # which has no layers and no growth


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
    script("train_upscaler", *options, *EDSR, "--scale", 3)
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


def test_crops_that_do_not_fit_into_memory_together_go_through_in_passes(
    photos, tmp_path, capsys, monkeypatch
):
    """The same result up to rounding, and a resumed run splits as before."""
    place = SMALL.index("--batch_size")
    options = [*SMALL[:place], *SMALL[place + 2 :], "--optim", "sgd", "--vis", "False"]
    options += ["--dataset_path", photos, "--result_path", tmp_path, "--use_gpu", -1]
    options += ["--crop_size", 8, "--image_size", 16, "--val_fraction", 0]

    def train(name, *more):
        argv = [str(word) for word in (*options, "--run_name", name, *more)]
        with pytest.raises(SystemExit) as stop:
            train_upscaler_script.main(argv)
        assert stop.value.code == 0
        return capsys.readouterr().out

    def versions(name):
        contents = read_checkpoint(tmp_path / name / "ckpt_last.pt")
        return contents["versions"]["batch_size"], contents["versions"]["grad_accum"]

    assert "memory " not in train("at_once", "--epochs", 2)
    assert versions("at_once") == (16, 1)
    network = read_checkpoint(tmp_path / "at_once/ckpt_last.pt")["config"]["network"]
    cost = cost_of_upscaler(network, (8, 8))
    free = cost.memory(5, torch.float32) / SHARE_OF_MEMORY
    monkeypatch.setattr(run_module, "free_memory", lambda device, processes: free)
    assert "16 images per step in 4 passes of 4, as" in train("split", "--epochs", 2)
    assert versions("split") == (4, 4)
    assert_equal_states(tmp_path / "at_once/ckpt_last.pt", tmp_path / "split/ckpt_last.pt", 1e-4)
    given = train("given", "--batch_size", 16, "--epochs", 2, "--plan")
    assert "GB are needed, and 0.0 GB may be taken" in given
    monkeypatch.undo()
    said = train("split", "--epochs", 3, "--resume")
    assert "4 passes of 4, as before" in said and "up to rounding" not in said
    assert versions("split") == (4, 4)


def test_the_baseline_is_measured_image_by_image(monkeypatch):
    """All at once would take twenty times their bytes, in float64."""
    asked = []

    def scores(restored, targets, convention):
        asked.append(len(restored))
        return restoration_scores(restored, targets, convention)

    monkeypatch.setattr(restoration, "restoration_scores", scores)
    torch.manual_seed(0)
    large = torch.randint(256, (5, 3, 24, 24), dtype=torch.uint8)
    small = large[:, :, ::2, ::2]
    originals = restoration.Originals(small, large, list(range(5)))
    convention = Convention(2, False, "RGB")
    baseline = partial(enlarged_bicubic, 2)
    found = restoration.RestorationScore(
        None, originals, originals, convention, Ranks(), baseline
    ).baseline
    psnr, ssim = restoration_scores(baseline(small), large, convention)
    assert asked == [1] * 5
    assert found["bicubic_psnr"] == pytest.approx(float(psnr.mean()), abs=1e-9)
    assert found["bicubic_ssim"] == pytest.approx(float(ssim.mean()), abs=1e-9)


def test_what_auto_has_decided_is_kept(photos, tmp_path, script):
    """Also where an earlier version forgot it."""
    options = ["--dataset_path", photos, *SMALL, "--run_name", "a", "--amp", "auto", "--vis", False]
    script("train_upscaler", *options, "--epochs", 1)
    file = tmp_path / "results/a/ckpt_last.pt"
    contents = read_checkpoint(file)
    assert contents["config"]["training"]["amp"] in (True, False)
    contents["config"]["training"]["amp"] = "auto"
    save_checkpoint(contents, file)
    script("train_upscaler", *options, "--epochs", 2, "--resume")
    assert read_checkpoint(file)["config"]["training"]["amp"] in (True, False)


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
    options = ["--dataset_path", photos, *SMALL, "--vis", "False"]
    script("train_upscaler", *options, "--run_name", "a", "--epochs", 2)
    weights = tmp_path / "results/a/ema_last.pt"
    pretrain = ["--pretrain", "--pretrain_path", weights, "--epochs", 1, "--lr", 1e-12]
    said = script("train_upscaler", *options, "--run_name", "b", *pretrain)
    assert "warning:    the weights" not in said.stdout
    a, b = (read_checkpoint(tmp_path / "results" / run / "ema_last.pt")["ema"] for run in "ab")
    assert all((a[name] - b[name]).abs().max() < 1e-6 for name in a)

    said = script("train_upscaler", *options, "--run_name", "c", *pretrain, "--scale", 3)
    assert "the layer that makes the pixels is new" in said.stdout
    c = read_checkpoint(tmp_path / "results/c/ema_last.pt")["ema"]
    same = [name for name in a if not name.startswith("up.")]
    assert len(same) == len(a) - 2
    assert all((a[name] - c[name]).abs().max() < 1e-6 for name in same)
    other = script(
        "train_upscaler", *options, "--run_name", "d", *pretrain, "--mode", "L", status=2
    )
    assert "do not fit the network rdn" in other.stderr


def test_every_option_of_the_network_arrives(photos, tmp_path, script):
    options = ["--dataset_path", photos, *SMALL, "--vis", "False", "--epochs", 1]
    script(
        "train_upscaler", *options, "--run_name", "a", "--blocks", 2, "--layers", 3, "--growth", 5
    )
    network = Checkpoint.read(tmp_path / "results/a/ema_last.pt").config["network"]
    assert (network["blocks"], network["layers"], network["growth"]) == (2, 3, 5)
    edsr = script("train_upscaler", *options, "--network", "edsr", "--run_name", "b", status=2)
    assert "--layers and --growth belong to --network rdn" in edsr.stderr


def test_what_is_measured_is_named_with_the_figures(photos, tmp_path, script):
    options = ["--dataset_path", photos, *SMALL, "--vis", "False", "--epochs", 1]
    options += ["--val_fraction", 0.25, "--lr", 1e-12]
    said = {}
    for name, more in (("rgb", []), ("y", ["--luma"]), ("worse", ["--degrade"])):
        said[name] = script("train_upscaler", *options, "--run_name", name, *more).stdout
    last = {name: text.strip().splitlines()[-2] for name, text in said.items()}
    assert last["rgb"].endswith("(RGB, 8 bits, without a border of 2 pixels).")
    assert last["y"].endswith("(Y of BT.601, 8 bits, without a border of 2 pixels).")
    assert last["worse"].endswith("without a border of 2 pixels, degraded small images).")

    # Before it has learned anything, the network is about nearest-neighbour enlarging.
    rows = {name: read_evaluations(tmp_path / "results" / name)[0][-1] for name in said}
    pairs = load_pairs(photos, (12, 12), 2)
    places = [
        [int(number) for number in pairs.checksums].index(number)
        for number in rows["rgb"].held_out_images
    ]
    small = torch.stack([pairs[place][0] for place in places])
    large = torch.stack([pairs[place][1] for place in places])
    for name, convention in (("rgb", Convention(2)), ("y", Convention(2, luma=True))):
        psnr, _ = restoration_scores(enlarged_bicubic(2, small), large, convention)
        assert abs(psnr.mean() - rows[name].scores["bicubic_psnr"]) < 1e-4
    bicubic = (255 * float64_bicubic(small, 2)).round() / 255
    psnr = -10 * np.log10(np.square(bicubic - large.numpy() / 255)[..., 2:-2, 2:-2].mean((1, 2, 3)))
    assert abs(psnr.mean() - rows["rgb"].scores["bicubic_psnr"]) < 0.35  # it differs at borders
    assert rows["worse"].scores["bicubic_psnr"] < rows["rgb"].scores["bicubic_psnr"] - 1
    assert rows["worse"].measure != rows["rgb"].measure != rows["y"].measure

    changed = script(
        "train_upscaler", *options, "--run_name", "rgb", "--resume", "--luma", status=2
    )
    assert "luma False before, True now" in changed.stderr


def float64_bicubic(images, scale):
    """(B,C,H,W) uint8 -> 0..1 enlarged, by cubic convolution with a = -1/2 (in float64)."""
    out = []
    for image in images:
        height, width = image.shape[1:]
        rows, columns = (weights_of(side, scale) for side in (height, width))
        out.append(np.einsum("yi,cij,xj->cyx", rows, image.double().numpy() / 255, columns))
    return np.clip(np.stack(out), 0, 1)


def weights_of(side, scale):
    centres = (np.arange(side * scale) + 0.5) / scale - 0.5
    distance = np.abs(centres[:, None] - np.arange(side)[None])
    near = 1.5 * distance**3 - 2.5 * distance**2 + 1
    far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
    weights = np.where(distance <= 1, near, np.where(distance < 2, far, 0))
    return weights / weights.sum(1, keepdims=True)


def test_a_file_that_is_turned_is_not_too_small(tmp_path):
    for name, size, orientation in (("wide", (40, 20), 1), ("turned", (20, 40), 6)):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.new("RGB", size, "red").save(tmp_path / f"{name}.jpg", exif=exif)
    assert covers(tmp_path / "wide.jpg", 20, 40) and covers(tmp_path / "turned.jpg", 20, 40)
    assert not covers(tmp_path / "wide.jpg", 40, 20)
