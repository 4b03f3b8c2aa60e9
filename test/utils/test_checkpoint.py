"""Checkpoints: what is saved comes back, and what cannot be right is refused by name."""

import pytest
import torch

from model.networks import build_network
from tools.generate import guess_network
from utils.checkpoint import (
    FORMAT_VERSION,
    inference_network,
    load_for_inference,
    load_weights,
    read_checkpoint,
    save_checkpoint,
)
from utils.errors import UserError

CONFIG = {
    "name": "unet",
    "in_channels": 1,
    "num_classes": 3,
    "channels": 8,
    "channel_mult": [1, 2],
    "head_channels": 8,
}
DATA = {"image_size": [8, 8], "mode": "L", "class_names": ["a", "b", "c"]}


@pytest.fixture
def network():
    torch.manual_seed(0)
    network = build_network(CONFIG)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter)
    return network


@pytest.fixture
def file(network, tmp_path):
    config = {"network": network.config, "diffusion": {"prediction": "v"}, "data": DATA}
    contents = {"format_version": FORMAT_VERSION, "config": config, "ema": network.state_dict()}
    save_checkpoint(contents, tmp_path / "ckpt_last.pt", keep_previous=True)
    return tmp_path / "ckpt_last.pt"


def test_what_is_saved_comes_back(file, network):
    loaded, diffusion, class_names = load_for_inference(file)
    assert all(
        torch.equal(a, b) for a, b in zip(network.parameters(), loaded.parameters(), strict=True)
    )
    assert diffusion == {"prediction": "v"} and class_names == ["a", "b", "c"]
    assert not loaded.training and [p.name for p in file.parent.iterdir()] == ["ckpt_last.pt"]
    with pytest.raises(UserError, match="no raw weights"):
        load_for_inference(file, use_ema=False)


def test_the_previous_checkpoint_is_kept(file):
    first = file.read_bytes()
    save_checkpoint({"a": torch.zeros(1)}, file, keep_previous=True)
    assert (file.parent / "ckpt_prev.pt").read_bytes() == first != file.read_bytes()


def test_a_failed_save_leaves_the_old_file(file):
    before = file.read_bytes()
    with pytest.raises(AttributeError):
        save_checkpoint({"unpicklable": lambda: None}, file)
    assert file.read_bytes() == before and len(list(file.parent.iterdir())) == 1


def test_weights_that_do_not_fit_are_named(file, network, tmp_path):
    weights = dict(network.state_dict())
    weights["conv_in.weight"] = torch.zeros(8, 3, 3, 3)
    weights["extra"] = weights.pop("conv_out.bias")
    with pytest.raises(
        UserError,
        match="missing conv_out.bias; unexpected extra; other shapes: conv_in.weight .8, 3",
    ):
        load_weights(network, weights, "x.pt")


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_bare_weights(network, tmp_path, prefix):
    torch.save(
        {prefix + key: value for key, value in network.state_dict().items()}, tmp_path / "w.pt"
    )
    weights = read_checkpoint(tmp_path / "w.pt")["network"]
    load_weights(build_network(CONFIG), weights, "w.pt")
    with pytest.raises(UserError, match="does not say"):
        load_for_inference(tmp_path / "w.pt")


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        {
            "name": "unet",
            "channels": 16,
            "channel_mult": [1, 2, 2],
            "attention_levels": [1, 2],
            "head_channels": 8,
        },
        {
            "name": "cspdarkunet",
            "channels": 16,
            "channel_mult": [2, 3],
            "blocks_per_level": 1,
            "head_channels": 8,
        },
    ],
)
def test_the_shapes_of_bare_weights_tell_the_network(config):
    network = build_network(config)
    options = {"num_classes": network.num_classes, "head_channels": 8}
    guessed = guess_network(config["name"], network.state_dict(), options)
    load_weights(build_network(guessed), network.state_dict(), "w.pt")


def test_files_that_are_no_checkpoints(tmp_path, file):
    cases = {
        "missing.pt": (None, "cannot be read: No such file"),
        "empty.pt": (b"", "damaged or no checkpoint"),
        "text.pt": (b"hello", "damaged or no checkpoint"),
        "cut.pt": (file.read_bytes()[:-100], "damaged or no checkpoint"),
    }
    for name, (data, message) in cases.items():
        if data is not None:
            (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=message):
            read_checkpoint(tmp_path / name)
    for name, value, message in [
        ("list.pt", [1, 2], "holds no weights: found list"),
        ("other.pt", {"a": 1}, "neither a checkpoint"),
        ("newer.pt", {"format_version": 99}, "format 99"),
    ]:
        torch.save(value, tmp_path / name)
        with pytest.raises(UserError, match=message):
            read_checkpoint(tmp_path / name)


def test_a_flipped_bit_is_noticed(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(UserError, match="damaged"):
        read_checkpoint(file)


def test_metadata_that_describes_no_network():
    for network in (
        {"name": "vit"},
        {"channels": 10**9},
        {"depth": 3},
        {"channels": "64"},
        {"attention_levels": 3},
        None,
    ):
        contents = {"ema": {}, "config": {"network": network}}
        with pytest.raises(UserError, match="no network that can be built"):
            inference_network(contents, "x.pt")
