"""compare_samplers.py through its command line, with the packages of requirements-metrics.txt."""

import json
import shutil
import subprocess
import sys
from dataclasses import asdict

import pytest
import torch
from helpers import DEMO, ROOT, TINY
from PIL import Image

from tools import compare_samplers
from utils.errors import UserError
from utils.evaluation.same_seeds import Answer
from utils.evaluation.sampler_comparison import (
    Candidate,
    Result,
    recommended,
    write_recommendation,
)
from utils.guidance_choice import Guidance
from utils.runs.checkpoint import Checkpoint
from utils.runs.files import save_checkpoint


def result(steps, kid, error=0.002):
    nothing = torch.zeros(1, 1, 1, 1, dtype=torch.uint8)
    answer = Answer(1.0, kid, error, nothing)
    return Result(Candidate("ddim", "trailing", steps), steps, answer, 0.0)


def test_the_fewest_calls_among_the_good_are_recommended():
    results = [result(5, 0.060), result(10, 0.0415), result(20, 0.041), result(50, 0.040)]
    assert recommended(results).calls == 10
    assert recommended([result(5, 0.060), result(10, 0.043), result(50, 0.040)]).calls == 50


@pytest.fixture
def weights(tmp_path):
    shutil.copy(ROOT / "weight/demo.pt", tmp_path / "demo.pt")
    return tmp_path / "demo.pt"


FEW = ["--num_images", 12, "--batch_size", 12, "--use_gpu", -1, "--num_shown", 4]
FEW += ["--samplers", "ddim", "dpmpp2m", "--spacings", "logsnr", "--steps", 2, 8]


@pytest.mark.metrics
def test_table_picture_and_recommendation(script, weights, tmp_path):
    results = tmp_path / "results"
    out = script(
        "compare_samplers",
        weights,
        DEMO,
        *FEW,
        "--result_path",
        results,
        "--json",
        tmp_path / "found.json",
    ).stdout
    found = json.loads((tmp_path / "found.json").read_text())
    assert len(found["results"]) == 4
    by_steps = {(each["sampler"], each["sample_steps"]): each for each in found["results"]}
    # more steps are nearer to the exact images, and two calls are far from good
    for sampler in ("ddim", "dpmpp2m"):
        few, many = by_steps[sampler, 2], by_steps[sampler, 8]
        assert many["rms_from_exact"] < few["rms_from_exact"]
        assert many["kid"] < few["kid"]
    assert by_steps["dpmpp2m", 8]["rms_from_exact"] < by_steps["ddim", 8]["rms_from_exact"]
    best = found["best"]
    assert best["sample_steps"] == 8
    assert "| dpmpp2m | logsnr | 2 |" in (results / "samplers/samplers.md").read_text()
    assert Image.open(results / "samplers/samplers.png").width > 4 * 28
    sampling = Checkpoint.read(weights).config["sampling"]
    assert sampling["sampler"] == best["sampler"]
    assert sampling["sample_steps"] == 8
    assert sampling["timestep_spacing"] == "logsnr"
    assert f"{weights} is sampled with {best['sampler']} logsnr 8" in out


@pytest.mark.metrics
def test_guidance_is_compared_and_recommended(script, weights, tmp_path):
    """By the label in two strengths, and by a guide that is told the class, or not."""
    checkpoint = Checkpoint.read(weights)
    noise = {name: 0.02 * torch.randn_like(value) for name, value in checkpoint.ema.items()}
    checkpoint.guide = {
        name: (value + noise[name]).bfloat16() if value.is_floating_point() else value
        for name, value in checkpoint.ema.items()
    }
    save_checkpoint(checkpoint.to_dict(), weights)
    results = tmp_path / "results"
    common = ["--num_images", 12, "--batch_size", 12, "--use_gpu", -1, "--num_shown", 2]
    common += ["--samplers", "dpmpp2m", "--spacings", "logsnr", "--steps", 4]
    common += ["--result_path", results, "--json", tmp_path / "found.json"]

    def compared(*options):
        script("compare_samplers", weights, DEMO, *common, *options)
        return json.loads((tmp_path / "found.json").read_text())

    by_label = compared("--cfg_scale", 1, 3, "--write", "False")["results"]
    assert [each["calls"] for each in by_label] == [4, 8]
    assert by_label[0]["kid"] != by_label[1]["kid"]
    found = compared("--guide_scale", 1.5, "--guide_labels", "True", "False")
    told, untold = found["results"]
    assert (told["guide_labels"], untold["guide_labels"]) == (True, False)
    assert told["cfg_scale"] == untold["cfg_scale"] == 1
    assert told["kid"] != untold["kid"]
    table = (results / "samplers-2/samplers.md").read_text()
    assert "| guide 1.5 | 8 |" in table and "| guide 1.5 without labels | 8 |" in table
    best = Guidance(**{name: found["best"][name] for name in asdict(Guidance())})
    assert Checkpoint.read(weights).recommended_guidance == best


