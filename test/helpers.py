"""What several test files use."""

import csv
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from utils.runs.files import read_checkpoint

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "datasets" / "demo"

TINY = [
    "--channels",
    "8",
    "--channel_mult",
    "1,2",
    "--head_channels",
    "8",
    "--image_size",
    "8",
    "--batch_size",
    "4",
]
TINY += ["--num_vis", "1", "--sample_steps", "3", "--amp", "False"]


def copy_some(folder: Path) -> Path:
    """Copies these images into a folder."""
    for name, count in (("bag", 5), ("boot", 4), ("trouser", 4)):
        (folder / name).mkdir(parents=True)
        for file in sorted((DEMO / name).iterdir())[:count]:
            shutil.copy(file, folder / name / file.name)
    return folder


BRIGHT = 60  # grey levels, from which on a pixel counts as the garment


def write_masks(images: Path, masks: Path, labels: Sequence[int] = (0, 1)) -> Path:
    """A label map for each image: the first number outside the garment, the second inside."""
    for file in images.rglob("*.png"):
        target = masks / file.relative_to(images)
        target.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(file) as picture:
            inside = np.asarray(picture.convert("L")) > BRIGHT
        Image.fromarray(np.where(inside, labels[1], labels[0]).astype(np.uint8)).save(target)
    return masks


def metrics(run: Path) -> list[dict[str, str]]:
    with open(run / "metrics.csv") as file:
        return list(csv.DictReader(file))


def assert_equal_states(a: Path, b: Path, tolerance: float = 0.0) -> None:
    """Step, network, EMA, optimizer and scaler of two checkpoints, bit by bit unless there is a
    tolerance.
    """

    def check(one, two):
        assert one.keys() == two.keys() and len(one) > 0
        for key in one:
            x, y = torch.as_tensor(one[key]), torch.as_tensor(two[key])
            assert torch.equal(x, y) if tolerance == 0 else (x - y).abs().max() <= tolerance, key

    a, b = read_checkpoint(a), read_checkpoint(b)
    assert a["state"] == b["state"] and a["scaler"] == b["scaler"]
    for part in ("network", "ema"):
        check(a[part], b[part])
    for ours, theirs in zip(
        a["optimizer"]["state"].values(), b["optimizer"]["state"].values(), strict=True
    ):
        check(ours, theirs)


def wait_for_step(run: Path, step: int, timeout: float = 60) -> None:
    """Until the metrics of a run hold this step."""
    end = time.time() + timeout
    while time.time() < end:
        if (run / "metrics.csv").exists() and len(
            (run / "metrics.csv").read_text().splitlines()
        ) > step:
            return
        time.sleep(0.01)
    raise AssertionError(f"{run} has no step {step} after {timeout} s")
