"""Laying out torchvision data sets; the files lie on disk as torchvision keeps them."""

import struct

import numpy as np
import pytest
from PIL import Image

from tools import prepare_dataset
from tools.prepare_dataset import DATASETS, folder_name
from utils.errors import UserError


def write_idx(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()
    )


def test_fashion_mnist_becomes_class_folders(script, tmp_path, images):
    files = sorted(images.rglob("*.png"))
    pixels = np.stack([np.asarray(Image.open(file)) for file in files])
    labels = np.array([8, 9, 1] * 4 + [0], np.uint8)
    raw = tmp_path / "raw" / "FashionMNIST" / "raw"
    for split in ("train", "t10k"):
        write_idx(raw / f"{split}-images-idx3-ubyte", pixels)
        write_idx(raw / f"{split}-labels-idx1-ubyte", labels)
    command = ["fashion_mnist", "--source", tmp_path / "raw", "--out", tmp_path / "out"]
    assert "13 images in 4 classes" in script("prepare_dataset", *command).stdout
    out = sorted(
        path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.png")
    )
    assert len(out) == 13 and out[0] == "ankle-boot/000001.png" and out[-1] == "trouser/000011.png"
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out/ankle-boot/000001.png")), pixels[1])
    assert "is not empty" in script("prepare_dataset", *command, status=2).stderr
    command[-1] = tmp_path / "few"
    assert (
        "7 images"
        in script("prepare_dataset", *command, "--per_class", 2, "--split", "test").stdout
    )


def test_mistakes(script, tmp_path):
    (tmp_path / "file").touch()
    out = ["mnist", "--out", tmp_path / "file"]
    assert "is a file; name a folder" in script("prepare_dataset", *out, status=2).stderr
    # what an interrupted download has left
    raw = tmp_path / "raw" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for split in ("train", "t10k"):
        for kind in ("images-idx3", "labels-idx1"):
            (raw / f"{split}-{kind}-ubyte").write_bytes(b"\0\0\x08\x03 half")
    command = ["mnist", "--source", tmp_path / "raw", "--out", tmp_path / "out"]
    error = script("prepare_dataset", *command, status=2).stderr
    assert "are damaged" in error and "remove them, and start again" in error


def test_a_file_that_cannot_be_read_is_no_folder_that_cannot_be_written(tmp_path, monkeypatch):
    """Some sets are files, which torchvision opens one by one."""

    class Files:
        classes = ("a",)

        def __len__(self):
            return 2

        def __getitem__(self, i):
            if i == 1:
                raise OSError("image file is truncated")
            return Image.new("L", (8, 8)), 0

    monkeypatch.setattr(prepare_dataset, "load", lambda args: Files())
    with pytest.raises(UserError, match=r"are damaged \(image file is truncated\)"):
        prepare_dataset.main(["mnist", "--out", str(tmp_path / "out")])
    assert len(list((tmp_path / "out").rglob("*.png"))) == 1


def test_a_package_that_a_set_needs_is_named(monkeypatch):
    monkeypatch.setattr(prepare_dataset.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="flowers102 needs scipy: pip install scipy"):
        prepare_dataset.check_packages("flowers102")
    prepare_dataset.check_packages("mnist")


def test_class_names_become_folder_names():
    assert [folder_name(name) for name in ("T-shirt/top", "Ankle boot", "3 - three", "../x")] == [
        "t-shirt-top",
        "ankle-boot",
        "3",
        "x",
    ]


def test_every_name_is_a_torchvision_data_set():
    from torchvision import datasets

    for class_name, split in DATASETS.values():
        assert hasattr(datasets, class_name) and split("train")
