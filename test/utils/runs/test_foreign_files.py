"""Files of other programs: their weights load where they fit; otherwise the message tells what the
file is.
"""

import argparse
import json
import os
import pickle
import random
import resource
import zipfile

import pytest
import torch

from model.networks import build_network
from utils.errors import UserError
from utils.runs.files import read_checkpoint
from utils.runs.weights import load_weights

CONFIG = {"in_channels": 1, "num_classes": 3, "channels": 8, "channel_mult": [1, 2]}
CONFIG |= {"head_channels": 8}


@pytest.fixture
def network():
    torch.manual_seed(0)
    return build_network(CONFIG)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "weights.any"


def refusal(file) -> str:
    """What is said of a file: one sentence that begins with its path."""
    with pytest.raises(UserError) as stop:
        read_checkpoint(file)
    message = str(stop.value)
    assert "\n" not in message and str(file) in message
    return message


def assert_loads(file, network, part="network"):
    """The file holds just these weights, and they load."""
    weights = read_checkpoint(file)[part]
    load_weights(build_network(CONFIG), weights, file)
    for key, value in network.state_dict().items():
        assert torch.equal(weights[key].float(), value.float()), key


# --- safetensors, written by hand ---

NAMES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
NAMES |= {torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8"}
NAMES |= {torch.uint8: "U8", torch.bool: "BOOL"}


def raw(tensor) -> bytes:
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).tolist())


def packed(header, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def safetensors(weights: dict) -> bytes:
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, tensor in weights.items():
        begin, data = len(data), data + raw(tensor)
        offsets = [begin, len(data)]
        about = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
        header[name] = about
    return packed(header, data)


def test_safetensors_load_whatever_they_are_called(network, tmp_path):
    for name in ("w.safetensors", "w.pt"):
        (tmp_path / name).write_bytes(safetensors(network.state_dict()))
        assert_loads(tmp_path / name, network)


@pytest.mark.parametrize("dtype", NAMES, ids=str)
def test_every_kind_of_number_in_safetensors(file, dtype):
    values = torch.tensor([[0, 1, 1], [1, 0, 0]]).to(dtype)
    tensors = {"a": values, "none": values[:0], "one": values[0, 0], "last": values.clone()}
    if dtype != torch.bool:
        tensors["b"] = (values * 77).to(dtype)
    file.write_bytes(safetensors(tensors))
    found = read_checkpoint(file)["network"]
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == dtype and torch.equal(found[name], tensor)


def about(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"a": about(offsets=(0, 16))}, "entry of a in its header makes no sense"),
        ({"a": about(offsets=(8, 0))}, "entry of a in its header makes no sense"),
        ({"a": about(offsets=(-8, 0))}, "makes no sense"),
        ({"a": about(offsets=(0, 8, 8))}, "makes no sense"),
        ({"a": about(shape=(True, 2))}, "makes no sense"),
        ({"a": about(shape=(2.0,))}, "makes no sense"),
        ({"a": about(shape=(-1, -2))}, "makes no sense"),
        ({"a": about(shape=(0, 2**39, 2**39), offsets=(0, 0))}, "makes no sense"),
        ({"a": about(shape=[1] * 99 + [2])}, "makes no sense"),
        ({"a": about(shape=(10**30,), offsets=(0, 4 * 10**30))}, "makes no sense"),
        ({"a": [1, 2]}, "makes no sense"),
        ({"a": {}}, "makes no sense"),
        ({"a\nb": {}}, "makes no sense"),
        ({"a": about("F8_E4M3")}, "numbers of the type F8_E4M3 in a, which cannot be loaded; F64"),
        ({"a": about(), "b": about()}, "b overlaps another tensor or leaves a gap"),
        ({"a": about(offsets=(8, 16))}, "a overlaps another tensor or leaves a gap"),
        ({"a": about(shape=(1,), offsets=(0, 4))}, "4 bytes at its end belong to no tensor"),
        ({"a": about(shape=(4,), offsets=(0, 16))}, "describes 16 bytes of numbers, 8 are there"),
        ({}, "8 bytes at its end belong to no tensor"),
        (b'{"a": 1, "a": 2}', "unique names"),
        (b'{"a": ' + b"[" * 100_000, "not a JSON object"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "not a JSON object"),
        (b"{\xff\xfe\0\0", "not a JSON object"),
    ],
)
def test_headers_that_make_no_sense(file, header, message):
    file.write_bytes(packed(header, bytes(8)))
    assert message in refusal(file)


