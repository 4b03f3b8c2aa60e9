"""Features are kept by content, and nothing depends on what is kept."""

import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from utils.evaluation.extract import Reader, feature_set
from utils.evaluation.feature_cache import FeatureCache
from utils.evaluation.features import FeatureNetwork
from utils.evaluation.image_folder import open_folder


def test_what_is_kept_is_this_user_s_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = os.umask(0o022)
    try:
        FeatureCache().save("a", (torch.zeros(2, 3), np.ones(2, bool), [((4, 4), 2)], 0, []))
    finally:
        os.umask(before)
    folder = tmp_path / "cache" / "iddm"
    assert list(folder.rglob("*.*"))
    assert {oct(each.stat().st_mode & 0o777) for each in (folder, folder / "features")} == {"0o700"}


class Means(FeatureNetwork):
    """Stands in for a network: the mean of each channel. Counts the images it sees."""

    name = "means"
    dimension = 3
    digest = "1"
    device = torch.device("cpu")

    def __init__(self):
        self.seen = 0

    def __call__(self, pixels):
        self.seen += len(pixels)
        return pixels.float().mean((2, 3))


@pytest.fixture
def network():
    return Means()


@pytest.fixture
def folder(images):
    """13 images, of which one is broken, one is larger, and one is in colour."""
    (images / "bag" / "001.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    Image.new("L", (40, 50), 7).save(images / "boot" / "001.png")
    Image.new("RGB", (28, 28), (250, 0, 3)).save(images / "boot" / "002.png")
    return images


AS_THEY_ARE = Reader()


def read(root, network, cache, reader=AS_THEY_ARE):
    opened = open_folder(root, "REAL")
    return feature_set(opened, opened.order(), network, reader, batch_size=4, cache=cache)


def test_the_second_time_calls_no_network(folder, network, tmp_path):
    cache = FeatureCache(tmp_path / "cache")
    first = read(folder, network, cache)
    assert network.seen == 12 and not first.from_cache and cache.remark == ""
    assert list(first.facts.broken) == ["bag/001.png"]
    assert first.facts.sizes == {(28, 28): 11, (50, 40): 1} and first.facts.grey == 11
    for row, place in zip(first.features, first.places, strict=True):
        image = Image.open(folder / open_folder(folder, "REAL").names[place]).convert("RGB")
        expected = np.asarray(image).reshape(-1, 3).mean(0)
        assert np.abs(row.numpy() - expected).max() < 1e-3
    shutil.copytree(folder, tmp_path / "elsewhere")
    second = read(tmp_path / "elsewhere", network, cache)
    assert network.seen == 12 and second.from_cache
    assert torch.equal(first.features, second.features)
    assert first.facts == second.facts and (first.places == second.places).all()


def test_what_could_not_be_read_once_is_not_left_out_for_ever(
    folder, network, tmp_path, monkeypatch
):
    """A disk that failed for a moment, and not the file, is why it is missing in what is kept."""
    cache = FeatureCache(tmp_path / "cache")
    real = Reader.read

    def fails(self, path):
        return OSError(5, "Input/output error") if path.name == "003.png" else real(self, path)

    monkeypatch.setattr(Reader, "read", fails)
    first = read(folder, network, cache)
    assert {"bag/003.png", "boot/003.png"} <= set(first.facts.broken)
    assert read(folder, network, cache).from_cache
    monkeypatch.setattr(Reader, "read", real)
    second = read(folder, network, cache)
    assert not second.from_cache and list(second.facts.broken) == ["bag/001.png"]
    assert read(folder, network, cache).from_cache


def test_what_changes_the_features_is_another_set(folder, network, tmp_path):
    cache = FeatureCache(tmp_path / "cache")
    read(folder, network, cache)
    for change in (
        lambda: Image.new("L", (28, 28), 9).save(folder / "bag" / "000.png"),
        lambda: setattr(network, "digest", "2"),
        lambda: (folder / "bag" / "000.png").unlink(),
        lambda: shutil.copy(folder / "bag" / "002.png", folder / "bag" / "001.png"),
    ):
        change()
        assert not read(folder, network, cache).from_cache
        assert read(folder, network, cache).from_cache
    for reader in (Reader((16, 16)), Reader((16, 16), "L"), Reader((16, 20))):
        assert not read(folder, network, cache, reader).from_cache
        assert read(folder, network, cache, reader).from_cache


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "other", "shape", "folder"])
def test_a_damaged_file_is_computed_again(folder, network, tmp_path, damage):
    cache = FeatureCache(tmp_path / "cache")
    first = read(folder, network, cache)
    (file,) = (tmp_path / "cache").iterdir()
    data = bytearray(file.read_bytes())
    if damage == "cut":
        file.write_bytes(data[:-100])
    elif damage == "flipped":
        data[data.find(first.features.numpy().tobytes()) + 5] ^= 64
        file.write_bytes(data)
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "other":
        torch.save({"layout": 1, "features": 3}, file)
    elif damage == "shape":
        kept = torch.load(file, weights_only=True)
        torch.save({**kept, "features": kept["features"][1:]}, file)
    else:
        file.unlink()
        file.mkdir()
    second = read(folder, network, cache)
    assert not second.from_cache and torch.equal(first.features, second.features)


def test_those_unused_for_longest_make_room(folder, network, tmp_path):
    cache = FeatureCache(tmp_path / "cache", largest=3 * 2**20)
    contents = (torch.zeros(0, 3), np.zeros(2, bool), [], 0, ["a", "b"])
    for number, key in enumerate("abcd"):
        cache.save(key, (torch.zeros(2**17, 3), *contents[1:]))  # 1.5 MiB
        path = tmp_path / "cache" / f"{key}.features"
        os.utime(path, (number, number))
    assert [path.stem for path in (tmp_path / "cache").iterdir()] == ["d"]
    cache.save("e", (torch.zeros(2**20, 3), *contents[1:]))
    assert "are not kept: they need 0.0 GiB" in cache.remark
    assert not (tmp_path / "cache" / "e.features").exists()


def test_a_folder_that_cannot_be_written_costs_a_remark(folder, network, tmp_path):
    (tmp_path / "file").write_text("no folder")
    cache = FeatureCache(tmp_path / "file" / "cache")
    assert len(read(folder, network, cache).places) == 12
    assert "REAL are not kept in" in cache.remark and "File exists" in cache.remark
