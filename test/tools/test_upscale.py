"""tools/upscale.py by its command line."""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import skimage
import torch
from helpers import ROOT
from PIL import Image
from upscaling_helpers import upscaler, write_upscaler

from utils.evaluation.restoration import Convention, restoration_scores
from utils.runs.files import read_checkpoint, save_checkpoint
from utils.training.upscaling_measures import enlarged_bicubic

UPSCALE = [sys.executable, str(ROOT / "tools" / "upscale.py")]


@pytest.fixture
def weights(tmp_path):
    return write_upscaler(tmp_path / "weights.pt")


@pytest.fixture
def run(script, weights):
    def run(*args, **options):
        return script("upscale", *args, "--weight_path", weights, "--use_gpu", -1, **options)

    return run


def picture(path: Path, *shape) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, shape or (20, 30, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def in_memory(pixels: np.ndarray) -> np.ndarray:
    """The same enlarged without files or tiles."""
    channels_last = pixels.reshape(*pixels.shape[:2], -1)
    batch = torch.from_numpy(channels_last).permute(2, 0, 1)[None]
    return upscaler(3, tile=0).pixels(batch)[0].permute(1, 2, 0).numpy().squeeze()


def files_below(folder: Path) -> list[str]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path.relative_to(folder).as_posix() for path in paths)


@pytest.mark.parametrize("shape", [(40, 31, 3), (40, 31), (40, 31, 4), (1, 1, 3)])
@pytest.mark.parametrize("tile", [[], ["--tile", 0], ["--tile", 7]])
def test_one_file(run, tmp_path, shape, tile):
    pixels = picture(tmp_path / "a.png", *shape)
    done = run(tmp_path / "a.png", tmp_path / "b.png", *tile)
    found = np.asarray(Image.open(tmp_path / "b.png"))
    expected = in_memory(pixels)
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= 1
    height, width = expected.shape[:2]
    assert f"{width} x {height} pixels in {tmp_path / 'b.png'}" in done.stdout


def test_a_folder(run, tmp_path):
    for name in ("a.png", "a.gif", "sub/b.jpg", "sub/c.webp"):
        picture(tmp_path / "in" / name)
    (tmp_path / "in" / "sub" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "in" / "note.txt").write_text("text")
    done = run(tmp_path / "in", tmp_path / "out", status=1)
    assert files_below(tmp_path / "out") == ["a.gif.png", "a.png", "sub/b.jpg", "sub/c.webp"]
    for name in files_below(tmp_path / "out"):
        assert Image.open(tmp_path / "out" / name).size == (60, 40)
    assert "sub/broken.png cannot be enlarged: " in done.stderr
    assert "1 of 5 images could not be enlarged" in done.stderr
    assert "a.gif: written as PNG: .gif cannot be written" in done.stdout
    assert "left out 1 .txt: not an image (note.txt)" in done.stdout


def test_what_is_there_already_is_skipped(run, tmp_path):
    for name in ("a.png", "b.gif", "c.png"):
        picture(tmp_path / "in" / name)
    run(tmp_path / "in", tmp_path / "out")
    before = {name: os.stat(tmp_path / "out" / name).st_ino for name in ("a.png", "b.gif.png")}
    (tmp_path / "out" / "c.png").unlink()
    done = run(tmp_path / "in", tmp_path / "out")
    assert "1 images in" in done.stdout and "2 were there already" in done.stdout
    assert before == {name: os.stat(tmp_path / "out" / name).st_ino for name in before}

    done = run(tmp_path / "in", tmp_path / "out", "--recompute")
    assert "3 images in" in done.stdout and "there already" not in done.stdout


def test_another_scale_is_not_skipped(script, weights, tmp_path):
    picture(tmp_path / "in" / "a.png")
    x3 = write_upscaler(tmp_path / "x3.pt", scale=3)

    def run(weight_path, *more, status=0):
        options = ["--weight_path", weight_path, "--use_gpu", -1, *more]
        return script("upscale", tmp_path / "in", tmp_path / "out", *options, status=status)

    for weight_path, scale, more in ((weights, 2, []), (x3, 3, ["--recompute"])):
        run(weight_path, *more)
        assert Image.open(tmp_path / "out" / "a.png").size == (30 * scale, 20 * scale)
    assert "a.png is there, of another size" in run(weights, status=1).stderr


