"""compare_samplers.py through its command line, with the packages of requirements-metrics.txt."""

import json
import shutil

import pytest
import torch
from helpers import DEMO, ROOT
from PIL import Image

from utils.evaluation.same_seeds import Answer
from utils.evaluation.sampler_comparison import Candidate, Result, recommended
from utils.runs.checkpoint import Checkpoint


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
    ],
)
def test_mistakes(script, weights, options, message):
    done = script("compare_samplers", weights, DEMO, *options, status=2)
    assert message in done.stderr


@pytest.mark.metrics
def test_missing_folder(script, weights, tmp_path):
    done = script("compare_samplers", weights, tmp_path / "nowhere", status=2)
    assert "does not exist" in done.stderr
