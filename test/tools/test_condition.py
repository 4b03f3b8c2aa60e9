"""Conditions as a user has them: train.py --condition_path, generate.py --condition."""

import csv
import shutil

import numpy as np
import pytest
import torch
from helpers import DEMO, ROOT, TINY, assert_equal_states, copy_some, metrics, write_masks
from PIL import Image

from model.condition import build_condition
from utils import steering
from utils.errors import UserError
from utils.runs.checkpoint import Checkpoint
from utils.steering import Steering, can_stand_together

FEW = [*TINY, "--epochs", 2, "--preset", "tiny"]


@pytest.fixture
def masks(images, tmp_path):
    return write_masks(images, tmp_path / "masks")


@pytest.fixture(scope="module")
def steered(tmp_path_factory, script_server):
    """A run that has learned, in a few hundred steps, to fill a mask: its folder."""
    folder = tmp_path_factory.mktemp("steered")
    images = copy_some(folder / "images")
    write_masks(images, folder / "masks")
    command = [ROOT / "tools/train.py", *TINY, "--conditional", "False", "--vis", "False"]
    command += ["--dataset_path", images, "--condition_path", folder / "masks", "--lr", 0.01]
    command += ["--epochs", 60, "--result_path", folder, "--use_gpu", -1, "--condition_drop", 0.2]
    done = script_server.run([*map(str, command)], folder, 300)
    assert done.returncode == 0, done.stderr
    return folder


def pixels_of(file):
    with Image.open(file) as picture:
        return np.asarray(picture).astype(int)


# --- Training ---


def test_a_run(images, masks, tmp_path, script):
    said = script("train", *FEW, "--dataset_path", images, "--condition_path", masks).stdout
    assert f"conditions  label maps of 2 labels (0, 1) in {masks}" in said
    run = tmp_path / "results/demo"
    config = Checkpoint.read(run / "ema_last.pt").config
    assert config["condition"] == {"name": "labels", "values": [0, 1]}
    assert config["network"]["in_channels"] == 1 + 3 and config["network"]["out_channels"] == 1
    with Image.open(run / "samples/epoch_0002.png") as preview:
        assert preview.mode == "RGB"  # the masks have colours
    assert all(float(row["loss"]) > 0 for row in metrics(run))


@pytest.mark.parametrize("options", [["--augment", 0.5, "--flip"], ["--mode", "RGB", "--balance"]])
def test_a_resumed_run_equals_an_uninterrupted_one(options, images, masks, tmp_path, script):
    common = [*FEW, "--dataset_path", images, "--condition_path", masks, "--lr_func", "constant"]
    common += [*options, "--vis", "False"]
    script("train", *common, "--run_name", "whole")
    script("train", *common, "--run_name", "parts", "--epochs", 1)
    script("train", *common, "--run_name", "parts", "--resume")
    results = tmp_path / "results"
    assert_equal_states(results / "whole/ckpt_last.pt", results / "parts/ckpt_last.pt")


def test_other_conditions_are_not_resumed_with(images, masks, tmp_path, script):
    common = [*FEW, "--dataset_path", images, "--condition_path", masks, "--vis", "False"]
    script("train", *common)
    file = next(masks.rglob("*.png"))
    Image.fromarray(1 - pixels_of(file).astype(np.uint8)).save(file)
    said = script("train", *common, "--epochs", 3, "--resume", status=2).stderr
    assert "conditions" in said and "--allow_changes" in said
    without = [*FEW, "--dataset_path", images, "--vis", "False", "--epochs", 3, "--resume"]
    assert "in_channels" in script("train", *without, status=2).stderr


def test_images_without_a_mask_are_left_out(images, masks, tmp_path, script):
    gone = sorted(masks.rglob("*.png"))[:2]
    for file in gone:
        file.unlink()
    said = script("train", *FEW, "--dataset_path", images, "--condition_path", masks, "--plan")
    assert "13 seen = 11 used + 2 left out" in said.stdout
    assert "no condition of its name" in said.stdout


