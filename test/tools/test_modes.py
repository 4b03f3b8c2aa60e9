"""--mode RGBA and I;16 through the command lines."""

import numpy as np
import pytest
from helpers import TINY
from PIL import Image

from utils.runs.checkpoint import Checkpoint

SHORT = [*TINY, "--vis_interval_epochs", "1", "--epochs", "2"]


@pytest.fixture
def folder(tmp_path):
    """10 images with opacity, or of 16 bits."""
    chance = np.random.RandomState(0)
    for mode in ("RGBA", "I;16"):
        (tmp_path / mode).mkdir()
        for i in range(10):
            pixels = chance.randint(0, 256, (8, 8, 4)).astype(np.uint8)
            if mode == "I;16":
                pixels = chance.randint(0, 65536, (8, 8)).astype(np.uint16)
            Image.fromarray(pixels).save(tmp_path / mode / f"{i}.png")
    return tmp_path


@pytest.mark.parametrize(("mode", "channels"), [("RGBA", 4), ("I;16", 1)])
def test_from_images_to_images(script, folder, tmp_path, mode, channels):
    data = ["--dataset_path", folder / mode, "--mode", mode, *SHORT]
    script("train", *data)
    run = tmp_path / "results/demo"
    assert (run / "samples/epoch_0002.png").exists()
    checkpoint = Checkpoint.read(run / "ema_last.pt")
    assert checkpoint.config["network"]["in_channels"] == channels
    script("train", *data, "--resume", "--epochs", 3)
    weights = ["--weight_path", run / "ema_last.pt", "--num_images", 2, "--sample_steps", 3]
    script("generate", *weights, "--nearest", folder / mode, "--animate", "gif")
    with Image.open(tmp_path / "results/generated/00000.png") as picture:
        assert picture.mode == mode and picture.size == (8, 8)
        assert np.asarray(picture).std() > 0
    script("generate", *weights, "--image_format", "jpg", "--generate_name", "jpg")
    error = script("generate", *weights, "--upscale", run / "ema_last.pt", status=2).stderr
    assert f"these are {mode}" in error


def test_a_run_goes_on_in_its_own_mode(script, folder):
    data = ["--dataset_path", folder / "RGBA", *SHORT]
    script("train", *data, "--mode", "RGBA")
    refused = script("train", *data, "--mode", "RGB", "--resume", "--epochs", 3, status=2).stderr
    assert "mode RGBA before, RGB now" in refused


def test_others_take_no_such_images(script, folder):
    for name in ("train_autoencoder", "train_upscaler"):
        error = script(name, "--dataset_path", folder / "RGBA", "--mode", "RGBA", status=2).stderr
        assert "auto, L, RGB" in error
