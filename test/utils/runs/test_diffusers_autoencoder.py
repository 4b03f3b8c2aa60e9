"""Autoencoders out of folders that diffusers wrote."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DModel, VQModel
from safetensors.torch import load_file, save_file

from model.networks import build_network
from utils.errors import UserError
from utils.runs.diffusers_autoencoder import read_diffusers_autoencoder

SAFETENSORS = "diffusion_pytorch_model.safetensors"
BIN = "diffusion_pytorch_model.bin"


def small_autoencoder(**options) -> AutoencoderKL:
    torch.manual_seed(0)
    small = {"block_out_channels": [8, 16], "norm_num_groups": 4, "layers_per_block": 2}
    types = {
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
    }
    return AutoencoderKL(**small, **types, **options).eval()


def assert_same_network(folder: Path, theirs: AutoencoderKL, tolerance: float = 1e-5) -> None:
    config, weights = read_diffusers_autoencoder(folder)
    assert all(tensor.dtype == torch.float32 for tensor in weights.values())
    ours = build_network(config)
    assert ours.config == config
    ours.load_state_dict(weights, strict=True)
    x = torch.rand(2, config["in_channels"], 16, 20) * 2 - 1
    with torch.inference_mode():
        mean, logvar = ours.encode(x)
        posterior = theirs.encode(x).latent_dist
        assert (mean - posterior.mean).abs().max() < tolerance
        assert (logvar - posterior.logvar).abs().max() < tolerance
        assert (ours.decode(mean) - theirs.decode(mean).sample).abs().max() < tolerance


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"in_channels": 1, "out_channels": 1, "latent_channels": 8, "act_fn": "swish"},
        {"use_quant_conv": False, "use_post_quant_conv": False, "mid_block_add_attention": False},
        {"scaling_factor": 0.3, "shift_factor": 0.1, "force_upcast": False, "act_fn": "gelu"},
    ],
)
def test_a_folder_of_diffusers(options, safe, tmp_path):
    theirs = small_autoencoder(**options)
    theirs.save_pretrained(tmp_path, safe_serialization=safe)
    assert (tmp_path / (SAFETENSORS if safe else BIN)).exists()
    assert_same_network(tmp_path, theirs)


def test_a_folder_of_a_pipeline(tmp_path):
    theirs = small_autoencoder()
    theirs.save_pretrained(tmp_path / "vae")
    (tmp_path / "model_index.json").write_text("{}")
    assert_same_network(tmp_path, theirs)


@pytest.mark.parametrize("safe", [True, False])
def test_weights_of_16_bits(safe, tmp_path):
    theirs = small_autoencoder().half()
    theirs.save_pretrained(tmp_path, variant="fp16", safe_serialization=safe)
    assert_same_network(tmp_path, theirs.float())
    full = small_autoencoder()  # which is read first where it is there too
    full.save_pretrained(tmp_path)
    assert_same_network(tmp_path, full)


@pytest.mark.parametrize("convolutions", [False, True])
def test_old_names_of_attention(convolutions, tmp_path):
    theirs = small_autoencoder()
    theirs.save_pretrained(tmp_path)
    weights = load_file(tmp_path / SAFETENSORS)
    old = {}
    for name, tensor in weights.items():
        for now, before in {
            "to_q": "query",
            "to_k": "key",
            "to_v": "value",
            "to_out.0": "proj_attn",
        }.items():
            if f".{now}." in name:
                name = name.replace(f".{now}.", f".{before}.")
                if convolutions and tensor.dim() == 2:
                    tensor = tensor[:, :, None, None]
        old[name] = tensor.contiguous()
    assert sum("proj_attn" in name or "query" in name for name in old) == 8
    save_file(old, tmp_path / SAFETENSORS)
    assert_same_network(tmp_path, theirs)
    (tmp_path / SAFETENSORS).unlink()
    torch.save(old, tmp_path / BIN)
    assert_same_network(tmp_path, theirs)


def test_options_that_are_not_there_are_those_of_diffusers(tmp_path):
    """An old config.json has fewer options."""
    theirs = AutoencoderKL(norm_num_groups=32).eval()
    theirs.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"_class_name": "AutoencoderKL"}))
    assert_same_network(tmp_path, theirs)


# --- What cannot be read ---


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    small_autoencoder().save_pretrained(tmp_path / "folder")
    return tmp_path / "folder"


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as error:
        read_diffusers_autoencoder(folder)
    message = str(error.value)
    assert "\n" not in message and len(message) < 1000
    return message


def change(folder: Path, **options) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **options}))


def test_a_folder_that_is_none(folder):
    assert "does not exist; an autoencoder is a folder" in refusal(folder / "nowhere")
    assert "is a file; an autoencoder is a folder" in refusal(folder / SAFETENSORS)
    (folder / "config.json").unlink()
    assert "neither it nor a folder vae in it has the file config.json" in refusal(folder)


@pytest.mark.parametrize(
    "text", ["", "[1]", "{", "[" * 100_000, '{"a": "' + "x" * 2**20 + '"}', "\x00\x80"]
)
def test_a_damaged_config(text, folder):
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    assert "is not a small JSON object" in refusal(folder)


def test_a_config_that_is_a_folder(folder):
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()
    assert "config.json cannot be read" in refusal(folder)


def test_other_classes_are_named(folder, tmp_path):
    VQModel().save_pretrained(tmp_path / "vq")
    assert "describes 'VQModel'; the autoencoder that is read here is AutoencoderKL" in refusal(
        tmp_path / "vq"
    )
    UNet2DModel(block_out_channels=(32, 32, 32, 32)).save_pretrained(tmp_path / "unet")
    assert "describes 'UNet2DModel'" in refusal(tmp_path / "unet")
    change(folder, _class_name=None)
    assert "names no class" in refusal(folder)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"down_block_types": ["DownEncoderBlock2D", "X"]}, "down_block_types .* not supported"),
        ({"up_block_types": "UpDecoderBlock2D"}, "up_block_types .* only UpDecoderBlock2D is"),
        ({"out_channels": 6}, "out_channels 6 is not supported here, as many as in_channels, 3"),
        ({"act_fn": "mish"}, "network option act_fn is one of .* not 'mish'"),
        ({"act_fn": ["silu"]}, "network option act_fn"),
        ({"block_out_channels": None}, "network option block_out_channels"),
        ({"block_out_channels": [8, 10**9]}, "network option block_out_channels"),
        ({"norm_num_groups": 3}, "network option norm_num_groups must divide"),
        ({"use_quant_conv": 1}, "network option use_quant_conv is True or False"),
        ({"spatial_compression": 4}, "options that are not supported here: spatial_compression"),
        ({"a\nb" * 500: 4}, "options that are not supported here: 'a"),
    ],
)
def test_options_that_are_not_supported(options, message, folder):
    change(folder, **options)
    with pytest.raises(UserError, match=message):
        read_diffusers_autoencoder(folder)
    refusal(folder)


def test_weights_that_are_missing_or_damaged(folder):
    shutil.copy(folder / SAFETENSORS, folder / "kept")
    (folder / SAFETENSORS).write_bytes((folder / "kept").read_bytes()[:5000])
    assert "cut off" in refusal(folder)
    (folder / SAFETENSORS).write_text("version https://git-lfs.github.com/spec/v1\n")
    assert "Git LFS pointer" in refusal(folder)
    (folder / SAFETENSORS).unlink()
    assert "has a config.json but no weights: none of diffusion_pytorch_model" in refusal(folder)
    torch.save([1, 2], folder / BIN)
    assert "does not hold weights: a dict of tensors" in refusal(folder)
    torch.save({"a": {"b": torch.zeros(1)}}, folder / BIN)
    assert "does not hold weights: a dict of tensors" in refusal(folder)


def test_no_code_runs(folder, tmp_path):
    class Payload:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    (folder / SAFETENSORS).unlink()
    torch.save({"weight": Payload()}, folder / BIN)
    refusal(folder)
    assert not (tmp_path / "ran").exists()


def test_weights_that_do_not_fit(folder):
    weights = load_file(folder / SAFETENSORS)
    good = dict(weights)
    bias = good.pop("quant_conv.bias")
    save_file(good, folder / SAFETENSORS)
    assert "do not fit the network autoencoder: missing quant_conv.bias" in refusal(folder)
    save_file({**good, "quant_conv.bias": bias, "more": bias.clone()}, folder / SAFETENSORS)
    assert "unexpected more" in refusal(folder)
    save_file({**good, "quant_conv.bias": bias.to(torch.int32)}, folder / SAFETENSORS)
    assert "quant_conv.bias whole instead of floating-point" in refusal(folder)
    save_file({**good, "quant_conv.bias": bias / 0}, folder / SAFETENSORS)
    assert "are not finite: quant_conv.bias" in refusal(folder)
    save_file(weights, folder / SAFETENSORS)
    change(folder, block_out_channels=[8, 32])
    assert "other shapes" in refusal(folder)
    change(folder, block_out_channels=[8, 16, 32])
    assert "missing" in refusal(folder)