def test_results_inside_the_folder(run, tmp_path):
    picture(tmp_path / "in" / "a.png")
    out = tmp_path / "in" / "larger"
    for _ in range(2):
        done = run(tmp_path / "in", out)
    assert files_below(tmp_path / "in") == ["a.png", "larger/a.png"]
    assert "1 images of IN lie in OUT and are left out" in done.stdout


def test_another_format(run, tmp_path):
    pixels = picture(tmp_path / "in" / "a.png")
    picture(tmp_path / "in" / "b.png", 8, 8, 4)
    done = run(tmp_path / "in", tmp_path / "out", "--image_format", "jpg")
    assert files_below(tmp_path / "out") == ["a.jpg", "b.png"]
    assert "b.png: written as PNG: .jpg cannot hold colour with opacity" in done.stdout
    found = Image.open(tmp_path / "out" / "a.jpg")
    assert np.abs(np.asarray(found).astype(int) - in_memory(pixels)).mean() < 6
    done = run(tmp_path / "in", tmp_path / "out", "--image_format", "jpg")
    assert "2 were there already" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["missing", "out"], "IN {here}/missing does not exist"),
        (["in", "in"], "IN and OUT are the same folder"),
        (["in", "in/a.png"], "is a folder, but OUT {here}/in/a.png is a file"),
        (["in/a.png", "in/a.png"], "IN and OUT are the same file"),
        (["pipe", "b.png"], "IN {here}/pipe is neither a file nor a folder"),
        (["in/a.png", "b.xyz"], "OUT {here}/b.xyz ends in .xyz"),
        (["empty", "out"], "IN {here}/empty holds no images: no files in it"),
        (["broken.png", "out.png"], "IN {here}/broken.png cannot be enlarged: "),
        (["in/a.png", "in/a.png/b.png"], "cannot write {here}/in/a.png/b.png: "),
        (["in"], "the following arguments are required: OUT"),
    ],
)
def test_mistakes(run, tmp_path, arguments, sentence):
    picture(tmp_path / "in" / "a.png")
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    before = files_below(tmp_path)
    error = run(*arguments, status=2).stderr
    assert sentence.format(here=tmp_path) in error
    assert error.strip().count("\n") == 0
    assert files_below(tmp_path) == before


def test_a_diffusion_s_checkpoint_is_refused(script, tmp_path):
    picture(tmp_path / "a.png")
    options = ["--weight_path", ROOT / "weight" / "demo.pt", "--use_gpu", -1]
    error = script("upscale", "a.png", "b.png", *options, status=2).stderr
    assert "is a checkpoint of kind diffusion, but upscaler is needed" in error
    assert "it is for tools/generate.py" in error and not (tmp_path / "b.png").exists()