def test_safetensors_that_are_cut_off(file, network):
    data = safetensors(network.state_dict())
    for size in (9, 100, len(data) // 2, len(data) - 1):
        file.write_bytes(data[:size])
        message = refusal(file)
        assert "is a safetensors file that is cut off" in message
        assert "copy or download it again" in message


def test_a_header_that_would_fill_the_memory(file):
    length = 17 * 2**20
    with open(file, "wb") as stream:  # sparse
        stream.write(length.to_bytes(8, "little") + b"{")
        stream.truncate(length + 100)
    assert "with a header of 17,825,792 bytes; up to 16,777,216 are read" in refusal(file)


def test_500_mutations_of_safetensors_are_read_or_refused(file):
    """In a child process with bounded memory: never a signal, never another kind of error."""
    good = safetensors({"a": torch.ones(3, 4), "b": torch.zeros(2, dtype=torch.int16)})
    chance = random.Random(0)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            resource.setrlimit(resource.RLIMIT_AS, (16 * 2**30, 16 * 2**30))
            for _ in range(500):
                data = bytearray(good)
                for _ in range(chance.choice([1, 2, 8])):
                    data[chance.randrange(len(data))] = chance.randrange(256)
                file.write_bytes(data)
                try:
                    read_checkpoint(file)
                except UserError as error:
                    assert "\n" not in str(error) and str(file) in str(error)
            code = 0
        except BaseException as error:
            print(repr(error), flush=True)
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# --- Files of torch.save ---


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("container", ["", "state_dict", "model", "model_state_dict", "ema"])
@pytest.mark.parametrize("prefix", ["", "module.", "model.", "ema_model._orig_mod."])
def test_weights_in_dicts_of_other_programs(network, file, container, prefix, zipped):
    weights = {prefix + key: value for key, value in network.state_dict().items()}
    contents = {container: weights, "epoch": 3} if container else weights
    torch.save(contents, file, _use_new_zipfile_serialization=zipped)
    assert_loads(file, network)


def test_raw_and_averaged_weights_of_one_file(network, file):
    averaged = build_network(CONFIG)
    contents = {
        "model": network.state_dict(),
        "ema": {"decay": 0.9, "state_dict": averaged.state_dict()},
        "optimizer": {"param_groups": []},
    }
    torch.save(contents, file)
    assert_loads(file, network)
    assert_loads(file, averaged, "ema")


def test_what_wrappers_put_beside_the_weights_is_left_out(network, file):
    averaged = torch.optim.swa_utils.AveragedModel(network)
    torch.save(averaged.state_dict(), file)
    assert_loads(file, network)
    diffusion = {f"model.{key}": value for key, value in network.state_dict().items()}
    torch.save({"state_dict": {**diffusion, "betas": torch.zeros(10)}}, file)
    assert_loads(file, network)
    online = {key: torch.zeros_like(value) for key, value in network.state_dict().items()}
    both = {f"online_model.{key}": value for key, value in online.items()}
    both |= {f"ema_model.{key}": value for key, value in network.state_dict().items()}
    torch.save({"ema": {**both, "initted": torch.tensor(True), "step": torch.tensor(1)}}, file)
    assert_loads(file, network)


PROGRAMS = {
    "diffusers": ["conv_in.weight", "down_blocks.0.resnets.0.conv1.weight"]
    + ["time_embedding.linear_1.weight"],
    "guided-diffusion": ["time_embed.0.weight", "input_blocks.0.0.weight", "out.2.weight"],
    "denoising-diffusion-pytorch": ["model.init_conv.weight", "model.downs.0.0.block1.proj.weight"]
    + ["model.final_res_block.block1.proj.weight", "betas"],
    "latent-diffusion": ["model.diffusion_model.time_embed.0.weight", "first_stage_model.x"],
    "DiT": ["x_embedder.proj.weight", "blocks.0.adaLN_modulation.1.weight"],
    "EDM (NVIDIA)": ["model.map_layer0.weight", "model.enc.32x32_conv.weight", "model.dec.x"],
    "IDDM": ["inc.double_conv.0.weight", "sa1.mha.in_proj_weight"],
}


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("container", ["", "state_dict", "model"])
def test_checkpoints_of_other_projects_are_named(file, program, container):
    weights = {name: torch.zeros(2, 2) for name in PROGRAMS[program]}
    torch.save({container: weights, "step": 5} if container else weights, file)
    message = refusal(file)
    assert f"is a checkpoint of {program}" in message
    assert "its network cannot be loaded here; this project reads its own" in message
    file.write_bytes(safetensors(weights))
    assert f"is a checkpoint of {program}" in refusal(file)


IDDM = {
    "start_epoch": 300,
    "model": {"inc.double_conv.0.weight": torch.zeros(2, 2), "label_emb.weight": torch.zeros(2)},
    "ema_model": {"inc.double_conv.0.weight": torch.zeros(2, 2)},
    "optimizer": {"state": {}},
    "image_size": 64,
    "network": "cspdarkunet",
    "act": "gelu",
}
IDDM_DIFFUSION = {"num_classes": 6, "classes_name": None, "conditional": True, "sample": "ddpm"}


@pytest.mark.parametrize(
    ("changes", "said", "command"),
    [
        (
            IDDM_DIFFUSION,
            "(network cspdarkunet, sample ddpm, act gelu, image_size 64, 6 classes, epoch 300)",
            "python tools/train.py --image_size 64 --network cspdarkunet --act gelu --sample ddpm "
            "--conditional True",
        ),
        (
            {**IDDM_DIFFUSION, "conditional": False, "network": "unetv2", "act": "mish"},
            "network unetv2",
            "python tools/train.py --image_size 64 --sample ddpm --conditional False",
        ),
        (
            {**IDDM_DIFFUSION, "image_size": [48, 64], "mode": "train"},
            "image_size 48,64",
            "python tools/train.py --image_size 48,64",
        ),
        (
            {"psnr": 30.1, "ssim": 0.9},
            "epoch 300",
            "python tools/train_upscaler.py --image_size 64",
        ),
        (
            {"latent_channel": 4, "score": -1},
            "epoch 300",
            "python tools/train_autoencoder.py --image_size 64",
        ),
        (
            {**IDDM_DIFFUSION, "image_size": "$(rm)", "network": "a\nb" * 99, "start_epoch": None},
            "sample ddpm",
            "python tools/train.py --act gelu --sample ddpm --conditional True",
        ),
    ],
)
def test_checkpoints_of_the_article_say_what_to_train(file, changes, said, command):
    torch.save({**IDDM, **changes}, file)
    message = refusal(file)
    assert "is a checkpoint of IDDM" in message and "built otherwise" in message
    assert said in message and command in message and len(message) < 600
    assert "\n" not in message.partition(" is a checkpoint")[2]


def test_our_weights_in_such_a_dict_are_read(file, network):
    torch.save({**IDDM, **IDDM_DIFFUSION, "model": network.state_dict(), "ema_model": None}, file)
    assert_loads(file, network)


def test_a_dict_without_weights(file):
    torch.save({"epoch": 3, "optimizer": {}}, file)
    message = refusal(file)
    assert "neither a checkpoint of this project nor a bare state_dict" in message
    assert "it holds epoch, optimizer" in message
    torch.save({"pytorch-lightning_version": "2", "state_dict": {}}, file)
    assert "is a checkpoint of PyTorch Lightning that holds no weights" in refusal(file)


@pytest.mark.parametrize("zipped", [True, False])
def test_objects_in_a_file_are_named(file, network, zipped):
    contents = {"model": network.state_dict(), "args": argparse.Namespace(lr=1)}
    torch.save(contents, file, _use_new_zipfile_serialization=zipped)
    message = refusal(file)
    assert "cannot be loaded as plain tensors and numbers: it holds objects of argparse" in message
    assert "torch.save(network.state_dict(), file)" in message
    assert "weights_only" not in message


def test_a_whole_network_in_a_file(file):
    torch.save(torch.nn.Linear(2, 2), file)
    message = refusal(file)
    assert "it holds objects of" in message and "torch.nn.modules.linear.Linear" in message


def test_a_pickle_that_makes_no_sense(file):
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("w/data.pkl", b"\x80\x02}q.")
        archive.writestr("w/version", b"3")
    assert f"torch {torch.__version__} cannot make sense of it" in refusal(file)


@pytest.mark.parametrize("zipped", [True, False])
def test_memory_that_is_not_in_the_file(file, zipped):
    class Bomb:
        def __reduce__(self):
            return bytearray, (10**6,)

    torch.save({"a": Bomb()}, file, _use_new_zipfile_serialization=zipped)
    torch.load(file, weights_only=True)  # torch lets it through
    assert "cannot be loaded as plain tensors and numbers: it holds a bytearray" in refusal(file)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_class_of_that_name_is_none(file, network, zipped):
    contents = {"state_dict": network.state_dict(), "classes": ["bytearray", "bytearray icons"]}
    torch.save(contents, file, _use_new_zipfile_serialization=zipped)
    assert read_checkpoint(file)["network"].keys() == network.state_dict().keys()


def test_a_legacy_file_that_is_cut_off(file, network):
    torch.save(network.state_dict(), file, _use_new_zipfile_serialization=False)
    data = file.read_bytes()
    for size in (20, 300, len(data) // 2, len(data) - 3):
        file.write_bytes(data[:size])
        message = refusal(file)
        assert "cannot be loaded as plain tensors and numbers: it is cut off or damaged" in message


# --- Files of other kinds ---


def zip_of(path, *names):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, bytes(1000))
    return path.read_bytes()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is damaged or no checkpoint: it is empty (0 bytes)"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "a Git LFS pointer"),
        (b"\n<!DOCTYPE html><html><head>", "is a web page, not the file"),
        (b"<html>404", "is a web page, not the file"),
        (b"\x08\x01\x12\x05serve", "is a TensorFlow model"),
        (b"\x89HDF\r\n\x1a\n\0\0", "an HDF5 file, as Keras writes them"),
        (b"\x08\x07\x12\x07pytorch\x1a\x052.1.0", "is an ONNX model"),
        (b"\x1c\0\0\0TFL3", "is a TensorFlow Lite model"),
        (pickle.dumps({"a": 1}), "is a Python pickle, which can run code when it is loaded"),
        (pickle.dumps({"a": "torch_utils.persistence"}), "EDM or StyleGAN (NVIDIA); its network"),
        (b"\x1f\x8b\x08\0", "is compressed with gzip; unpack it first"),
        (b"x" * 257 + b"ustar", "is a tar archive; unpack it first"),
        (b"\x93NUMPY\x01", "is a NumPy array"),
        (b"\x89PNG\r\n", "is a picture"),
        (b"hello\nworld", "no checkpoint: it is a text that begins with"),
        (b"\0\1\2\3" * 99, "begins like neither a file of torch.save nor a safetensors file"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_the_message_tells_what_the_file_is(file, data, message):
    file.write_bytes(data)
    assert message in refusal(file)


def test_archives_of_other_programs(tmp_path, file):
    for names, message in [
        (["arr_0.npy"], "is an archive of NumPy arrays"),
        (["metadata.json", "config.json", "model.weights.h5"], "is a Keras model"),
        (["a.png", "b.png"], "is a zip archive that holds a.png, b.png, no checkpoint"),
        (["m/data.pkl", "m/constants.pkl", "m/code/m.py"], "is a TorchScript program"),
    ]:
        file.write_bytes(zip_of(tmp_path / "made.zip", *names))
        assert message in refusal(file)


def test_a_part_of_a_tensorflow_checkpoint(tmp_path):
    file = tmp_path / "model.ckpt.data-00000-of-00001"
    file.write_bytes(bytes(range(256)))
    assert "is a part of a TensorFlow checkpoint" in refusal(file)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "is a pipe, a socket or a device" in refusal(tmp_path / "pipe")
    assert "cannot be read: Is a directory" in refusal(tmp_path)
