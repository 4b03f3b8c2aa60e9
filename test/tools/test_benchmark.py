"""benchmark.py runs; what it prints is for people, and what `peers` writes is for programs too."""

import json
import re

import pytest
from PIL import Image

from model.samplers import SAMPLERS

SIZES = ["--batch_size", 2, "--rounds", 1, "--use_gpu", -1]
TINY = ["--channels", 8, "--channel_mult", "4,8", "--image_size", 8, *SIZES]

OURS = ("ours_muon", "ours_adamw")
PEERS = ("diffusers", "denoising_diffusion_pytorch")


def test_our_own(script):
    train = script("benchmark", "train", *TINY).stdout
    assert re.findall(r"^(unet|cspdarkunet) float32 .*x the time", train, re.M)
    sample = script("benchmark", "sample", "--sample_steps", 2, *TINY).stdout
    assert len(re.findall(r"images/s", sample)) == 2 * len(SAMPLERS)
    assert "what training waits for" in script("benchmark", "save", *TINY).stdout
    latent = script("benchmark", "latent", *TINY[:4], "--image_size", 64, *SIZES).stdout
    assert len(re.findall(r"^(pixels|latents, 1/[48]) .*MiB more", latent, re.M)) == 3
    assert len(re.findall(r"^(pixels|latents, 1/[48]) .*x the time", latent, re.M)) == 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("benchmark")


@pytest.fixture
def compared(script, folder):
    """The output of one small comparison, which writes into the folder."""
    text = folder / "stdout.txt"
    if not text.exists():
        options = ["--quick", "--cases", "8x1", "--sample_steps", 2, "--out", folder, *SIZES]
        text.write_text(script("benchmark", "peers", *options).stdout)
    return text.read_text()


@pytest.mark.fault
def test_peers_writes_all_that_it_measured(compared, folder):
    found = json.loads((folder / "benchmark.json").read_text())
    assert found["versions"].keys() >= {"python", "torch", "diffusers"}
    assert found["machine"].keys() >= {"device", "device_name", "threads"}
    assert found["options"]["cases"] == ["8x8x1"] and found["date"]
    assert {peak["number_format"] for peak in found["convolution_peaks"]} >= {"float32"}
    assert all(peak["gflops"] > 0 for peak in found["convolution_peaks"])
    assert len(found["loader"]["seconds"]) > 0 and 0 < found["loader"]["share"] < 1

    (case,) = found["cases"]
    assert 0 <= case["largest_difference"] < 1e-4
    names = [each["contender"] for each in case["contenders"]]
    assert set(names) == {*OURS, "diffusers"} | (set(PEERS) & set(names))
    for each in case["contenders"]:
        own_calls = each["contender"] != "ours_adamw"
        for name in ("training", *(["call", "sampling"] if own_calls else [])):
            measure = each[name]
            (seconds,) = measure["seconds"]
            assert measure["median"] == seconds > 0 and measure["spread"] == 0
            assert measure["images_per_second"] == pytest.approx(2 / seconds)
            assert measure["gflops"] > 0 and 0 < measure["share_of_peak"] < 1
        assert len(each["sampler_overhead"]) == (2 if own_calls else 0)
        assert all(0 < share < 1 for share in each["sampler_overhead"])
        assert len(each["start_up_seconds"]) == len(each["memory_bytes"]) == 1
        # At least weights, gradients, two moments and the average.
        assert all(size > 5 * 4 * each["parameters"] for size in each["memory_bytes"])


@pytest.mark.fault
def test_the_same_layers_cost_the_same(compared, folder):
    (case,) = json.loads((folder / "benchmark.json").read_text())["cases"]
    contenders = {
        each["contender"]: each for each in case["contenders"] if each["number_format"] == "float32"
    }
    ours, theirs = contenders["ours_muon"], contenders["diffusers"]
    assert ours["parameters"] == theirs["parameters"]
    for one in ("training", "call", "sampling"):
        work = [each[one]["gflops"] * each[one]["median"] for each in (ours, theirs)]
        assert work[0] == pytest.approx(work[1])
    forward = ours["call"]["gflops"] * ours["call"]["median"]
    assert ours["training"]["gflops"] * ours["training"]["median"] == pytest.approx(3 * forward)
    assert ours["sampling"]["gflops"] * ours["sampling"]["median"] == pytest.approx(2 * forward)


@pytest.mark.fault
def test_peers_prints_what_it_writes(compared, folder):
    markdown = (folder / "benchmark.md").read_text()
    assert markdown.strip() in compared
    for words in ("Training step", "Network call", "Sampling", "Memory and start-up", "of peak"):
        assert words in markdown
    assert re.search(r"^\| ours, adamw +\| float32 +\| 0.20 M ", markdown, re.M)
    with Image.open(folder / "benchmark.png") as picture:
        picture.load()
        assert picture.mode == "RGB" and picture.width > 1000
        assert len(picture.getcolors(maxcolors=1 << 16)) > 4  # bars, not an empty sheet


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["peers", "--image_size", 16], "--image_size belongs to train, sample, save and latent"),
        (["train", "--quick"], "--quick belongs to peers"),
        (["sample", "--compile"], "--compile belongs to train"),
        (["save", "--sample_steps", 5], "--sample_steps belongs to peers and sample"),
        (["peers", "--sample_steps", 2000], "--sample_steps 2000"),
        (["train", "--image_size", 30], "28,28 and 32,32 would work"),
        (["sample", "--image_size", 30], "28,28 and 32,32 would work"),
        (["latent", "--image_size", 40], "32,32 and 64,64 would work"),
        (["peers", "--cases", "28"], "side x channels"),
        (["peers", "--cases", "28x2"], "1 or 3 channels"),
        (["peers", "--cases", "2x1"], "side x channels"),
    ],
)
def test_mistakes_are_named_before_any_work(script, tmp_path, options, words):
    out = ["--out", tmp_path] if options[0] == "peers" else []
    assert words in script("benchmark", *options, *out, status=2).stderr


def test_a_folder_that_cannot_be_made_is_named(script, tmp_path):
    (tmp_path / "file").touch()
    done = script("benchmark", "peers", "--out", tmp_path / "file", status=2)
    assert f"--out {tmp_path / 'file'} cannot be made" in done.stderr
