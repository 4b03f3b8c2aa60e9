"""Checkpoints: what is saved comes back, and what cannot be right is refused by name."""

import errno
import os
import stat

import pytest
import torch

from model.networks import build_network
from utils.errors import UserError
from utils.generation import load_for_inference
from utils.runs import safeguards
from utils.runs.bare_weights import guess_network
from utils.runs.checkpoint import Checkpoint
from utils.runs.files import FORMAT_VERSION, read_checkpoint, save_checkpoint
from utils.runs.inference import inference_network
from utils.runs.weights import load_weights

CONFIG = {
    "name": "unet",
    "in_channels": 1,
    "num_classes": 3,
    "channels": 8,
    "channel_mult": [1, 2],
    "head_channels": 8,
}
DIFFUSION = {"noise_steps": 1000, "noise_schedule": "linear", "prediction": "v"}
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
    config = {
        "network": network.config,
        "diffusion": DIFFUSION,
        "data": DATA,
        "sampling": {"sampler": "ddim", "guidance": True},
        "training": {},
    }
    contents = {"format_version": FORMAT_VERSION, "config": config, "ema": network.state_dict()}
    save_checkpoint(contents, tmp_path / "ckpt_last.pt", keep_previous=True)
    return tmp_path / "ckpt_last.pt"


def test_what_is_saved_comes_back(file, network):
    loaded, diffusion, class_names = load_for_inference(file)
    assert all(
        torch.equal(a, b) for a, b in zip(network.parameters(), loaded.parameters(), strict=True)
    )
    assert diffusion == DIFFUSION and class_names == ["a", "b", "c"]
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


@pytest.mark.parametrize("shape", [(), (4,), (0, 1, 3, 3)])
def test_names_of_our_weights_without_their_shapes(shape):
    weights = build_network(
        {"channels": 8, "channel_mult": [1, 2], "head_channels": 8}
    ).state_dict()
    weights["conv_in.weight"] = torch.zeros(shape)
    with pytest.raises(UserError, match="the names are, but not the shapes"):
        guess_network("unet", weights, {}, "w.pt")


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
        checkpoint = Checkpoint({"network": network}, ema={}, source="x.pt")
        with pytest.raises(UserError, match="no network that can be built"):
            inference_network(checkpoint)


@pytest.mark.parametrize(
    ("kind", "script"),
    [
        ("diffusion", "tools/generate.py"),
        ("upscaler", "tools/upscale.py"),
        ("autoencoder", "tools/train.py --autoencoder_path"),
    ],
)
def test_a_checkpoint_of_another_kind_is_sent_to_its_script(kind, script):
    checkpoint = Checkpoint({}, kind=kind, source="x.pt")
    checkpoint.check_kind(kind)
    needed = "upscaler" if kind == "diffusion" else "diffusion"
    with pytest.raises(UserError) as refused:
        checkpoint.check_kind(needed)
    assert str(refused.value) == (
        f"x.pt is a checkpoint of kind {kind}, but {needed} is needed; it is for {script}"
    )


def test_an_upscaler_has_no_diffusion():
    config = {
        "network": {"name": "rdn", "in_channels": 1, "scale": 2},
        "data": {"image_size": [8, 8], "mode": "L", "class_names": []},
    }
    contents = {"format_version": FORMAT_VERSION, "config": config, "kind": "upscaler"}
    assert Checkpoint.parse(contents, "x.pt").kind == "upscaler"
    with pytest.raises(UserError, match="config.diffusion is missing"):
        Checkpoint.parse({**contents, "kind": "diffusion"}, "x.pt")
    config["data"]["mode"] = "RGB"
    with pytest.raises(UserError, match="takes 1 channels, what it is trained on has 3"):
        Checkpoint.parse(contents, "x.pt")


# --- What a file system may lack ---


def failing_fsync(monkeypatch, number, on_folders):
    """os.fsync fails on folders, or on files, with this error."""
    fsync = os.fsync

    def fail(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode) == on_folders:
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fail)


@pytest.fixture
def unwarned(monkeypatch):
    """As in a process that has not warned yet."""
    monkeypatch.setattr(safeguards, "_warned", set())


@pytest.mark.parametrize("name", ["EINVAL", "ENOTSUP", "EACCES", "EBADF", "ENOSYS"])
def test_a_folder_that_cannot_be_synchronised(file, unwarned, monkeypatch, capsys, name):
    failing_fsync(monkeypatch, getattr(errno, name), on_folders=True)
    for value in (1.0, 2.0):
        save_checkpoint({"a": torch.tensor(value)}, file)
        assert torch.load(file, weights_only=True) == {"a": torch.tensor(value)}
    out = capsys.readouterr().out
    assert out.count("warning") == 1 and "cannot confirm that a renamed file" in out


def test_a_folder_that_may_not_be_read(file, unwarned, monkeypatch, capsys):
    """Opening it for fsync fails already."""
    opened = os.open

    def fail(path, flags, *args, **options):
        if os.path.isdir(path):
            raise OSError(errno.EACCES, "Permission denied")
        return opened(path, flags, *args, **options)

    monkeypatch.setattr(os, "open", fail)
    save_checkpoint({"a": torch.tensor(1.0)}, file)
    assert (
        "cannot confirm that a renamed file is on the disk (Permission" in capsys.readouterr().out
    )


def test_a_file_system_without_fsync(file, unwarned, monkeypatch, capsys):
    failing_fsync(monkeypatch, errno.EINVAL, on_folders=False)
    for value in (1.0, 2.0):
        save_checkpoint({"a": torch.tensor(value)}, file)
    assert torch.load(file, weights_only=True) == {"a": torch.tensor(2.0)}
    assert capsys.readouterr().out.count("cannot confirm that a file is on the disk") == 1


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("on_folders", [True, False])
def test_a_disk_that_fails_is_no_lack(file, unwarned, monkeypatch, capsys, number, on_folders):
    before = file.read_bytes()
    failing_fsync(monkeypatch, number, on_folders)
    with pytest.raises(OSError) as stop:
        save_checkpoint({"a": torch.tensor(1.0)}, file)
    assert stop.value.errno == number and capsys.readouterr().out == ""
    if not on_folders:
        assert file.read_bytes() == before


def test_a_file_system_without_links(file, unwarned, monkeypatch, capsys):
    def fail(*_, **__):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "link", fail)
    for _ in range(2):
        before = file.read_bytes()
        save_checkpoint({"a": torch.rand(3)}, file, keep_previous=True)
        assert (file.parent / "ckpt_prev.pt").read_bytes() == before
    assert capsys.readouterr().out.count("has no hard links") == 1
    assert sorted(path.name for path in file.parent.iterdir()) == ["ckpt_last.pt", "ckpt_prev.pt"]


def test_a_checkpoint_that_is_replaced_while_it_is_read(file, monkeypatch):
    """A run saves while generate.py reads: what was checked is what is loaded."""
    other = file.with_name("other.pt")
    save_checkpoint({"format_version": 1, "ema": {"w": torch.zeros(10**5)}}, other)
    load = torch.load

    def replace_first(*args, **options):
        os.replace(other, file)
        return load(*args, **options)

    monkeypatch.setattr(torch, "load", replace_first)
    assert "config" in read_checkpoint(file)
    monkeypatch.undo()
    assert "config" not in read_checkpoint(file)
