"""Images made together with their masks: train.py --joint_masks, and what generate.py writes."""

import numpy as np
import pytest
import torch
from helpers import BRIGHT, ROOT, TINY, assert_equal_states, copy_some, write_masks
from PIL import Image

from model.codecs import JointCodec, PixelCodec, build_codec
from utils.runs.checkpoint import Checkpoint

LABELS = [0, 7]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, script_server):
    folder = tmp_path_factory.mktemp("joint")
    images = copy_some(folder / "images")
    write_masks(images, folder / "masks", LABELS)
    command = [ROOT / "tools/train.py", *TINY, "--conditional", "False", "--epochs", 120]
    command += ["--dataset_path", images, "--condition_path", folder / "masks", "--joint_masks"]
    command += ["--lr", 0.01, "--result_path", folder, "--use_gpu", -1, "--augment", 0]
    done = script_server.run([*map(str, command)], folder, 300)
    assert done.returncode == 0, done.stderr
    return folder


# --- The codec ---


@pytest.mark.parametrize("channels", [1, 3])
def test_there_and_back(channels):
    codec = JointCodec(channels, [0, 3, 9])
    image = torch.randint(256, (4, channels, 8, 8), dtype=torch.uint8)
    masks = torch.tensor([0, 3, 9], dtype=torch.uint8)[torch.randint(3, (4, 1, 8, 8))]
    x = codec.encode(torch.cat([image, masks], dim=1))
    assert x.shape[1:] == codec.shape((8, 8), channels) == (channels + 3, 8, 8)
    assert x.min() >= -1 and x.max() <= 1
    assert torch.equal(x[:, :channels], PixelCodec().encode(image))
    assert torch.equal(x[:, channels:].sum(1), torch.full((4, 8, 8), -1.0))  # one is 1, two are -1
    disturbed = x + 0.5 * torch.rand_like(x)
    assert torch.equal(codec.decode_masks(disturbed), masks)
    assert torch.equal(codec.decode(x), image)
    assert build_codec(codec.config).config == codec.config


@pytest.mark.parametrize(
    "options",
    [
        {"image_channels": 2, "values": [0, 1]},
        {"image_channels": True, "values": [0, 1]},
        {"image_channels": 3.0, "values": [0, 1]},
        {"image_channels": 1, "values": [0]},
        {"image_channels": 1, "values": [1, 0]},
        {"image_channels": 1, "values": [0, 256]},
        {"image_channels": 1},
    ],
)
def test_a_wrong_codec(options):
    with pytest.raises(ValueError):
        build_codec({"name": "joint", **options})


# --- Scripts ---


def test_a_mask_is_that_of_its_image(trained, script, tmp_path):
    """What the network makes bright it also labels: the mean intersection over union of the mask
    and the image's own bright pixels.
    """
    weights = ["--weight_path", trained / "demo/ema_last.pt"]
    said = script("generate", *weights, "--num_images", 24, "--sample_steps", 15).stdout
    assert "24 images of 8x8" in said
    made = tmp_path / "results/generated"
    overlaps = []
    for file in sorted(made.glob("0*.png")):
        with Image.open(file) as picture, Image.open(made / "masks" / file.name) as mask:
            assert mask.mode == "P" and picture.size == mask.size and picture.mode == "L"
            bright, numbers = np.asarray(picture) > BRIGHT, np.asarray(mask)
            assert mask.text["seed"] == picture.text["seed"]
        assert set(np.unique(numbers)) <= set(LABELS)
        inside = numbers == LABELS[1]
        overlaps.append((bright & inside).sum() / max(1, (bright | inside).sum()))
    assert len(overlaps) == 24 and np.mean(overlaps) > 0.65
    with Image.open(made / "grid.png") as grid:
        assert grid.mode == "RGB"


def test_what_the_checkpoint_says(trained):
    config = Checkpoint.read(trained / "demo/ema_last.pt").config
    assert config["codec"] == {"name": "joint", "image_channels": 1, "values": LABELS}
    assert config["network"]["in_channels"] == 1 + 2 and "condition" not in config
    assert list((trained / "demo/samples").glob("*.png"))


def test_a_resumed_run_equals_an_uninterrupted_one(trained, script, tmp_path):
    common = [*TINY, "--dataset_path", trained / "images", "--condition_path", trained / "masks"]
    common += ["--joint_masks", "--lr_func", "constant", "--flip", "--augment", 0.3]
    script("train", *common, "--run_name", "whole", "--epochs", 2)
    script("train", *common, "--run_name", "parts", "--epochs", 1)
    script("train", *common, "--run_name", "parts", "--epochs", 2, "--resume")
    results = tmp_path / "results"
    assert_equal_states(results / "whole/ckpt_last.pt", results / "parts/ckpt_last.pt")


def test_what_does_not_go_together(trained, script, images):
    common = [*TINY, "--dataset_path", trained / "images", "--joint_masks", "--epochs", 1]
    assert "--condition_path" in script("train", *common, status=2).stderr
    pictures = [*common, "--condition_path", trained / "images", "--condition_kind", "picture"]
    assert "holds pictures" in script("train", *pictures, status=2).stderr
    deep = [*common, "--condition_path", trained / "masks", "--mode", "I;16"]
    assert "--joint_masks" in script("train", *deep, status=2).stderr
    weights = ["--weight_path", trained / "demo/ema_last.pt"]
    begun = [*weights, "--init_image", next(images.rglob("*.png"))]
    assert "together with masks" in script("generate", *begun, status=2).stderr
    larger = [*weights, "--upscale", ROOT / "weight/upscaler_x2.pt"]
    assert "no masks" in script("generate", *larger, status=2).stderr
    steered = [*weights, "--condition", trained / "masks"]
    assert "trained without conditions" in script("generate", *steered, status=2).stderr
