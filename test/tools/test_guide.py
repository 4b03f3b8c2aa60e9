"""Autoguidance by a run's own early average: what train.py keeps, and what is made with it."""

import os
import signal
import subprocess
import sys
from argparse import Namespace
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from helpers import ROOT, TINY, copy_some, wait_for_step
from PIL import Image
from training_helpers import train_script

from model.guidance import Autoguided
from utils.devices import Precision
from utils.errors import UserError
from utils.generation import ImageGenerator, Sampling
from utils.guidance_choice import LED_BY_LABELS
from utils.runs.checkpoint import Checkpoint
from utils.runs.files import save_checkpoint
from utils.training.label_guidance import MANY_IMAGES, LabelGuidance
from utils.training.recipe import GUIDE_SHARE, options_of

# 13 images in batches of 4 are four steps an epoch: half of the run is the end of the second one.
LONG = [*TINY, "--vis", "False", "--epochs", 4, "--lr", 0.01, "--conditional", "True"]
HALF = ["--guide_share", 0.5]


@pytest.fixture(scope="module")
def run(tmp_path_factory, script_server):
    """A run with a guide, and numbered checkpoints of each epoch."""
    folder = tmp_path_factory.mktemp("guided")
    command = [ROOT / "tools/train.py", *LONG, *HALF, "--use_gpu", -1, "--result_path", folder]
    command += ["--dataset_path", copy_some(folder / "images")]
    command += ["--save_model_interval", "--save_model_interval_epochs", 1]
    done = script_server.run([*map(str, command)], folder, 120)
    assert done.returncode == 0, done.stderr
    return folder / "demo"


def made(script, folder, *options, name):
    """The images, and the text of the first."""
    script("generate", "--num_images", 4, "--sample_steps", 5, *options, "--generate_name", name)
    files = sorted((folder / "results" / name).glob("0*.png"))
    with Image.open(files[0]) as first:
        text = dict(first.text)
    return np.stack([np.asarray(Image.open(file)).astype(int) for file in files]), text


