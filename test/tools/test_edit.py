"""generate.py on images: changed, filled in, outpainted, blended, inverted."""

import re

import numpy as np
import pytest
import torch
from helpers import TINY, copy_some
from PIL import Image

from utils.editing import Inverted


@pytest.fixture(scope="module")
def weights(tmp_path_factory, script_server):
    from helpers import ROOT

    folder = tmp_path_factory.mktemp("trained")
    images = copy_some(folder / "images")
    command = [ROOT / "tools/train.py", *TINY, "--vis", "False", "--use_gpu", -1]
    command += ["--dataset_path", images, "--epochs", 2, "--lr", 0.01, "--result_path", folder]
    done = script_server.run([*map(str, command)], folder, 120)
    assert done.returncode == 0, done.stderr
    return folder / "demo/ema_last.pt"


@pytest.fixture
def photo(tmp_path):
    """A picture of the size of training, and a larger one in colour."""
    chance = np.random.RandomState(0)
    file = tmp_path / "photo.png"
    Image.fromarray(chance.randint(0, 256, (8, 8)).astype(np.uint8)).save(file)
    return file


def pixels_of(file):
    with Image.open(file) as picture:
        return np.asarray(picture).astype(int)


def made(script, folder, weights, *options, name="made", count=2):
    options = ["--weight_path", weights, "--num_images", count, *options, "--generate_name", name]
    out = script("generate", *options).stdout
    files = sorted((folder / "results" / name).glob("0*.png"))
    return np.stack([pixels_of(file) for file in files]), out