def test_held_out_images_are_measured_with_their_conditions(tmp_path, script):
    images = tmp_path / "more"
    for name in ("bag", "boot", "trouser", "coat"):
        (images / name).mkdir(parents=True)
        for file in sorted((DEMO / name).iterdir())[:15]:
            shutil.copy(file, images / name)
    masks = write_masks(images, tmp_path / "masks")
    options = ["--dataset_path", images, "--condition_path", masks, "--val_fraction", 0.3]
    script("train", *TINY, *options, "--epochs", 4, "--eval_interval_epochs", 2)
    rows = [row for row in metrics(tmp_path / "results/demo") if row.get("held_out_loss")]
    assert len(rows) == 2 and all(float(row["held_out_loss"]) > 0 for row in rows)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--joint_masks", "--autoencoder_path", "x.pt"], "for pixels"),
        (["--eval_images", 10], "without conditions"),
        (["--condition_path", "nowhere"], "does not exist"),
        (["--condition_drop", 0], "--cfg_scale 1"),
    ],
)
def test_what_does_not_go_together(options, sentence, images, masks, script):
    common = [*FEW, "--dataset_path", images, "--condition_path", masks]
    assert sentence in script("train", *common, *options, status=2).stderr


def test_from_weights_without_conditions(images, masks, tmp_path, script):
    """They are taken over; what comes in behind the image counts nothing at first."""
    plain = [*FEW, "--dataset_path", images, "--vis", "False", "--conditional", "True"]
    script("train", *plain, "--run_name", "plain")
    before = tmp_path / "results/plain/ema_last.pt"
    options = ["--condition_path", masks, "--pretrain", "--pretrain_path", before, "--lr", 1e-12]
    script("train", *plain, *options, "--run_name", "steered", "--optim", "sgd")
    old = Checkpoint.read(before).ema["conv_in.weight"]
    new = Checkpoint.read(tmp_path / "results/steered/ema_last.pt").ema["conv_in.weight"]
    assert (new[:, :1] - old).abs().max() <= 1e-6
    assert new[:, 1:].abs().max() <= 1e-6


# --- Generating ---


def test_an_image_fills_its_mask(steered, script, tmp_path):
    """And goes by the name of its mask, so that pairs can be compared."""
    weights = ["--weight_path", steered / "demo/ema_last.pt", "--condition", steered / "masks"]
    script("generate", *weights, "--sample_steps", 10)
    made = tmp_path / "results/generated"
    shares = []
    for mask in sorted((steered / "masks").rglob("*.png")):
        image = pixels_of(made / mask.relative_to(steered / "masks"))
        with Image.open(mask) as picture:
            inside = np.asarray(picture.resize((8, 8), Image.Resampling.NEAREST)) == 1
        shares.append(image[inside].mean() - image[~inside].mean() if inside.any() else 100)
    assert len(shares) == 13 and np.mean(shares) > 40
    paired = script("evaluate", steered / "images", made, "--paired", "--image_size", 8).stdout
    assert "13" in paired and "PSNR" in paired


def test_many_conditions_are_read_when_they_are_needed(steered, monkeypatch):
    checkpoint = Checkpoint.read(steered / "demo/ema_last.pt")
    condition = build_condition(checkpoint.condition)
    kept = Steering(steered / "masks", condition, (8, 8), 13)
    monkeypatch.setattr(steering, "MOST_KEPT", 3 * 8 * 8)
    few = Steering(steered / "masks", condition, (8, 8), 13)
    assert len(kept._kept) == 13 and len(few._kept) == 3
    places = [0, 12, 13, 5, 26]  # after the last one the first again
    assert torch.equal(few.pixels_of(places), kept.pixels_of(places))
    assert torch.equal(kept.pixels_of([13]), kept.pixels_of([0]))
    assert few.stems == kept.stems and few.is_whole