def equal(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


# --- What a run keeps ---


def test_the_guide_is_the_average_of_that_share_of_the_run(run):
    at_half = Checkpoint.read(run / "ckpt_2.pt").ema
    for file in ("ema_last.pt", "ckpt_last.pt", "ckpt_2.pt"):
        guide = Checkpoint.read(run / file).guide
        assert equal(guide, {name: value.bfloat16() for name, value in at_half.items()})
    assert Checkpoint.read(run / "ckpt_1.pt").guide is None  # from before


@pytest.mark.parametrize(("images", "share"), [(999, 0.0), (1_000, GUIDE_SHARE)])
def test_few_images_have_no_guide_unless_it_is_asked_for(images, share):
    assert options_of("tiny", (28, 28), None, images)["guide_share"] == share
    given = dict.fromkeys(options_of("tiny", (28, 28)))
    assert options_of("tiny", (28, 28), given | {"guide_share": 0.4}, images)["guide_share"] == 0.4


def test_few_images_in_a_run(images, tmp_path, script):
    script("train", *LONG, "--epochs", 1, "--dataset_path", images)
    assert Checkpoint.read(tmp_path / "results/demo/ema_last.pt").guide is None


def test_a_run_that_is_lengthened(images, tmp_path, script):
    """As an uninterrupted one, where the share is still to come; later on, its guide stays."""
    common = [*LONG, *HALF, "--dataset_path", images, "--lr_func", "constant"]

    def last(name, epochs, *options):
        script("train", *common, "--epochs", epochs, "--run_name", name, *options)
        return Checkpoint.read(tmp_path / "results" / name / "ckpt_last.pt")

    whole = last("whole", 4)
    last("parts", 1)
    parts = last("parts", 4, "--resume")
    assert equal(whole.ema, parts.ema) and equal(whole.guide, parts.guide)
    longer = last("parts", 5, "--resume")
    assert equal(longer.guide, parts.guide)


def test_a_guide_that_is_asked_for_too_late(images, tmp_path, script):
    common = [*LONG, "--dataset_path", images]
    script("train", *common, "--guide_share", 0, "--epochs", 2)
    options = ["--guide_share", 0.1, "--epochs", 3, "--resume", "--allow_changes"]
    out = script("train", *common, *options).stdout
    assert "--guide_share 0.1 has no effect: a guide is kept after step 1, and 8 are done" in out
    assert Checkpoint.read(tmp_path / "results/demo/ema_last.pt").guide is None


def test_a_guide_that_is_not_wanted_any_more(images, tmp_path, script):
    common = [*LONG, "--dataset_path", images]
    script("train", *common, "--guide_share", 0.2, "--epochs", 2)
    assert Checkpoint.read(tmp_path / "results/demo/ema_last.pt").guide is not None
    script("train", *common, "--guide_share", 0, "--epochs", 3, "--resume", "--allow_changes")
    assert Checkpoint.read(tmp_path / "results/demo/ema_last.pt").guide is None


def test_a_guide_of_other_classes_numbers_or_latents_is_refused(run, tmp_path):
    """Even where there are as many."""
    checkpoint = Checkpoint.read(run / "ckpt_last.pt")
    precision = Precision(torch.float32, torch.device("cpu"))

    def led_by(guide):
        sampling = Sampling("ddim", 2, guide_scale=1.5)
        return ImageGenerator.from_checkpoint(checkpoint, sampling, precision, guide=guide)

    assert isinstance(led_by(Checkpoint.read(run / "ckpt_1.pt")).network, Autoguided)
    config = checkpoint.config
    others = {
        "classes": {"data": {**config["data"], "class_names": ["x", "y", "z"]}},
        "numbers": {"data": {**config["data"], "numbers": [{"name": "age", "mean": 0, "std": 1}]}},
        "codec": {"codec": {"name": "grey16"}},
    }
    for other in others.values():
        guide = replace(checkpoint, config={**config, **other})
        with pytest.raises(UserError, match="cannot guide these weights"):
            led_by(guide)


def test_labels_do_not_lead_where_there_are_none(images, tmp_path, script):
    script("train", *LONG, *HALF, "--conditional", "False", "--dataset_path", images)
    weights = ["--weight_path", tmp_path / "results/demo/ema_last.pt"]
    found = {}
    for name, scale in {"usual": [], "3": ["--cfg_scale", 3], "1": ["--cfg_scale", 1]}.items():
        found[name], text = made(script, tmp_path, *weights, *scale, name=name)
        assert text["cfg_scale"] == "1.0"
    assert (found["usual"] == found["3"]).all() and (found["usual"] != found["1"]).any()
    options = [*weights, "--cfg_scale", 3, "--guide_labels", "False", "--sample_steps", 2]
    out = script("generate", "--num_images", 1, *options).stdout
    assert "--cfg_scale 3 has no effect" in out and "--guide_labels False has no effect" in out


@pytest.mark.fault
def test_a_run_killed_after_its_guide_was_kept(images, tmp_path):
    command = [sys.executable, ROOT / "tools/train.py", *LONG, *HALF, "--dataset_path", images]
    command += ["--epochs", 400, "--save_every_steps", 1, "--log_interval", 1, "--use_gpu", -1]
    command += ["--guide_share", 0.002, "--result_path", tmp_path]  # after step 3
    words = [*map(str, command)]
    running = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.DEVNULL)
    wait_for_step(tmp_path / "demo", 10)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    before = Checkpoint.read(tmp_path / "demo/ckpt_last.pt")
    assert before.guide is not None and before.state["step"] >= 8
    resumed = subprocess.Popen([*words, "--resume"], cwd=tmp_path, stdout=subprocess.DEVNULL)
    wait_for_step(tmp_path / "demo", before.state["step"] + 5)
    resumed.terminate()
    resumed.wait()
    after = Checkpoint.read(tmp_path / "demo/ckpt_last.pt")
    assert after.state["step"] > before.state["step"]
    assert equal(before.guide, after.guide)


# --- What is made with it ---


def test_images_are_led_by_it_where_nobody_says_otherwise(run, script, tmp_path):
    weights = ["--weight_path", run / "ema_last.pt"]
    usual, text = made(script, tmp_path, *weights, name="usual")
    assert text["guide_scale"] == "1.5" and text["cfg_scale"] == "1.0"
    # As a file of its own, but for the rounding to bf16
    other = ["--guide_path", run / "ckpt_2.pt", "--guide_scale", 1.5, "--cfg_scale", 1]
    by_path, text = made(script, tmp_path, *weights, *other, name="by_path")
    assert text["guide"] == "ckpt_2.pt"
    plain, text = made(script, tmp_path, *weights, "--cfg_scale", 1, name="plain")
    assert "guide_scale" not in text
    assert np.abs(usual - by_path).max() <= 6
    assert np.abs(usual - plain).max() > 20
    both, text = made(script, tmp_path, *weights, "--cfg_scale", 3, "--guide_scale", 2, name="both")
    assert text["guide_scale"] == "2.0" and text["cfg_scale"] == "3.0"
    classes, text = made(script, tmp_path, *weights, "--cfg_scale", 3, name="classes")
    assert text["cfg_scale"] == "3.0" and "guide_scale" not in text
    off, text = made(script, tmp_path, *weights, "--guide_scale", 1, name="off")
    assert text["cfg_scale"] == "1.5" and "guide_scale" not in text
    assert np.abs(both - classes).max() > 1 and np.abs(off - plain).max() > 1