def test_image_to_image(script, weights, photo, tmp_path):
    original = pixels_of(photo)
    distances = []
    for strength in (0.05, 0.5, 1.0):
        found, _ = made(
            script, tmp_path, weights, "--init_image", photo, "--strength", strength,
            name=f"s{strength}",
        )  # fmt: skip
        distances.append(np.abs(found - original).mean())
        assert np.abs(found[0] - found[1]).max() > 0
    assert distances[0] < distances[1] < distances[2]
    # an image is a function of its seed here too
    common = ["--init_image", photo, "--class_name", "bag"]
    both, _ = made(script, tmp_path, weights, *common, "--seed", 4, name="both")
    with Image.open(tmp_path / "results/both/00000.png") as image:
        assert image.text["strength"] == "0.6" and "repeats" not in image.text  # the usual one
    alone, _ = made(script, tmp_path, weights, *common, "--seed", 5, name="alone", count=1)
    assert np.abs(both[1] - alone[0]).max() <= 1


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmpp2m"])
def test_filling_in(script, weights, photo, tmp_path, sampler):
    mask = np.zeros((8, 8), np.uint8)
    mask[2:6, 3:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    options = ["--init_image", photo, "--mask", tmp_path / "mask.png", "--sample", sampler]
    found, _ = made(script, tmp_path, weights, *options, "--sample_steps", 6, "--repeats", 2)
    original = pixels_of(photo)
    for image in found:
        assert np.array_equal(image[mask == 0], original[mask == 0])
    assert np.abs(found[0] - found[1])[mask > 0].max() > 1

    # White strokes on a transparent layer are the same mask
    white = np.full((8, 8), 255, np.uint8)
    Image.fromarray(np.stack([white, white, white, mask], axis=2)).save(tmp_path / "mask.png")
    strokes, _ = made(
        script, tmp_path, weights, *options, "--sample_steps", 6, "--repeats", 2, name="strokes"
    )
    assert np.array_equal(strokes, found)
    with Image.open(tmp_path / "results/made/00000.png") as image:
        text = image.text
    assert (text["init_image"], text["mask"]) == (photo.name, "mask.png")
    assert (text["strength"], text["repeats"]) == ("1.0", "2")


def test_outpainting(script, weights, photo, tmp_path):
    options = ["--init_image", photo, "--outpaint", "2,4,0,4", "--sample_steps", 4]
    found, out = made(script, tmp_path, weights, *options)
    assert found.shape == (2, 10, 16) and "10x16" in out
    for image in found:
        assert np.array_equal(image[2:, 4:12], pixels_of(photo))
    assert found[:, :2].std() > 0
    # with everything that asks for the size
    guided = ["--guide_path", weights, "--nearest", photo.parent, "--generate_name", "guided"]
    script("generate", "--weight_path", weights, "--num_images", 1, *options, *guided)
    options[3] = "1,0,0,0"
    error = script("generate", "--weight_path", weights, *options, status=2).stderr
    assert "with these borders" in error and "would work" in error


def test_from_one_seed_to_another(script, weights, tmp_path):
    common = ["--sample_steps", 5, "--class_name", "bag"]
    found, _ = made(script, tmp_path, weights, *common, "--interpolate", "3,8", count=5)
    first, _ = made(script, tmp_path, weights, *common, "--seed", 3, name="a", count=1)
    last, _ = made(script, tmp_path, weights, *common, "--seed", 8, name="b", count=1)
    assert np.abs(found[0] - first[0]).max() <= 1
    assert np.abs(found[-1] - last[0]).max() <= 1
    steps = [np.abs(a - b).mean() for a, b in zip(found, found[1:], strict=False)]
    assert max(steps) < np.abs(found[0] - found[-1]).mean()
    with Image.open(tmp_path / "results/made/interpolation.webp") as film:
        assert film.n_frames == 8
    texts = [Image.open(tmp_path / f"results/made/0000{place}.png").text for place in range(5)]
    shares = [float(text["interpolate_share"]) for text in texts]
    assert shares == [0, 0.25, 0.5, 0.75, 1]


def test_how_much_an_inverted_image_of_16_bits_differs():
    """255 and 256 of 65,535 are neighbours, though both of their bytes differ."""
    levels = torch.tensor([[0, 255], [1, 0]], dtype=torch.uint8)[..., None, None]
    error = Inverted(levels[:1]).error(levels[1])
    assert error == pytest.approx(1 / 65535, rel=1e-3)


def test_inversion(script, weights, tmp_path):
    common = ["--sample", "ddim", "--sample_steps", 20, "--class_name", "boot", "--cfg_scale", 1]
    made(script, tmp_path, weights, *common, name="own", count=1)
    file = tmp_path / "results/own/00000.png"
    alone = ["--weight_path", weights, *common, "--invert", file]  # without a number of images
    assert "1 image of 8x8" in script("generate", *alone, "--generate_name", "alone").stdout
    found, out = made(script, tmp_path, weights, *common, "--invert", file, name="again", count=1)
    error = float(re.search(r"differs by ([0-9.]+) of the range", out)[1])
    assert error < 0.05
    assert np.abs(found[0] - pixels_of(file)).mean() / 255 < 0.05


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--mask", "m.png"], "--mask belongs to --init_image"),
        (["--strength", "0.5"], "--strength belongs to --init_image"),
        (["--init_image", "{photo}", "--interpolate", "1,2"], "choose one"),
        (["--init_image", "{photo}", "--mask", "m.png", "--outpaint", "1,1,1,1"], "choose one"),
        (["--init_image", "{photo}", "--repeats", "2"], "--repeats belongs to"),
        (["--init_image", "nowhere.png"], "the image .* cannot be read"),
        (["--init_image", "{photo}", "--mask", "{photo}", "--sample", "unipc"], "choose --sample"),
        (["--invert", "{photo}", "--class_name", "bag"], "--sample ddim --eta 0"),
        (["--invert", "{photo}", "--sample", "ddim"], "depends on its class: choose it with --cl"),
        (["--interpolate", "1,2"], "images between two seeds have one class: choose it with"),
        (["--interpolate", "1,2", "--class_name", "-1"], "images between two seeds have one class"),
        (
            ["--interpolate", "1,2", "--class_name", "bag", "--sample", "ddpm"],
            "--interpolate needs a sampler that adds no noise",
        ),
        (
            ["--interpolate", "1,2", "--class_name", "bag", "--sample", "ddim", "--eta", "0.5"],
            "--interpolate needs a sampler that adds no noise",
        ),
        (["--invert", "{photo}", "--distributed"], "leave --distributed out"),
        (["--interpolate", "1"], "two seeds such as 3,8"),
        (["--init_image", "{photo}", "--outpaint", "1,2"], "top,right,bottom,left"),
        (["--init_image", "{photo}", "--strength", "0"], "above 0"),
    ],
)
def test_mistakes(script, weights, photo, options, message):
    options = [option.format(photo=photo) for option in options]
    error = script("generate", "--weight_path", weights, *options, status=2).stderr
    assert re.search(message, error), error


def test_a_mask_without_white_and_a_broken_image(script, weights, photo, tmp_path):
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "black.png")
    options = ["--weight_path", weights, "--init_image", photo]
    error = script("generate", *options, "--mask", tmp_path / "black.png", status=2).stderr
    assert "white nowhere" in error
    (tmp_path / "broken.png").write_bytes(photo.read_bytes()[:40])
    options[3] = tmp_path / "broken.png"
    assert "cannot be read" in script("generate", *options, status=2).stderr