def test_nearest_images_are_in_the_order_of_the_masks(steered, script, tmp_path):
    """Whatever these are called: here by words, and by numbers that begin anew in each folder."""
    masks = tmp_path / "masks"
    some = sorted((steered / "masks").rglob("*.png"))
    names = ["b/10.png", "b/9.png", "a/cat.png"]
    for name, mask in zip(names, some, strict=False):
        (masks / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(mask, masks / name)
    weights = ["--weight_path", steered / "demo/ema_last.pt", "--condition", masks]
    script("generate", *weights, "--sample_steps", 2, "--nearest", steered / "images")
    made = tmp_path / "results/generated"
    with open(made / "nearest.csv", newline="") as file:
        found = [row["file"] for row in csv.DictReader(file)]
    assert found == ["a/cat.png", "b/10.png", "b/9.png"]
    assert (made / "grid.png").exists()


def test_one_mask_for_several_seeds_and_text(steered, script, tmp_path):
    mask = next((steered / "masks").rglob("*.png"))
    weights = ["--weight_path", steered / "demo/ema_last.pt", "--condition", mask]
    script("generate", *weights, "--num_images", 3, "--sample_steps", 3)
    files = sorted((tmp_path / "results/generated").glob("0*.png"))
    assert len(files) == 3
    with Image.open(files[0]) as first:
        assert first.text["condition"] == mask.stem
    images = [pixels_of(file) for file in files]
    assert np.abs(images[0] - images[1]).max() > 1
    again = ["--seed", 2, "--num_images", 1, "--sample_steps", 3, "--generate_name", "again"]
    script("generate", *weights, *again)
    assert np.abs(pixels_of(tmp_path / "results/again/00000.png") - images[2]).max() <= 1


def test_guidance_by_the_mask(steered, script, tmp_path):
    weights = ["--weight_path", steered / "demo/ema_last.pt", "--condition", steered / "masks/bag"]
    found = {}
    for scale in (0, 1, 4):
        name = f"s{scale}"
        options = ["--cfg_scale", scale, "--sample_steps", 3, "--generate_name", name]
        script("generate", *weights, *options)
        files = sorted((tmp_path / "results" / name).glob("[0-9]*.png"))
        found[scale] = np.stack([pixels_of(file) for file in files])
    assert len(found[0]) == 5
    assert np.abs(found[0] - found[1]).max() > 1 and np.abs(found[4] - found[1]).max() > 1


def test_what_a_network_lacks(steered, images, script, tmp_path):
    weights = ["--weight_path", steered / "demo/ema_last.pt"]
    assert "--condition names them" in script("generate", *weights, status=2).stderr
    masks = ["--condition", steered / "masks"]
    plain = script("generate", *masks, "--num_images", 1, status=2).stderr  # the demo's weights
    assert "trained without conditions" in plain
    said = script("evaluate", images, *weights, "--num_images", 40, status=2).stderr
    assert "makes images of conditions" in said
    wrong = ["--invert", next(images.rglob("*.png")), *masks]
    assert "does not go with --condition" in script("generate", *weights, *wrong, status=2).stderr


def test_image_to_image_under_a_mask(steered, images, script, tmp_path):
    """Editing and conditions go together."""
    weights = ["--weight_path", steered / "demo/ema_last.pt", "--num_images", 2]
    begun = ["--init_image", next(images.rglob("*.png")), "--sample_steps", 4]
    script("generate", *weights, *begun, "--condition", steered / "masks/boot")
    assert len(list((tmp_path / "results/generated").glob("0*.png"))) == 2


def test_names_that_cannot_stand_together_become_numbers(steered, script, tmp_path):
    masks = tmp_path / "masks"
    masks.mkdir()
    for name, file in zip(("a", "grid", "b"), sorted(steered.rglob("masks/*/*.png")), strict=False):
        shutil.copy(file, masks / f"{name}.png")
    weights = ["--weight_path", steered / "demo/ema_last.pt", "--condition", masks]
    script("generate", *weights, "--sample_steps", 2)
    made = {file.name for file in (tmp_path / "results/generated").iterdir()}
    assert made == {"00000.png", "00001.png", "00002.png", "grid.png"}
    (masks / "grid.png").unlink()
    (masks / "b.png").unlink()
    script("generate", *weights, "--sample_steps", 2, "--generate_name", "one")
    assert {file.name for file in (tmp_path / "results/one").iterdir()} == {"a.png", "grid.png"}


@pytest.mark.parametrize(
    ("stems", "can"),
    [
        (["a", "b"], True),
        (["x/a", "y/a"], True),
        (["a", "A"], False),
        (["a", "a.png/x"], False),
        (["grid.jpg", "b"], False),
        (["masks/a", "b"], False),
        (["Denoising", "b"], False),
        (["a" * 201, "b"], False),
    ],
)
def test_which_names_can_stand_together(stems, can):
    assert can_stand_together(stems, "png") == can


def test_images_are_enlarged_behind_their_conditions(steered, script, tmp_path):
    weights = ["--weight_path", steered / "demo/ema_last.pt", "--condition", steered / "masks/bag"]
    script("generate", *weights, "--sample_steps", 2, "--upscale", ROOT / "weight/upscaler_x2.pt")
    with Image.open(next((tmp_path / "results/generated").glob("[0-9]*.png"))) as picture:
        assert picture.size == (16, 16)
    assert (tmp_path / "results/generated/grid.png").exists()


def test_the_class_is_that_of_the_condition_s_folder(images, masks, script, tmp_path):
    options = ["--dataset_path", images, "--condition_path", masks, "--vis", "False"]
    script("train", *FEW, *options, "--epochs", 1)
    weights = ["--weight_path", tmp_path / "results/demo/ema_last.pt", "--condition", masks]
    script("generate", *weights, "--sample_steps", 2)
    files = list((tmp_path / "results/generated").glob("*/*.png"))
    assert len(files) == 13
    for file in files:
        with Image.open(file) as picture:
            assert picture.text["class"] == file.parent.name
            assert picture.text["condition"] == f"{file.parent.name}/{file.stem}"
    script("generate", *weights, "--sample_steps", 2, "--class_name", "bag", "--generate_name", "b")
    with Image.open(next((tmp_path / "results/b/boot").glob("*.png"))) as picture:
        assert picture.text["class"] == "bag"


def test_steered_weights_are_not_exported(steered, script, tmp_path):
    for form in ("diffusers", "safetensors"):
        command = [steered / "demo/ema_last.pt", tmp_path / "out", "--format", form]
        assert "makes images of conditions" in script("export", *command, status=2).stderr


def lying(change):
    config = {
        "network": {"in_channels": 3 + 2, "out_channels": 3, "num_classes": None},
        "data": {"image_size": [8, 8], "mode": "RGB", "class_names": []},
        "diffusion": {"noise_steps": 10, "noise_schedule": "cosine", "prediction": "v"},
        "sampling": {"sampler": "ddim", "guidance": True},
        "condition": {"name": "picture", "planes": 1},
    }
    for part, name, value in change:
        config[part] = {**config[part], name: value}
    return {"format_version": 2, "kind": "diffusion", "config": config}


@pytest.mark.parametrize(
    "change",
    [
        [("condition", "planes", 1.0)],
        [("condition", "planes", True)],
        [("condition", "planes", 3)],
        [("network", "out_channels", 1)],
        [("network", "out_channels", None)],
        [("condition", "name", "sound")],
    ],
)
def test_metadata_that_lies(change):
    assert Checkpoint.parse(lying([]), "x").condition == {"name": "picture", "planes": 1}
    with pytest.raises(UserError, match="not usable"):
        Checkpoint.parse(lying(change), "x")


def test_the_server_serves_such_weights(steered):
    from utils.serving.weights import WeightStore

    (weight,) = WeightStore([steered]).all()
    assert weight.condition is not None and weight.condition.config["name"] == "labels"
    assert torch.is_tensor(Checkpoint.read(steered / "demo/ema_last.pt").ema["conv_in.weight"])