@pytest.mark.fault
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_no_half_file(weights, tmp_path, number):
    picture(tmp_path / "in" / "a.png", 1500, 3000, 3)
    command = [*UPSCALE, "in", "out", "--weight_path", weights, "--use_gpu", "-1", "--tile", "8"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 60
    while not list(tmp_path.glob("out/.upscaling*")) and time.monotonic() < end:
        time.sleep(0.02)
    assert process.poll() is None
    process.send_signal(number)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + number and "Traceback" not in error
    assert files_below(tmp_path / "out") == []


@pytest.mark.fault
def test_a_disk_that_is_full(weights, tmp_path):
    """Files of this process may not become larger than 100 kB."""
    picture(tmp_path / "a.png", 200, 300, 3)

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    command = [*UPSCALE, "a.png", "out/b.png", "--weight_path", weights, "--use_gpu", "-1"]
    done = subprocess.run(command, cwd=tmp_path, preexec_fn=limit, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.endswith(f"error: cannot write {tmp_path}/out/b.png: File too large\n")
    assert files_below(tmp_path / "out") == []


@pytest.mark.fault
def test_memory_does_not_grow_with_the_image(weights, tmp_path):
    """Four times the pixels take little more than the pixels themselves."""
    peaks = []
    for side in (1000, 2000):
        Image.new("RGB", (side, side), "red").save(tmp_path / "a.png")
        code = (
            "import resource, sys; sys.path.insert(0, sys.argv.pop(1)); from tools import upscale; "
            "upscale.main(sys.argv[1:]); "
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
        command = [sys.executable, "-c", code, str(ROOT), "a.png", "b.png", "--use_gpu", "-1"]
        command += ["--weight_path", weights, "--recompute"]  # b.png is that of the smaller one
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout.splitlines()[-1]) / 1024)
    pixels = 3 * 2000**2 / 2**20  # MB of the larger image
    assert peaks[1] - peaks[0] < 4 * pixels


def test_help_needs_no_torch(tmp_path):
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    (tmp_path / "numpy.py").write_text("raise SystemExit('numpy was imported')")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [*UPSCALE, "--help"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "--tile" in done.stdout


def test_files_of_others_are_not_replaced(run, tmp_path):
    picture(tmp_path / "in" / "a.png")
    foreign = tmp_path / "out" / "a.png"
    picture(foreign, 7, 7)
    before = foreign.read_bytes()
    done = run(tmp_path / "in", tmp_path / "out", status=1)
    assert "a.png is left out" in done.stderr and "--recompute replaces it" in done.stderr
    assert foreign.read_bytes() == before
    run(tmp_path / "in", tmp_path / "out", "--recompute")
    assert foreign.read_bytes() != before

    picture(tmp_path / "alone" / "picture.png", 7, 7)
    picture(tmp_path / "b.png", 8, 8, 4)
    named = run(tmp_path / "b.png", tmp_path / "alone" / "picture.jpg", status=2)
    assert "picture.png is there already: --recompute replaces it" in named.stderr

    # As where *.png names two pictures
    mine = tmp_path / "in" / "a.png"
    before = mine.read_bytes()
    refused = run(tmp_path / "b.png", mine, status=2)
    assert "for several images name their folder" in refused.stderr
    assert mine.read_bytes() == before


def test_a_result_with_another_ending_has_a_name_of_its_own(run, tmp_path):
    """An image that comes later, of the name that it might have had, is not taken as done."""
    (tmp_path / "in").mkdir()
    Image.new("L", (9, 9), 200).save(tmp_path / "in" / "a.gif")
    run(tmp_path / "in", tmp_path / "out")
    assert files_below(tmp_path / "out") == ["a.gif.png"]
    picture(tmp_path / "in" / "a.png", 9, 9)
    os.utime(tmp_path / "in" / "a.png", (1, 1))
    run(tmp_path / "in", tmp_path / "out")
    assert files_below(tmp_path / "out") == ["a.gif.png", "a.png"]


def test_what_a_killed_run_left_is_removed(run, tmp_path):
    picture(tmp_path / "in" / "a.png")
    old, new = (tmp_path / "out" / f".upscaling-{pid}.tmp" for pid in (1, 2))
    old.parent.mkdir()
    old.write_bytes(b"half")
    new.write_bytes(b"half")
    os.utime(old, (1, 1))
    run(tmp_path / "in", tmp_path / "out")
    assert not old.exists() and new.exists()


def test_a_long_exif_block_is_said(run, tmp_path):
    exif = Image.Exif()
    exif[0x010E] = "x" * 70_000
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png", exif=exif)
    done = run(tmp_path / "a.png", tmp_path / "b.jpg")
    assert "its EXIF is left out: .jpg cannot hold it" in done.stdout


def test_a_hostile_name_of_a_network(script, weights, tmp_path):
    contents = read_checkpoint(weights)
    contents["config"]["network"]["name"] = ["rdn"]
    save_checkpoint(contents, tmp_path / "bad.pt")
    picture(tmp_path / "a.png")
    arguments = [tmp_path / "a.png", tmp_path / "b.png", "--weight_path", tmp_path / "bad.pt"]
    assert "describes no upscaler" in script("upscale", *arguments, status=2).stderr


def test_the_weights_that_ship_are_better_than_bicubic(script, tmp_path):
    """On photographs of scikit-image, which they have not seen."""
    gains = []
    for name in ("astronaut", "chelsea", "coffee"):
        photo = getattr(skimage.data, name)()[100:228, 100:228]
        small = Image.fromarray(photo).resize((64, 64), Image.Resampling.BICUBIC)
        small.save(tmp_path / "small.png")
        script("upscale", tmp_path / "small.png", tmp_path / f"{name}.png", "--use_gpu", -1)
        original, enlarged, pixels = (
            torch.tensor(np.asarray(image)).permute(2, 0, 1)[None]
            for image in (photo, Image.open(tmp_path / f"{name}.png"), small)
        )
        convention = Convention(border=2)
        ours, _ = restoration_scores(enlarged, original, convention)
        bicubic, _ = restoration_scores(enlarged_bicubic(2, pixels), original, convention)
        gains.append(float(ours - bicubic))
    assert min(gains) > 0.8 and np.mean(gains) > 1.2  # dB