def test_a_guide_that_is_not_told_the_class(run, script, tmp_path):
    """Other images; asked of the file as well as on the command line, which wins."""
    weights = ["--weight_path", run / "ema_last.pt"]
    told, text = made(script, tmp_path, *weights, name="told")
    assert text["guide_labels"] == "True"
    untold, text = made(script, tmp_path, *weights, "--guide_labels", "False", name="untold")
    assert (text["guide_scale"], text["guide_labels"]) == ("1.5", "False")
    assert np.abs(untold - told).max() > 1
    checkpoint = Checkpoint.read(run / "ema_last.pt")
    guidance = {"cfg_scale": 1.0, "guide_scale": 1.5, "guide_labels": False}
    checkpoint.config["sampling"]["recommended_guidance"] = guidance
    save_checkpoint(checkpoint.to_dict(), tmp_path / "found.pt")
    weights = ["--weight_path", tmp_path / "found.pt"]
    found, text = made(script, tmp_path, *weights, name="found")
    assert np.array_equal(found, untold)
    again, text = made(script, tmp_path, *weights, "--guide_labels", name="again")
    assert text["guide_labels"] == "True" and np.array_equal(again, told)
    said = script("generate", *weights, "--cfg_scale", 1, "--guide_labels", status=2).stderr
    assert "--guide_labels is about a guide" in said


def test_a_network_that_never_did_without_labels(images, script, tmp_path):
    options = ["--dataset_path", images, "--label_drop", 0, "--cfg_scale", 1]
    script("train", *LONG, *HALF, *options)
    weights = ["--weight_path", tmp_path / "results/demo/ema_last.pt"]
    _, text = made(script, tmp_path, *weights, name="led")
    assert (text["guide_scale"], text["guide_labels"]) == ("1.5", "True")
    said = script("generate", *weights, "--guide_labels", "False", status=2).stderr
    assert "--label_drop 0" in said and "leave --guide_labels out" in said


@pytest.mark.parametrize(
    "wrong",
    [
        1.5,
        {"cfg_scale": 1.5},
        {"cfg_scale": "much", "guide_scale": 1.0, "guide_labels": True},
        {"cfg_scale": float("nan"), "guide_scale": 1.0, "guide_labels": True},
        {"cfg_scale": 1.0, "guide_scale": -1.0, "guide_labels": True},
        {"cfg_scale": 1.0, "guide_scale": 1.0, "guide_labels": 1},
        {"cfg_scale": 1.0, "guide_scale": 1.0, "guide_labels": True, "more": 0},
    ],
)
def test_a_recommendation_that_says_nothing(run, wrong):
    contents = Checkpoint.read(run / "ema_last.pt").to_dict()
    sampling = {**contents["config"]["sampling"], "recommended_guidance": wrong}
    contents["config"] = {**contents["config"], "sampling": sampling}
    with pytest.raises(UserError, match=r"config\.sampling\.recommended_guidance"):
        Checkpoint.parse(contents, "it")


def test_a_network_without_classes_is_led_too(images, script, tmp_path):
    script("train", *LONG, *HALF, "--conditional", "False", "--dataset_path", images)
    weights = ["--weight_path", tmp_path / "results/demo/ema_last.pt"]
    led, text = made(script, tmp_path, *weights, name="led")
    alone, _ = made(script, tmp_path, *weights, "--guide_scale", 1, name="alone")
    assert text["guide_scale"] == "1.5" and "guide_labels" not in text
    assert np.abs(led - alone).max() > 1


def test_what_is_led_is_the_extrapolation(run):
    """guide + 1.5 (network - guide), at one call."""
    checkpoint = Checkpoint.read(run / "ema_last.pt")
    sampling = Sampling.of_checkpoint(checkpoint, None, None, None, 0.0, True, None)
    precision = Precision(torch.float32, torch.device("cpu"))
    generator = ImageGenerator.from_checkpoint(checkpoint, sampling, precision)
    network = generator.network
    assert isinstance(network, Autoguided) and network.scale == 1.5
    x, t, labels = torch.randn(3, 1, 8, 8), torch.tensor([5, 500, 999]), torch.tensor([0, 1, 2])
    with torch.no_grad():
        good, worse = network.network(x, t, labels), network.guide(x, t, labels)
        assert (good - worse).abs().max() > 1e-3
        wanted = worse + 1.5 * (good - worse)
        assert (generator.call(x, t, labels) - wanted).abs().max() <= 1e-6


