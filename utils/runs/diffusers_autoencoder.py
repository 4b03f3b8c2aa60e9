"""An autoencoder in a folder of diffusers: config.json, and the weights beside it."""

import json
import os
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from model.networks import build_network
from utils.errors import UserError, name_list
from utils.runs.files import open_regular, read_contents
from utils.runs.foreign import shown
from utils.runs.safeguards import reason
from utils.runs.state_dicts import is_state_dict
from utils.runs.weights import check_finite, check_fit, check_tensors

CLASS = "AutoencoderKL"
CONFIG = "config.json"
SUBFOLDER = "vae"  # of a folder with a whole pipeline
MAX_CONFIG = 2**20  # bytes
# Beside the config; the first that is there is read, so that 16 bits come last.
WEIGHT_FILES = (
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.bin",
    "diffusion_pytorch_model.fp16.safetensors",
    "diffusion_pytorch_model.fp16.bin",
)

# The options that our network has too, and what diffusers takes for one that is not there.
SHARED_OPTIONS: dict[str, Any] = {
    "in_channels": 3,
    "latent_channels": 4,
    "block_out_channels": [64],
    "layers_per_block": 1,
    "norm_num_groups": 32,
    "act_fn": "silu",
    "mid_block_add_attention": True,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
}
# Options that are about the use of the latents or the format of numbers, not about the network.
OTHER_USES = (
    "force_upcast",
    "latents_mean",
    "latents_std",
    "sample_size",
    "scaling_factor",
    "shift_factor",
)
BLOCK_TYPES = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}
ACTIVATIONS = {"swish": "silu"}  # two names of one function

# The layers of attention, as the first versions of diffusers named them.
OLD_LAYERS = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
ATTENTION = ".mid_block.attentions.0."


def read_diffusers_autoencoder(folder: Path) -> tuple[dict, dict[str, Tensor]]:
    """A folder of diffusers' AutoencoderKL, or of a pipeline that has one under vae/ -> the config
    for build_network, and weights in float32 that fit it.

    UserError where the folder holds none, where it is another network, or has an option that is not
    supported here, and where the weights are missing, damaged or do not fit.
    """
    folder = folder_of_config(folder)
    config = network_config(read_config(folder / CONFIG), folder / CONFIG)
    try:
        with torch.device("meta"):  # no memory before the weights are seen to fit
            network = build_network(config)
    except ValueError as error:
        raise UserError(f"{folder / CONFIG} cannot be used: {error}") from None
    file = weights_file(folder)
    weights = {new_name(name): tensor for name, tensor in read_weights(file).items()}
    weights = {name: without_places(name, tensor) for name, tensor in weights.items()}
    check_fit(network, weights, file)
    weights = {name: tensor.float() for name, tensor in weights.items()}
    check_finite(weights, file)
    return cast(dict, network.config), weights


def folder_of_config(folder: Path) -> Path:
    """The folder itself, or its sub-folder vae/: whichever has a config. UserError for neither."""
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "does not exist"
        raise UserError(
            f"{folder} {found}; an autoencoder is a folder of diffusers with {CONFIG} and weights"
        )
    for place in (folder, folder / SUBFOLDER):
        if os.path.exists(place / CONFIG):  # False too where the folder may not be entered
            return place
    raise UserError(
        f"{folder} is no autoencoder of diffusers: neither it nor a folder {SUBFOLDER} in it has "
        f"the file {CONFIG}"
    )


def read_config(file: Path) -> dict:
    """The JSON object in the file. UserError where it holds none."""
    try:
        with open_regular(file) as stream:
            data = stream.read(MAX_CONFIG + 1)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {reason(error)}") from None
    try:
        config = json.loads(data) if len(data) <= MAX_CONFIG else None
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise UserError(f"{file} is damaged or no config: it is not a small JSON object")
    return config


def network_config(config: dict, file: Path) -> dict:
    """diffusers' config -> that of our network. UserError for what our network cannot be."""
    found = config.get("_class_name")
    if found != CLASS:
        what = "names no class" if found is None else f"describes {shown(repr(found))}"
        raise UserError(f"{file} {what}; the autoencoder that is read here is {CLASS}")
    ours = {key: config.get(key, default) for key, default in SHARED_OPTIONS.items()}
    if isinstance(ours["act_fn"], str):
        ours["act_fn"] = ACTIVATIONS.get(ours["act_fn"], ours["act_fn"])
    for key, only in BLOCK_TYPES.items():
        types = config.get(key, [only])
        if not isinstance(types, list) or any(kind != only for kind in types):
            raise unsupported(file, key, types, f"only {only} is")
    channels = config.get("out_channels", 3)
    if channels != ours["in_channels"]:
        wanted = f"as many as in_channels, {shown(repr(ours['in_channels']))}, are"
        raise unsupported(file, "out_channels", channels, wanted)
    known = {*SHARED_OPTIONS, *BLOCK_TYPES, *OTHER_USES, "out_channels"}
    unknown = [key for key in config if key not in known and not key.startswith("_")]
    if unknown:
        names = name_list([shown(key) for key in unknown], 5)
        raise UserError(f"{file} has options that are not supported here: {names}")
    return {"name": "autoencoder", **ours}


def unsupported(file: Path, key: str, value: Any, instead: str) -> UserError:
    return UserError(f"{file}: {key} {shown(repr(value))} is not supported here, {instead}")


def weights_file(folder: Path) -> Path:
    """The file with the weights. UserError where there is none."""
    for name in WEIGHT_FILES:
        if (folder / name).exists():
            return folder / name
    raise UserError(
        f"{folder} has a {CONFIG} but no weights: none of {', '.join(WEIGHT_FILES)} is there"
    )


def read_weights(file: Path) -> dict[str, Tensor]:
    """The tensors of the file, by their names in it. UserError where it holds anything else."""
    try:
        with open_regular(file) as stream:
            weights = read_contents(stream, file)
    except OSError as error:
        raise UserError(f"the weights {file} cannot be read: {reason(error)}") from None
    if not is_state_dict(weights):
        raise UserError(f"{file} does not hold weights: a dict of tensors is needed")
    check_tensors(weights, file)
    return weights


def new_name(name: str) -> str:
    """The name of a weight today, from today's or that of the first versions of diffusers."""
    before, is_attention, layer = name.partition(ATTENTION)
    parts = layer.rpartition(".")  # "query.weight" -> "query", ".", "weight"
    if not is_attention or parts[0] not in OLD_LAYERS:
        return name
    return f"{before}{ATTENTION}{OLD_LAYERS[parts[0]]}.{parts[2]}"


def without_places(name: str, tensor: Tensor) -> Tensor:
    """Attention's layers as matrices (C,C); a convolution of 1x1, (C,C,1,1), is the same layer."""
    if ATTENTION in name and tensor.dim() == 4 and tensor.shape[2:] == (1, 1):
        return tensor[:, :, 0, 0]
    return tensor
