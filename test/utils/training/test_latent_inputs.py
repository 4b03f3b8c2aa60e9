"""Latents as training sees them: drawn from posteriors, mirrored as images, kept on the disk."""

import shutil
import threading
import time

import numpy as np
import pytest
import torch
from helpers import DEMO

from model.codecs import LatentCodec
from model.diffusion import GaussianDiffusion
from model.networks import build_network
from utils.data import latents, load_image_set
from utils.data.latent_file import HEADER_BYTES
from utils.data.latents import cache_key, load_latents, shape_of
from utils.data.locks import FileLock
from utils.errors import ReadError
from utils.ranks import Ranks
from utils.runs.autoencoders import StoredAutoencoder
from utils.training import latent_inputs
from utils.training.diffusion_task import LatentDiffusionTask
from utils.training.latent_inputs import seconds_of_encoding
from utils.training.latent_statistics import latent_statistics

NETWORK = {"name": "autoencoder", "in_channels": 1, "latent_channels": 2}
NETWORK |= {"block_out_channels": [8, 8], "norm_num_groups": 4, "layers_per_block": 1}


def new_codec(seed=0):
    torch.manual_seed(seed)
    network = build_network(NETWORK)
    with torch.no_grad():
        network.quant_conv.bias[2:] -= 3  # a posterior that is narrow, but no point
    return LatentCodec(network, [0.1, -0.2], [0.5, 0.7])


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "pictures"
    (folder / "boot").mkdir(parents=True)
    for file in sorted((DEMO / "boot").iterdir())[:6]:
        shutil.copy(file, folder / "boot" / file.name)
    return load_image_set(folder, (8, 12), conditional=True, cache="ram")


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def batch_of(dataset):
    items = [dataset[i] for i in range(len(dataset))]
    return tuple(torch.stack([torch.as_tensor(item[k]) for item in items]) for k in range(3))


def draws_of(task, batch, seed=0):
    return task.draw(batch, [torch.Generator().manual_seed(seed + i) for i in range(len(batch[0]))])


def test_how_long_encoding_takes(images, cache, monkeypatch):
    """In proportion to what is not there; nothing is written."""
    codec = new_codec()
    network = dict(codec.network.config)
    weights = codec.network.state_dict()
    known = StoredAutoencoder(network, weights, "a", [0.1, -0.2], [0.5, 0.7])
    unknown = StoredAutoencoder(network, weights, "b")
    monkeypatch.setattr(latents, "default_cache_folder", lambda: cache)
    ticks = iter(range(100))
    monkeypatch.setattr(latent_inputs.time, "perf_counter", lambda: next(ticks))
    cpu = torch.device("cpu")

    def seconds(stored, kind="auto"):
        return seconds_of_encoding(images, stored, False, kind, cpu, Ranks())

    assert seconds(known) == 1.0 and seconds(unknown) == 2.0
    assert seconds(known, "none") == 0.0 and seconds(unknown, "none") == 1.0
    assert not cache.exists()
    load_latents(images, codec, with_mirror=False, quiet=True, cache_folder=cache)
    assert seconds(known) == 0.0 and seconds(unknown) == 1.0 and seconds(known, "ram") == 1.0


def test_a_machine_without_a_cache_meets_the_others_too(images):
    met = []
    ranks = Ranks()
    ranks.wait_for_all = lambda: met.append(1)
    for kind in ("none", "ram"):
        latent_inputs.latent_inputs(images, new_codec(), False, kind, ranks)
    assert len(met) == 2


def test_each_step_draws_from_the_posterior(images, cache):
    codec = new_codec()
    dataset = load_latents(images, codec, with_mirror=False, quiet=True, cache_folder=cache)
    task = LatentDiffusionTask(GaussianDiffusion(), codec, conditional=True)
    batch = batch_of(dataset)
    mean, std = codec.encode_moments(torch.stack([images[i][0] for i in range(6)]))
    assert std.mean() > 0.05
    for seed in (0, 100):
        draws = draws_of(task, batch, seed)
        assert draws["posterior"].shape == draws["noise"].shape == (6, 2, 4, 6)
        wanted = mean + std * draws["posterior"]
        assert (task.inputs(batch, draws)[0] - wanted).abs().max() < 1e-5
        assert (draws["posterior"] - draws["noise"]).abs().max() > 1


