"""generate.py through its command line."""

import csv
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from helpers import DEMO, ROOT, TINY
from PIL import Image
from upscaling_helpers import upscaler, write_upscaler

from tools import generate
from tools.generate import labels_asked_for
from utils import generation
from utils.call_memory import memory_of_row
from utils.errors import TooLittleMemory, UserError
from utils.free_memory import SHARE_OF_MEMORY
from utils.overview_pictures import Overviews, fallback_of
from utils.ranks import Ranks
from utils.runs.files import read_checkpoint


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A checkpoint of a short run on three classes, with a sampler of its own."""
    folder = tmp_path_factory.mktemp("trained")
    for name in ("bag", "boot", "trouser"):
        (folder / "images" / name).mkdir(parents=True)
        for file in sorted((DEMO / name).iterdir())[:4]:
            shutil.copy(file, folder / "images" / name)
    command = [
        sys.executable,
        str(ROOT / "tools/train.py"),
        "--dataset_path",
        str(folder / "images"),
        *TINY,
    ]
    command += [
        "--result_path",
        str(folder),
        "--epochs",
        "2",
        "--use_gpu",
        "-1",
        "--vis",
        "False",
        "--sample",
        "plms",
    ]
    command += [
        "--lr",
        "0.03",
        "--lr_func",
        "constant",
    ]  # far enough from the start for raw and EMA weights to differ
    subprocess.run(command, check=True, capture_output=True)
    return folder / "demo" / "ckpt_last.pt"


def pictures(folder):
    return [np.asarray(Image.open(file)) for file in sorted(folder.glob("0*.png"))]


def test_images_grid_and_settings(script, weights, tmp_path):
    out = script(
        "generate", "--weight_path", weights, "--num_images", 5, "--seed", 3, "--sample_steps", 4
    ).stdout
    folder = tmp_path / "results" / "generated"
    assert str(folder) in out
    files = [f"{i:05d}.png" for i in range(5)]
    assert sorted(path.name for path in folder.iterdir()) == [*files, "grid.png"]
    image = Image.open(folder / "00001.png")
    assert image.size == (8, 8) and image.mode == "L"
    settings = image.text
    assert settings["seed"] == "4" and settings["class"] == "boot" and settings["sampler"] == "plms"
    assert (
        settings["sample_steps"] == "4"
        and settings["weights"] == "ckpt_last.pt"
        and settings["prediction"] == "v"
    )
    script("generate", "--weight_path", weights, "--num_images", 1, "--sample_steps", 2)
    assert len(pictures(folder)) == 5 and len(pictures(tmp_path / "results" / "generated-2")) == 1


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "plms"])
def test_an_image_belongs_to_its_seed(script, weights, tmp_path, sampler):
    options = [
        "--weight_path",
        weights,
        "--sample",
        sampler,
        "--sample_steps",
        5,
        "--class_name",
        "bag",
        "--cfg_scale",
        2,
    ]
    script("generate", *options, "--num_images", 5, "--batch_size", 3, "--generate_name", "many")
    script("generate", *options, "--num_images", 1, "--seed", 4, "--generate_name", "alone")
    many, alone = (pictures(tmp_path / "results" / name) for name in ("many", "alone"))
    assert (
        np.abs(many[4].astype(int) - alone[0]).max() <= 1
    )  # a float on the edge may round the other way
    assert np.abs(many[3].astype(int) - alone[0]).max() > 10


def test_two_processes_draw_what_one_draws(script, weights, tmp_path):
    options = [
        "--weight_path",
        weights,
        "--num_images",
        5,
        "--sample",
        "ddpm",
        "--sample_steps",
        6,
        "--cfg_scale",
        2,
    ]
    script("generate", *options, "--generate_name", "one")
    script(
        "generate",
        *options,
        "--generate_name",
        "two",
        "--distributed",
        "--world_size",
        2,
        "--animate",
        "gif",
    )
    one, two = (pictures(tmp_path / "results" / name) for name in ("one", "two"))
    assert len(one) == len(two) == 5
    assert max(np.abs(a.astype(int) - b).max() for a, b in zip(one, two, strict=True)) <= 1
    assert (tmp_path / "results/two/denoising.gif").exists()


@pytest.mark.fault
@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "plms"])
def test_two_processes_draw_the_same_numbers_as_one(weights, tmp_path, sampler, scale):
    """Before they are rounded to pixels, to 1e-4; 50 steps."""
    command = [
        sys.executable,
        str(ROOT / "test/helper_raw.py"),
        "--weight_path",
        str(weights),
        "--num_images",
        "5",
    ]
    command += [
        "--sample",
        sampler,
        "--cfg_scale",
        str(scale),
        "--sample_steps",
        "50",
        "--result_path",
        str(tmp_path),
    ]
    for name, spread in (("one", ["--batch_size", "2"]), ("two", ["--distributed"])):
        run = [*command, "--use_gpu", "-1", "--generate_name", name, *spread]
        subprocess.run(run, check=True, capture_output=True, timeout=120)
    for i in range(5):
        one, two = (torch.load(tmp_path / name / f"{i:05d}.pt") for name in ("one", "two"))
        assert one.shape == (1, 8, 8) and (one - two).abs().max() < 1e-4


def test_one_image_per_class_at_another_size_and_animated(script, weights, tmp_path):
    script(
        "generate",
        "--weight_path",
        weights,
        "--class_name",
        -1,
        "--image_size",
        "12,16",
        "--animate",
        "webp",
        "--sample_steps",
        6,
        "--sample",
        "ddim",
        "--eta",
        1,
        "--image_format",
        "jpg",
    )
    folder = tmp_path / "results" / "generated"
    images = sorted(folder.glob("0*.jpg"))
    assert len(images) == 3 and all(Image.open(file).size == (16, 12) for file in images)
    film = Image.open(folder / "denoising.webp")
    assert film.n_frames == 6 and film.width > film.height
    error = script("generate", "--weight_path", weights, "--image_size", "13", status=2).stderr
    assert "multiples of 2; 12,12 and 14,14 would work" in error


@pytest.mark.parametrize(
    ("options", "remark"),
    [
        (["--sample", "dpmpp2m", "--eta", 1], "--eta 1 has no effect: it is for --sample ddim"),
        (["--cfg_scale", 1, "--cfg_interval", "0.3,5"], "--cfg_interval has no effect"),
        (
            ["--cfg_scale", 3, "--cfg_interval", "0.3,0.301"],
            "--cfg_interval 0.3,0.301 has no effect",
        ),
    ],
)
def test_what_does_nothing_is_said(script, options, remark):
    common = ["--num_images", 1, "--sample_steps", 3]
    assert f"warning: {remark}" in script("generate", *common, *options).stdout
    without = ["--eta", 1, "--cfg_scale", 3, "--cfg_interval", "0.3,5"]
    assert "no effect" not in script("generate", *common, *without).stdout


def test_a_guide_is_of_the_same_kind_and_is_named_where_it_guides(script, tmp_path):
    common = ["--num_images", 1, "--sample_steps", 2, "--guide_scale", 1]
    upscaler = ROOT / "weight/upscaler_x2.pt"
    error = script("generate", *common, "--guide_path", upscaler, status=2).stderr
    assert "is a checkpoint of kind upscaler, but diffusion is needed" in error
    script("generate", *common, "--guide_path", ROOT / "weight/demo.pt")
    with Image.open(tmp_path / "results/generated/00000.png") as picture:
        assert "guide" not in picture.text and picture.text["weights"] == "demo.pt"


def test_several_classes_of_a_network_that_saw_one_each_are_a_guess(script, tmp_path):
    common = ["--num_images", 1, "--sample_steps", 2]
    for asked, is_guess in (("boot,bag", True), ("boot", False)):
        out = script("generate", *common, "--class_name", asked).stdout
        assert ("what it makes of several is a guess" in out) == is_guess


def test_ema_or_raw_weights(script, weights, tmp_path):
    options = ["--weight_path", weights, "--num_images", 2, "--sample_steps", 3]
    script("generate", *options, "--generate_name", "ema")
    script("generate", *options, "--generate_name", "raw", "--use_ema", "False")
    script(
        "generate",
        *options[2:],
        "--weight_path",
        weights.parent / "ema_last.pt",
        "--generate_name",
        "slim",
    )
    ema, raw, slim = (pictures(tmp_path / "results" / name) for name in ("ema", "raw", "slim"))
    assert all(np.array_equal(a, b) for a, b in zip(ema, slim, strict=True))
    assert any(not np.array_equal(a, b) for a, b in zip(ema, raw, strict=True))


def test_bare_weights_need_the_article_s_options(script, weights, tmp_path):
    torch.save(
        {f"module.{k}": v for k, v in read_checkpoint(weights)["ema"].items()}, tmp_path / "bare.pt"
    )
    options = ["--num_images", 2, "--sample_steps", 3, "--image_size", 8, "--sample", "ddim"]
    script("generate", *options, "--weight_path", weights, "--generate_name", "full")
    described = ["--conditional", "--num_classes", 3, "--network", "unet", "--act", "silu"]
    described += ["--noise_schedule", "cosine", "--prediction", "v", "--head_channels", 8]
    described += ["--norm_groups", 2]
    script(
        "generate",
        *options,
        "--weight_path",
        tmp_path / "bare.pt",
        *described,
        "--generate_name",
        "bare",
    )
    full, bare = (pictures(tmp_path / "results" / name) for name in ("full", "bare"))
    assert all(np.array_equal(a, b) for a, b in zip(full, bare, strict=True))
    wrong = script(
        "generate",
        "--weight_path",
        tmp_path / "bare.pt",
        "--num_classes",
        5,
        *described[3:],
        status=2,
    )
    assert "condition.label.weight (4, 32) instead of (6, 32)" in wrong.stderr
    assert (
        "needs --num_classes"
        in script(
            "generate", "--weight_path", tmp_path / "bare.pt", "--conditional", status=2
        ).stderr
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--class_name", "hat"], "known are 0 bag, 1 boot, 2 trouser, or -1"),
        (["--class_name", "3"], "known are 0 bag"),
        (["--network", "cspdarkunet"], "was trained with unet"),
        (["--num_classes", "4"], "was trained with 3"),
        (["--conditional", "False"], "was trained with True"),
        (["--act", "gelu"], "was trained with silu"),
        (["--sample_steps", "2000"], "must lie in 1..1000"),
        (["--weight_path", "missing.pt"], "No such file"),
        (["--generate_name", "a/b"], "without slashes"),
        (["--nearest", "missing"], "missing does not exist; name the folder of training images"),
    ],
)
def test_mistakes(script, weights, options, message):
    assert message in script("generate", "--weight_path", weights, *options, status=2).stderr


def test_class_names_come_before_numbers():
    class Args:
        class_name, num_images, weight_path, condition = "1", 2, "w.pt", None

    labels, remark = labels_asked_for(Args, ["1", "0"])
    assert (
        labels == [0, 0]
        and "is the class of that name, number 0; number 1 is the class 0" in remark
    )
    assert labels_asked_for(Args, ["0", "1"]) == ([1, 1], "")
    assert labels_asked_for(Args, ["a", "b"]) == ([1, 1], "class number 1 is b")
    Args.class_name = None
    assert labels_asked_for(Args, ["a", "b", "c"])[0] == [0, 1]
    assert labels_asked_for(Args, []) == (None, "")
    Args.class_name = "e\u0301te\u0301"  # as a Mac stores it
    assert labels_asked_for(Args, ["a", "\u00e9t\u00e9"])[0] == [1, 1]
    Args.class_name = "a"
    with pytest.raises(UserError, match="trained without classes"):
        labels_asked_for(Args, [])


def test_images_are_written_as_they_are_done(weights, tmp_path):
    command = [
        sys.executable,
        str(ROOT / "tools/generate.py"),
        "--weight_path",
        str(weights),
        "--use_gpu",
        "-1",
    ]
    command += [
        "--num_images",
        "100000",
        "--batch_size",
        "4",
        "--sample_steps",
        "2",
        "--result_path",
        str(tmp_path),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and len(list(tmp_path.rglob("0*.png"))) < 8:
        time.sleep(0.05)
    assert process.poll() is None
    process.kill()
    process.wait()
    assert all(picture.shape == (8, 8) for picture in pictures(tmp_path / "generated")[:8])


def generate_with(weights, folder, name, *options):
    """Like a user, but in this process, so that tests can say how much memory is free."""
    words = ["--weight_path", weights, "--result_path", folder, "--generate_name", name, *options]
    words += ["--use_gpu", -1, "--num_images", 5, "--sample_steps", 2, "--sample", "ddim"]
    with pytest.raises(SystemExit) as stop:
        generate.main([str(word) for word in words])
    return stop.value.code


@pytest.mark.parametrize("scale", [1, 2])
def test_as_many_images_at_once_as_fit_into_memory(weights, tmp_path, capsys, monkeypatch, scale):
    """Guided ones take two rows each."""
    network = read_checkpoint(weights)["config"]["network"]
    free = 6.5 * memory_of_row(network, (8, 8)) / SHARE_OF_MEMORY
    seen = set()

    def counted(self, x, t, labels=None):
        seen.add(len(x))
        return call(self, x, t, labels)

    call = generation.ImageGenerator.call
    monkeypatch.setattr(generation.ImageGenerator, "call", counted)
    guided = ["--cfg_scale", scale]
    assert generate_with(weights, tmp_path, "usual", *guided) == 0
    assert "at once" not in capsys.readouterr().out
    monkeypatch.setattr(generation, "free_memory", lambda device, processes: free)
    if scale == 1:
        assert generate_with(weights, tmp_path, "split", *guided) == 0
        assert "at once" not in capsys.readouterr().out and seen == {5}
        return
    assert seen == {10}
    seen.clear()
    assert generate_with(weights, tmp_path, "split", *guided) == 0
    assert "3 of the images at once: more do not fit" in capsys.readouterr().out
    assert seen == {6, 4}
    usual, split = pictures(tmp_path / "usual"), pictures(tmp_path / "split")
    assert max(np.abs(a.astype(int) - b).max() for a, b in zip(usual, split, strict=True)) <= 1
    seen.clear()
    assert generate_with(weights, tmp_path, "asked", *guided, "--batch_size", 4) == 0
    assert "at once" not in capsys.readouterr().out and seen == {8, 2}


def test_one_image_at_once_where_not_even_that_fits(weights, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(generation, "free_memory", lambda device, processes: -1e9)
    assert generate_with(weights, tmp_path, "alone") == 0
    assert "1 of the images at once" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("batch", "advice"),
    [(4, "a smaller --batch_size gives the same images"), (1, "smaller images need less")],
)
def test_where_memory_runs_out_advice_is_given(weights, tmp_path, monkeypatch, batch, advice):
    monkeypatch.setattr(generation.ImageGenerator, "call", lambda *inputs: torch.empty(2**50))
    with pytest.raises(TooLittleMemory, match=advice):
        generate_with(weights, tmp_path, "none", "--batch_size", batch)
    assert not (tmp_path / "none").exists()


def test_processes_that_are_not_started_are_named(weights, tmp_path, capsys):
    assert generate_with(weights, tmp_path, "alone", "--world_size", 4) == 0
    assert "--world_size 4 has no effect without --distributed" in capsys.readouterr().out


def test_numbers_that_are_not_finite_make_no_image(script, weights, tmp_path):
    contents = torch.load(weights, weights_only=True)
    contents["ema"]["conv_in.weight"] *= 1e38
    torch.save(contents, tmp_path / "far.pt")
    options = ["--weight_path", tmp_path / "far.pt", "--num_images", 2, "--sample_steps", 2]
    said = script("generate", *options, status=2).stderr
    assert "numbers that are not finite, for the seeds 0, 1" in said
    assert not list((tmp_path / "results").rglob("0*.png"))


def test_the_others_of_a_batch_are_written(weights, tmp_path, monkeypatch):
    real = generation.ImageGenerator.denoise

    def spoilt(self, seeds, *rest):
        for denoised in real(self, seeds, *rest):
            if denoised.is_last and len(seeds) > 1:
                denoised.trajectory.x[1] = float("nan")
            yield denoised

    monkeypatch.setattr(generation.ImageGenerator, "denoise", spoilt)
    argv = ["--weight_path", weights, "--num_images", 5, "--batch_size", 3, "--sample_steps", 2]
    argv += ["--use_gpu", -1, "--result_path", tmp_path / "results"]
    with pytest.raises(UserError, match="for the seeds 1, 4:"):
        generate.generate(generate.build_parser().parse_args([str(each) for each in argv]), Ranks())
    names = sorted(file.name for file in (tmp_path / "results/generated").glob("0*.png"))
    assert names == ["00000.png", "00002.png", "00003.png"]


def test_a_class_that_no_font_writes_has_its_number():
    nan = float("nan")
    assert fallback_of(3, 0) == "class 3"
    assert fallback_of((0.5, 1.0), 1) == "class 1"
    assert fallback_of((nan, 1.0, nan), 1) == "class 1"
    assert fallback_of((0.0, 2.0), 0) == "several classes"


def test_overviews_hold_copies_of_bounded_size():
    """Neither the batches that images come from, nor grids that no file takes."""
    batch = torch.arange(32 * 3 * 8 * 8).reshape(32, 3, 8, 8).to(torch.uint8)
    overviews = Overviews(1000, None, is_film=True)
    for place in range(1000):
        overviews.add(place, batch[place % 32])
    assert [image.untyped_storage().nbytes() for image in overviews.grid()] == [3 * 8 * 8] * 256
    assert torch.equal(overviews.grid()[33], batch[1])
    places = overviews.in_film
    assert len(overviews.film()) == len(set(places)) == 256
    assert (places[0], places[-1]) == (0, 999) and places == sorted(places)
    assert torch.equal(overviews.film()[-1], batch[999 % 32])

    large = Overviews(256, None, is_film=False)
    stripes = torch.zeros(1, 1024, 512, dtype=torch.uint8)
    stripes[:, ::2] = 200
    large.add(0, stripes)
    assert large.in_film == []
    assert torch.equal(large._grid[0], torch.full((1, 512, 256), 100, dtype=torch.uint8))


def nearest_rows(folder):
    with open(folder / "nearest.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_the_nearest_training_images_are_named(script, weights, tmp_path):
    """Images that were generated before, mirrored, are the training set: so all are copies."""
    options = ["--weight_path", weights, "--num_images", 6, "--sample_steps", 4]
    script("generate", *options, "--generate_name", "first")
    first = tmp_path / "results" / "first"
    training = tmp_path / "training" / "all of them"
    training.mkdir(parents=True)
    for file in first.glob("0*.png"):
        Image.open(file).transpose(Image.FLIP_LEFT_RIGHT).save(training / f"mirrored {file.name}")
    for file in DEMO.glob("sneaker/00*.png"):
        shutil.copy(file, training)
    options += ["--nearest", training.parent]
    out = script("generate", *options, "--generate_name", "again").stdout
    rows = nearest_rows(tmp_path / "results" / "again")
    assert [row["file"] for row in rows] == [f"{i:05d}.png" for i in range(6)]
    for row in rows:
        assert row["nearest"] == f"all of them/mirrored {row['file']}"
        assert row["distance"] == "0.0000" and row["copy"] == "True"
        text = Image.open(tmp_path / "results" / "again" / row["file"]).text
        assert {key: text[key] for key in ("nearest", "distance", "copy")}.items() <= row.items()
    last = out.splitlines()[-1]
    assert last.startswith("6 of 6 images flagged as copies of training images: 100.0%")
    assert str(tmp_path / "results" / "again" / "nearest.csv") in last

    spread = ["--generate_name", "two", "--distributed", "--world_size", 2]
    script("generate", *options, *spread)
    assert nearest_rows(tmp_path / "results" / "two") == rows


def test_new_images_are_no_copies(script, weights, tmp_path):
    options = ["--weight_path", weights, "--num_images", 3, "--sample_steps", 3]
    out = script("generate", *options, "--nearest", DEMO / "bag").stdout
    rows = nearest_rows(tmp_path / "results" / "generated")
    assert all(row["copy"] == "False" and float(row["distance"]) > 0.06 for row in rows)
    assert "0 of 3 images flagged" in out.splitlines()[-1]


def test_training_images_in_colour_are_compared_in_grey(script, weights, tmp_path):
    (tmp_path / "training").mkdir()
    for number, colour in enumerate(("red", "blue", "green")):
        Image.new("RGB", (8, 8), colour).save(tmp_path / "training" / f"{number}.png")
    (tmp_path / "training" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    options = ["--weight_path", weights, "--num_images", 1, "--sample_steps", 2]
    out = script("generate", *options, "--nearest", tmp_path / "training").stdout
    assert "holds colour images, but the network draws grey ones: they are compared in grey" in out
    assert "left out of" in out and "broken.png" in out
    assert len(nearest_rows(tmp_path / "results" / "generated")) == 1


@pytest.mark.parametrize("channels", [1, pytest.param(3, marks=pytest.mark.fault)])
def test_upscaled(script, weights, tmp_path, channels):
    """Each image, and the grid; what is compared with training images and filmed is not."""
    large = write_upscaler(tmp_path / "large.pt", channels, 3)
    options = ["--weight_path", weights, "--num_images", 3, "--sample_steps", 3]
    options += ["--nearest", DEMO / "bag"]
    script("generate", *options, "--generate_name", "small")
    options += ["--upscale", large, "--animate", "webp"]
    out = script("generate", *options, "--generate_name", "large").stdout
    assert "3 images of 24x24 in" in out
    small, large = (tmp_path / "results" / name for name in ("small", "large"))
    assert nearest_rows(small) == nearest_rows(large)
    maker = upscaler(channels, 3)
    for before, after in zip(pictures(small), pictures(large), strict=True):
        expected = maker.pixels(torch.tensor(before)[None, None])[0, 0].numpy()
        assert after.shape == (24, 24) and np.abs(after.astype(int) - expected).max() <= 1
    text = Image.open(large / "00000.png").text
    assert text["upscaler"] == "large.pt, 3 times as large"
    assert "upscaler" not in Image.open(small / "00000.png").text
    assert Image.open(large / "grid.png").size == Image.open(small / "grid.png").size  # 96 pixels
    film = Image.open(large / "denoising.webp")
    assert film.height == 66  # 8 pixels, each shown as 8 x 8, and a gap

    spread = ["--generate_name", "two", "--distributed", "--world_size", 2]
    script("generate", *options, *spread)
    two = pictures(tmp_path / "results" / "two")
    for one, other in zip(pictures(large), two, strict=True):
        assert np.abs(one.astype(int) - other).max() <= 1


def test_an_upscaler_generates_nothing(script, weights, tmp_path):
    large = write_upscaler(tmp_path / "large.pt")
    error = script("generate", "--weight_path", large, status=2).stderr
    assert "is a checkpoint of kind upscaler, but diffusion is needed" in error
    assert "it is for tools/upscale.py" in error
    error = script("generate", "--weight_path", weights, "--upscale", weights, status=2).stderr
    assert "is a checkpoint of kind diffusion, but upscaler is needed" in error
    assert not (tmp_path / "results" / "generated").exists()