def test_an_older_description_of_the_same_process_guides(run):
    """From before an option existed, whose default it has."""
    checkpoint = Checkpoint.read(run / "ckpt_2.pt")
    older = replace(checkpoint, config={**checkpoint.config})
    older.config["diffusion"] = {
        name: value
        for name, value in checkpoint.config["diffusion"].items()
        if not name.startswith("beta")
    }
    sampling = Sampling.of_checkpoint(
        checkpoint, None, None, None, 0.0, True, None, guide_scale=2.0, guide=older
    )
    precision = Precision(torch.float32, torch.device("cpu"))
    made = ImageGenerator.from_checkpoint(checkpoint, sampling, precision, guide=older)
    assert made.network.scale == 2.0


def test_a_guide_that_is_not_there(images, script, tmp_path):
    script("train", *LONG, "--epochs", 1, "--dataset_path", images)
    options = ["--weight_path", tmp_path / "results/demo/ema_last.pt", "--guide_scale", 2]
    said = script("generate", *options, status=2).stderr
    assert "holds no guide" in said and "--guide_path" in said


# --- Whether it is told the class where nobody says ---


def bright_and_dark(folder, count):
    """Images in two classes, of which one is bright: in much noise only the label says which."""
    generator = torch.Generator().manual_seed(0)
    for name in "ab":
        (folder / name).mkdir(parents=True)
    for place in range(count):
        blocks = torch.randint(0, 120, (4, 4), generator=generator, dtype=torch.uint8)
        pixels = blocks.repeat_interleave(2, 0).repeat_interleave(2, 1)
        if place % 2:
            pixels += 135
        Image.fromarray(pixels.numpy()).save(folder / "ab"[place % 2] / f"{place}.png")
    return folder


BRIEF = [*TINY, "--vis", "False", "--epochs", 1, "--lr", 0.003, "--optim", "adamw"]


def test_labels_that_say_much_lead_many_images(script, tmp_path):
    images = bright_and_dark(tmp_path / "images", MANY_IMAGES + 300)
    options = ["--dataset_path", images, "--batch_size", 64, "--val_fraction", 0.02]
    script("train", *BRIEF, *options)
    weights = tmp_path / "results/demo/ema_last.pt"
    log = (tmp_path / "results/demo/log.txt").read_text()
    assert "the classes say much about the images" in log
    assert f"they are made with {LED_BY_LABELS}" in log
    assert Checkpoint.read(weights).recommended_guidance == LED_BY_LABELS
    _, text = made(script, tmp_path, "--weight_path", weights, name="usual")
    assert text["guide_scale"] == "1.25" and text["guide_labels"] == "False"


def test_nothing_is_recommended_of_few_images(script, tmp_path):
    images = bright_and_dark(tmp_path / "images", 300)
    script("train", *BRIEF, *HALF, "--dataset_path", images)
    saved = Checkpoint.read(tmp_path / "results/demo/ema_last.pt")
    assert saved.guide is not None and saved.recommended_guidance is None


@pytest.mark.parametrize(("gain", "is_led"), [(0.04, False), (0.25, False), (0.3, True), (2, True)])
def test_labels_that_say_little_lead_nothing(gain, is_led):
    """Of photographs 0.04 was measured, of digits 0.25, of garments 0.55."""
    state = Namespace(config={"sampling": {"sampler": "ddim"}}, ema=Namespace(network=None))
    assert LabelGuidance(Namespace(gain_of_labels=lambda network: gain))(state, lambda: False)
    expected = asdict(LED_BY_LABELS) if is_led else None
    assert state.config["sampling"].get("recommended_guidance") == expected


@pytest.mark.parametrize(
    ("asked", "is_measured"),
    [
        ({}, True),
        ({"conditional": False}, False),
        ({"label_drop": 0.0}, False),
        ({"guide_share": 0.0}, False),
        ({"held_out_loss": None}, False),
        ({"condition": "a mask"}, False),
        ({"images": MANY_IMAGES - 1}, False),
    ],
)
def test_when_the_gain_of_labels_is_measured(asked, is_measured):
    usual = {"conditional": True, "label_drop": 0.1, "guide_share": 0.2}
    usual |= {"held_out_loss": object(), "condition": None, "images": MANY_IMAGES}
    facts = Namespace(**usual | asked)
    source = Namespace(images=range(facts.images), condition=facts.condition)
    found = train_script().build_completion(facts, source, facts)
    assert (found is not None) == is_measured