def test_a_mirrored_latent_is_that_of_the_mirror(images, cache):
    codec = new_codec()
    dataset = load_latents(images, codec, with_mirror=True, quiet=True, cache_folder=cache)
    task = LatentDiffusionTask(GaussianDiffusion(), codec, conditional=False, flip=True)
    pixels = torch.stack([images[i][0] for i in range(6)])
    mean, std = codec.encode_moments(pixels)
    mirrored_mean, mirrored_std = codec.encode_moments(pixels.flip(3))
    assert (mirrored_mean - mean.flip(3)).abs().max() > 1e-2  # not the same thing
    latents, whole = batch_of(dataset), batch_of(images)
    draws = draws_of(task, latents)
    assert 0 < draws["mirrored"].sum() < 6
    chosen = draws["mirrored"].view(-1, 1, 1, 1)
    wanted = torch.where(chosen, mirrored_mean, mean)
    wanted = wanted + torch.where(chosen, mirrored_std, std) * draws["posterior"]
    assert (task.inputs(latents, draws)[0] - wanted).abs().max() < 1e-5
    # Encoded at each use: the same draws, and the same latents up to rounding.
    again = draws_of(task, whole)
    assert all(torch.equal(again[name], draws[name]) for name in draws)
    assert (task.inputs(whole, again)[0] - wanted).abs().max() < 1e-5


def test_they_are_encoded_once(images, cache, monkeypatch):
    codec = new_codec()
    first = load_latents(images, codec, with_mirror=True, quiet=True, cache_folder=cache)
    assert not first.is_cached
    monkeypatch.setattr(LatentCodec, "posterior", None)
    again = load_latents(images, codec, with_mirror=True, quiet=True, cache_folder=cache)
    assert again.is_cached
    for i in range(6):
        assert torch.equal(first[i][0], again[i][0]) and again[i][1:] == (0, i)
    assert sorted(path.suffix for path in cache.iterdir()) == [".latents", ".lock"]


def test_what_the_key_depends_on(images):
    codec = new_codec()
    subset = images.subset(np.array([1, 0, 2, 3, 4, 5]))
    keys = {
        cache_key(*given, shape_of(*given, with_mirror))
        for given in ((images, codec), (images, new_codec(1)), (subset, codec))
        for with_mirror in (False, True)
    }
    assert len(keys) == 6


def test_a_damaged_row_is_found_and_made_anew(images, cache):
    codec = new_codec()
    whole = load_latents(images, codec, with_mirror=False, quiet=True, cache_folder=cache)
    wanted = [whole[i][0] for i in range(6)]
    (path,) = cache.glob("*.latents")
    del whole
    data = bytearray(path.read_bytes())
    data[HEADER_BYTES + 5] ^= 1
    path.write_bytes(data)
    damaged = load_latents(images, codec, with_mirror=False, quiet=True, cache_folder=cache)
    assert damaged.is_cached and isinstance(damaged[0], ReadError)
    assert "damaged, and have been removed" in str(damaged[0])
    anew = load_latents(images, codec, with_mirror=False, quiet=True, cache_folder=cache)
    assert not anew.is_cached
    assert all(torch.equal(anew[i][0], wanted[i]) for i in range(6))


@pytest.mark.parametrize("keep", [0, 100, 4096, -1])
def test_a_file_that_was_cut_off_is_not_used(images, cache, keep):
    codec = new_codec()
    load_latents(images, codec, with_mirror=False, quiet=True, cache_folder=cache)
    (path,) = cache.glob("*.latents")
    path.write_bytes(path.read_bytes()[:keep])
    again = load_latents(images, codec, with_mirror=False, quiet=True, cache_folder=cache)
    assert not again.is_cached and not isinstance(again[5], ReadError)


def test_others_wait_for_the_one_that_encodes(images, cache):
    codec = new_codec()
    cache.mkdir()
    lock = FileLock(cache / f"{cache_key(images, codec, shape_of(images, codec, False))}.lock")
    assert lock.try_acquire()
    found = []
    thread = threading.Thread(
        target=lambda: found.append(
            load_latents(images, codec, with_mirror=False, quiet=True, cache_folder=cache)
        )
    )
    thread.start()
    time.sleep(0.5)
    assert thread.is_alive() and not list(cache.glob("*.latents")) + list(cache.glob("*.part"))
    lock.close()
    thread.join(20)
    assert len(found) == 1 and len(found[0]) == 6


def test_a_cache_that_cannot_be_used(images, tmp_path):
    folder = tmp_path / "file"
    folder.write_text("no folder")
    found = load_latents(images, new_codec(), False, quiet=True, cache_folder=folder)
    assert len(found) == 6 and "each process keeps them in memory" in found.remarks[0]
    with pytest.raises(Exception, match="latents cannot be kept in"):
        load_latents(images, new_codec(), False, "disk", quiet=True, cache_folder=folder)


def test_measuring_stops_when_it_is_asked_to(images):
    codec = new_codec()
    asked = []

    def stop():
        asked.append(1)
        return True

    device = torch.device("cpu")
    assert latent_statistics(codec.network, images, device, Ranks(), stop) is None
    assert len(asked) == 1
