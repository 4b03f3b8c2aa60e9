"""How generate.py samples: what a checkpoint recommends, intervals, guides, and other processes."""

import shutil

import numpy as np
import pytest
from helpers import TINY, copy_some
from PIL import Image

from model.samplers import SAMPLERS
from utils.evaluation.sampler_comparison import Candidate, write_recommendation
from utils.runs.checkpoint import Checkpoint

FAR = ["--lr", "0.03", "--lr_func", "constant"]  # so that early and late weights differ


@pytest.fixture(scope="module")
def run(tmp_path_factory, script_server):
    """The folder of a run with a numbered checkpoint at each of its three epochs."""
    folder = tmp_path_factory.mktemp("trained")
    images = copy_some(folder / "images")
    train(script_server, folder, "--dataset_path", images, "--epochs", 3, *FAR, *KEPT)
    return folder / "demo"


KEPT = ["--save_model_interval", "True", "--save_model_interval_epochs", "1"]


def train(server, folder, *options):
    from helpers import ROOT

    command = [ROOT / "tools/train.py", *TINY, "--vis", "False", "--use_gpu", -1, *options]
    done = server.run([*map(str, command), "--result_path", str(folder)], folder, 120)
    assert done.returncode == 0, done.stderr


def generated(script, folder, weights, *options, name="generated"):
    """The pixels and the settings of the images."""
    script(
        "generate",
        "--weight_path",
        weights,
        "--num_images",
        2,
        "--generate_name",
        name,
        *options,
    )
    files = sorted((folder / "results" / name).glob("0*.png"))
    pictures = [Image.open(file) for file in files]
    return np.stack([np.asarray(picture).astype(int) for picture in pictures]), pictures[0].text


# --- What is usual ---


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], ("dpmpp2m", "20", "logsnr")),
        (["--sample", "ddim"], ("ddim", "50", "trailing")),
        (["--sample", "unipc"], ("unipc", "20", "logsnr")),
        (["--sample_steps", 4], ("dpmpp2m", "4", "logsnr")),
        (["--timestep_spacing", "karras", "--sample_steps", 4], ("dpmpp2m", "4", "karras")),
    ],
)
def test_what_is_not_given_is_usual(script, run, tmp_path, options, expected):
    _, text = generated(script, tmp_path, run / "ema_last.pt", *options)
    found = tuple(text[name] for name in ("sampler", "sample_steps", "timestep_spacing"))
    assert found == expected


def test_a_recommendation_is_taken(script, run, tmp_path):
    weights = tmp_path / "weights.pt"
    shutil.copy(run / "ema_last.pt", weights)
    write_recommendation(weights, Candidate("unipc", "karras", 7))
    before, after = Checkpoint.read(run / "ema_last.pt"), Checkpoint.read(weights)
    assert after.config["sampling"]["guidance"] == before.config["sampling"]["guidance"]
    assert after.ema.keys() == before.ema.keys()
    _, text = generated(script, tmp_path, weights, name="recommended")
    assert (text["sampler"], text["sample_steps"]) == ("unipc", "7")
    assert text["timestep_spacing"] == "karras"
    # what belongs to the recommended sampler is not taken for another one
    _, text = generated(script, tmp_path, weights, "--sample", "ddim", name="other")
    assert (text["sample_steps"], text["timestep_spacing"]) == ("50", "trailing")
    # a value that is given wins
    _, text = generated(script, tmp_path, weights, "--sample_steps", 3, name="fewer")
    assert (text["sampler"], text["sample_steps"]) == ("unipc", "3")
    assert text["timestep_spacing"] == "karras"


# --- Guidance ---


def test_guidance_within_an_interval(script, run, tmp_path):
    weights = run / "ema_last.pt"
    strong = ["--cfg_scale", 8, "--sample_steps", 6]
    everywhere, _ = generated(script, tmp_path, weights, *strong, name="everywhere")
    within, text = generated(
        script, tmp_path, weights, *strong, "--cfg_interval", "0.5,2", name="within"
    )
    nowhere, _ = generated(
        script, tmp_path, weights, *strong, "--cfg_interval", "9e6,1e7", name="nowhere"
    )
    none, _ = generated(script, tmp_path, weights, *strong[2:], "--cfg_scale", 1, name="none")
    assert text["cfg_interval"] == "0.5,2"
    assert np.array_equal(nowhere, none)
    assert np.abs(within - everywhere).max() > 1
    assert np.abs(within - none).max() > 1


@pytest.mark.parametrize("wrong", ["1", "2,1", "a,b", "1,inf", "-1,2"])
def test_a_wrong_interval(script, run, wrong):
    options = ["--weight_path", run / "ema_last.pt", f"--cfg_interval={wrong}"]
    assert "two ascending numbers" in script("generate", *options, status=2).stderr


def test_an_early_checkpoint_guides(script, run, tmp_path):
    weights = run / "ckpt_last.pt"
    plain = ["--cfg_scale", 1, "--sample_steps", 4]
    guide = ["--guide_path", run / "ckpt_1.pt"]
    alone, _ = generated(script, tmp_path, weights, *plain, name="alone")
    same, _ = generated(script, tmp_path, weights, *plain, *guide, "--guide_scale", 1, name="same")
    led, text = generated(script, tmp_path, weights, *plain, *guide, "--guide_scale", 3, name="led")
    assert text["guide_scale"] == "3.0"
    assert np.abs(same - alone).max() <= 1
    assert np.abs(led - alone).max() > 1


def test_a_guide_of_another_kind_is_refused(script, run, tmp_path, script_server):
    images = copy_some(tmp_path / "images")
    shutil.rmtree(images / "bag")
    train(script_server, tmp_path, "--dataset_path", images, "--epochs", 1)
    options = ["--weight_path", run / "ema_last.pt", "--guide_path", tmp_path / "demo/ema_last.pt"]
    assert "other classes" in script("generate", *options, status=2).stderr


# --- Other processes ---


@pytest.mark.fault
@pytest.mark.parametrize(
    "process",
    [
        ["--noise_schedule", "flow"],
        ["--noise_schedule", "flow", "--noise_shift", "3"],
        ["--zero_terminal_snr", "True"],
        ["--noise_shift", "2", "--prediction", "x0"],
    ],
)
def test_every_sampler_works_with_every_process(script, tmp_path, process):
    images = copy_some(tmp_path / "images")
    options = ["--dataset_path", images, *TINY, "--vis", "False"]
    script("train", *options, "--epochs", 1, *process)
    weights = tmp_path / "results/demo/ema_last.pt"
    for sampler in SAMPLERS:
        found, _ = generated(
            script, tmp_path, weights, "--sample", sampler, "--sample_steps", 4, name=sampler
        )
        assert found.std() > 0
    # a resumed run must have the same process
    again = [*options, "--epochs", 2, "--resume"]
    refused = script("train", *again, status=2).stderr
    name = process[0].removeprefix("--")
    assert name in refused
    script("train", *again, *process)


def test_eps_is_refused_where_it_says_nothing(script, tmp_path):
    images = copy_some(tmp_path / "images")
    options = ["--dataset_path", images, *TINY, "--prediction", "eps"]
    refused = script("train", *options, "--zero_terminal_snr", "True", status=2).stderr
    assert "v and x0 do" in refused
    assert "v and x0 do" in script("train", *options, "--noise_schedule", "flow", status=2).stderr