@pytest.mark.metrics
def test_calls_within_the_interval_alone_are_counted_twice(script, weights, tmp_path):
    options = [*FEW, "--samplers", "ddim", "--steps", 10, "--cfg_scale", 3, "--write", "False"]
    options += ["--result_path", tmp_path / "results", "--json", tmp_path / "found.json"]
    for interval, calls in (("0.3,2", 12), ("0,1e9", 20)):
        script("compare_samplers", weights, DEMO, *options, "--cfg_interval", interval)
        (found,) = json.loads((tmp_path / "found.json").read_text())["results"]
        assert found["calls"] == calls


@pytest.mark.metrics
def test_nothing_is_written_where_it_is_not_wanted(script, weights, tmp_path):
    before = weights.read_bytes()
    options = [*FEW, "--steps", 2, "--write", "False", "--result_path", tmp_path / "results"]
    script("compare_samplers", weights, DEMO, *options)
    assert weights.read_bytes() == before


@pytest.mark.metrics
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "2000"], "1..1000"),
        (["--num_images", "2"], "3 are the fewest"),
        (["--samplers", "euler"], "takes"),
        (["--guide_scale", "2"], "holds no guide"),
        (["--guide_labels", "False"], "none leads these images"),
        (["--cfg_scale", "1.5", "--guide_labels", "True", "False"], "none leads these images"),
        (["--cfg_interval", "0.3,5"], "keep no --cfg_interval"),
        (["--clip_sample", "False"], "keep no --clip_sample False"),
        (["--use_ema", "False"], "keep no --use_ema False"),
    ],
)
def test_mistakes(script, weights, options, message):
    done = script("compare_samplers", weights, DEMO, *options, status=2)
    assert message in done.stderr


@pytest.mark.metrics
@pytest.mark.parametrize("values", [("--cfg_scale", 1, 2), ("--guide_labels", "True", "False")])
def test_no_two_images_that_are_the_same_without_classes(script, weights, values):
    checkpoint = Checkpoint.read(weights)
    checkpoint.config["network"]["num_classes"] = None
    checkpoint.config["data"]["class_names"] = []
    checkpoint.ema = {name: value for name, value in checkpoint.ema.items() if "label" not in name}
    save_checkpoint(checkpoint.to_dict(), weights)
    done = script("compare_samplers", weights, DEMO, "--guide_scale", 1, *values, status=2)
    assert f"has no classes, which {values[0]} is about" in done.stderr


@pytest.mark.metrics
def test_safetensors_are_not_written_over(script, weights, tmp_path):
    file = tmp_path / "demo.safetensors"
    script("export", weights, file, "--format", "safetensors")
    before = file.read_bytes()
    assert "pass --write False" in script("compare_samplers", file, DEMO, status=2).stderr
    assert file.read_bytes() == before


@pytest.mark.metrics
def test_missing_folder(script, weights, tmp_path):
    options = ["--result_path", tmp_path / "results"]
    done = script("compare_samplers", weights, tmp_path / "nowhere", *options, status=2)
    assert "does not exist" in done.stderr
    assert not list((tmp_path / "results").iterdir())


def test_a_recommendation_is_that_of_its_weights(script, tmp_path):
    """A finished run that is resumed without more steps keeps it; with more it is dropped whole."""
    options = ["--dataset_path", DEMO, *TINY, "--run_name", "a", "--vis", "False"]
    options += ["--val_fraction", 0, "--batch_size", 500]
    script("train", *options, "--epochs", 1, "--sample", "plms")
    file = tmp_path / "results/a/ema_last.pt"
    write_recommendation(file, Candidate("unipc", "karras", 7))
    recommended = Checkpoint.read(file).config["sampling"]

    script("train", *options, "--epochs", 1, "--resume")
    assert Checkpoint.read(file).config["sampling"] == recommended
    out = script("train", *options, "--epochs", 2, "--resume").stdout
    assert "was for the weights before these steps" in out and "changed are" not in out
    sampling = Checkpoint.read(file).config["sampling"]
    assert sampling == {"sampler": "plms", "guidance": True}


def test_a_recommendation_goes_to_the_file_behind_a_link_and_to_no_run_that_is_trained(
    weights, tmp_path
):
    run = tmp_path / "run"
    run.mkdir()
    file = run / "ema_last.pt"
    weights.rename(file)
    link = tmp_path / "link.pt"
    link.symlink_to(file)
    write_recommendation(link, Candidate("plms", "linspace", 7))
    assert link.is_symlink()
    assert Checkpoint.read(file).config["sampling"]["sample_steps"] == 7

    held = "from utils.runs.safeguards import FolderLock; from pathlib import Path; "
    held += f"lock = FolderLock(Path({str(run)!r})); print('held', flush=True); input()"
    command = [sys.executable, "-c", held]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as trainer:
        assert trainer.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match="a run is being trained in"):
            write_recommendation(link, Candidate("ddim", "trailing", 9))
        with pytest.raises(UserError, match="a run is being trained in"):  # before any work
            compare_samplers.main([str(link), str(DEMO)])
        trainer.stdin.close()
    write_recommendation(link, Candidate("ddim", "trailing", 9))  # it has ended
    assert Checkpoint.read(file).config["sampling"]["sample_steps"] == 9
