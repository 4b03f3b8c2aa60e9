"""A folder of diffusers' unconditional pipelines -> what one of our checkpoint files holds."""

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from model.diffusion import GaussianDiffusion
from model.networks import build_network
from model.noise_schedule import REFERENCE_STEPS
from utils.errors import UserError
from utils.exchange.diffusers_names import diffusers_names
from utils.exchange.to_diffusers import PREDICTIONS, SCHEDULES
from utils.image_facts import CHANNELS, USUAL_MODES, mode_of
from utils.runs.diffusers_autoencoder import (
    OLD_LAYERS,
    read_config,
    read_weights,
    weights_file,
)
from utils.runs.foreign import shown
from utils.runs.weights import check_finite, check_fit

CLASS = "UNet2DModel"
CONFIG = "config.json"
SCHEDULER_CONFIG = "scheduler_config.json"
UNET, SCHEDULER = "unet", "scheduler"

# The schedulers of processes that keep the variance, whose noise a list of betas defines. Others
# (flow matching, EDM, consistency models, ...) are of networks that take something else.
SCHEDULERS = (
    "DDPMScheduler",
    "DDIMScheduler",
    "PNDMScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "UniPCMultistepScheduler",
    "DEISMultistepScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "LMSDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
)
ATTENTIONS = ".attentions."

# What diffusers takes where its config does not say.
DEFAULTS: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "sample_size": None,
    "block_out_channels": [224, 448, 672, 896],
    "layers_per_block": 2,
    "down_block_types": ["DownBlock2D", *["AttnDownBlock2D"] * 3],
    "up_block_types": [*["AttnUpBlock2D"] * 3, "UpBlock2D"],
    "attention_head_dim": 8,
    "resnet_time_scale_shift": "default",
    "act_fn": "silu",
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "add_attention": True,
    "downsample_padding": 1,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "dropout": 0.0,
}
# Options that our network does not have in every way that diffusers has.
ONLY: dict[str, tuple] = {
    "downsample_padding": (1, 0),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "center_input_sample": (False,),
    "time_embedding_type": ("positional",),
    "time_embedding_dim": (None,),
    "mid_block_scale_factor": (1,),
    "mid_block_type": ("UNetMidBlock2D",),
    "downsample_type": ("conv",),
    "upsample_type": ("conv",),
    "class_embed_type": (None,),
    "num_class_embeds": (None,),
    "num_train_timesteps": (None,),
}


def is_diffusers_folder(folder: Path) -> bool:
    """Whether a folder looks like a pipeline's or a network's of diffusers."""
    return any((folder / place / CONFIG).exists() for place in (".", UNET))


def read_diffusers_unet(folder: Path) -> dict:
    """The contents of a checkpoint with the network of the folder, and the process of its scheduler
    (DDPM's usual one where there is none).

    Raises UserError where it is another network, or one that ours cannot be.
    """
    place = folder / UNET if (folder / UNET / CONFIG).exists() else folder
    file = place / CONFIG
    options = read_config(file)
    config = network_config(options, file)
    try:
        with torch.device("meta"):
            network = build_network(config)
    except ValueError as error:
        raise UserError(f"{file} cannot be used: {error}") from None
    weights_at = weights_file(place)
    theirs = {_new_name(name): value for name, value in read_weights(weights_at).items()}
    weights = _renamed(theirs, network, weights_at)
    check_fit(network, weights, weights_at)
    check_finite(weights, weights_at)
    if config["in_channels"] not in (CHANNELS[mode] for mode in USUAL_MODES):
        raise UserError(f"{file}: images have 1 or 3 channels, not {config['in_channels']}")
    return {
        "format_version": 2,
        "kind": "diffusion",
        "config": {
            "network": cast(dict, network.config),
            "diffusion": _process(folder),
            "codec": {"name": "pixels"},
            "data": {
                "image_size": _size(options, file),
                "mode": mode_of(config["in_channels"]),
                "class_names": [],
            },
            "sampling": {"sampler": "dpmpp2m", "guidance": False},
            "training": {},
        },
        "ema": weights,
    }


def network_config(options: dict, file: Path) -> dict:
    """diffusers' config -> that of our network. UserError for what our network cannot be."""
    found = options.get("_class_name")
    if found != CLASS:
        what = "names no class" if found is None else f"describes {shown(repr(found))}"
        raise UserError(f"{file} {what}; the network that is read here is {CLASS}")
    for key, allowed in ONLY.items():
        if options.get(key, allowed[0]) not in allowed:
            choice = " or ".join(map(repr, allowed))
            raise _unsupported(file, key, options[key], f"only {choice} is")
    known = {*DEFAULTS, *ONLY}
    unknown = [key for key in options if key not in known and not key.startswith("_")]
    if unknown:
        raise UserError(f"{file} has options that are not supported here: {', '.join(unknown[:5])}")
    values = {key: options.get(key, default) for key, default in DEFAULTS.items()}
    widths, channels, mults = _widths(values["block_out_channels"], file)
    scale_shift = values["resnet_time_scale_shift"] == "scale_shift"
    _check_groups_of_attention(values, scale_shift, file)
    return {
        "name": "unet",
        "in_channels": values["in_channels"],
        "out_channels": values["out_channels"],
        "channels": channels,
        "channel_mult": mults,
        "blocks_per_level": values["layers_per_block"],
        "attention_levels": _attention_levels(values, len(widths), file),
        "mid_attention": values["add_attention"],
        "head_channels": values["attention_head_dim"],
        "dropout": values["dropout"],
        "time_embedding": "scale_shift" if scale_shift else "additive",
        "act": "silu" if values["act_fn"] == "swish" else values["act_fn"],
        "norm_groups": values["norm_num_groups"],
        "norm_eps": values["norm_eps"],
        "asymmetric_padding": values["downsample_padding"] == 0,
        "freq_shift": values["freq_shift"],
        "cos_first": values["flip_sin_to_cos"],
    }


def _check_groups_of_attention(values: dict, scale_shift: bool, file: Path) -> None:
    """The attention in the middle has a number of groups of its own there, and no norm at all with
    scale_shift and without such a number. Ours has the groups of all other norms.
    """
    groups, usual = values["attn_norm_num_groups"], values["norm_num_groups"]
    if not values["add_attention"] or groups == usual or (groups is None and not scale_shift):
        return
    instead = f"the same as norm_num_groups, {usual!r}, is"
    raise _unsupported(file, "attn_norm_num_groups", groups, instead)


def _widths(widths: Any, file: Path) -> tuple[list[int], int, list[int]]:
    """The widths of the levels, as multiples of the first."""
    is_right = isinstance(widths, list) and widths and all(type(each) is int for each in widths)
    if not is_right or widths[0] < 1 or any(width % widths[0] for width in widths):
        raise _unsupported(file, "block_out_channels", widths, "multiples of the first one are")
    return widths, widths[0], [width // widths[0] for width in widths]


def _attention_levels(values: dict, count: int, file: Path) -> list[int]:
    """The levels with attention, which must be the same on both ways."""
    down, up = values["down_block_types"], values["up_block_types"]
    found = [_with_attention(down, "DownBlock2D"), _with_attention(up, "UpBlock2D")]
    if found[0] is None or found[1] is None or len(found[0]) != count or found[0] != found[1][::-1]:
        raise _unsupported(
            file, "down_block_types", down, "[Attn]DownBlock2D and the same on the way up are"
        )
    return [level for level, attends in enumerate(found[0]) if attends]


def _with_attention(types: Any, plain: str) -> list[bool] | None:
    """Whether each level has attention; None for other types."""
    with_attention = f"Attn{plain}"
    if not isinstance(types, list) or any(kind not in (plain, with_attention) for kind in types):
        return None
    return [kind == with_attention for kind in types]


def _size(options: dict, file: Path) -> list[int]:
    size = options.get("sample_size")
    sides: Any = [size, size] if type(size) is int else size
    is_right = (
        isinstance(sides, list) and len(sides) == 2 and all(type(side) is int for side in sides)
    )
    if not is_right:
        raise _unsupported(file, "sample_size", size, "a whole number is")
    return sides


def _process(folder: Path) -> dict:
    """The diffusion process of the folder's scheduler. UserError for one that ours cannot be."""
    places = (folder / SCHEDULER / SCHEDULER_CONFIG, folder / SCHEDULER_CONFIG)
    file = next((place for place in places if place.exists()), places[0])
    options = read_config(file) if file.exists() else {}
    kind = options.get("_class_name", SCHEDULERS[0])
    if kind not in SCHEDULERS:
        raise _unsupported(file, "_class_name", kind, f"{', '.join(SCHEDULERS)} are")
    process = _process_of(options, file)
    try:
        GaussianDiffusion(**process)
    except ValueError as error:
        raise UserError(f"{file} cannot be used: {error}") from None
    return process


def _process_of(options: dict, file: Path) -> dict:
    """The same, of a scheduler's config."""
    steps = options.get("num_train_timesteps", 1000)
    schedules = {theirs: ours for ours, theirs in SCHEDULES.items()}
    predictions = {theirs: ours for ours, theirs in PREDICTIONS.items()}
    schedule = options.get("beta_schedule", "linear")
    prediction = options.get("prediction_type", "epsilon")
    if options.get("trained_betas") is not None:
        raise _unsupported(file, "trained_betas", "a list", "a named beta_schedule is")
    if schedule not in list(schedules):  # a list: what a file holds may have no hash
        raise _unsupported(file, "beta_schedule", schedule, f"one of {', '.join(schedules)} is")
    if prediction not in list(predictions):
        raise _unsupported(file, "prediction_type", prediction, f"{', '.join(predictions)} are")
    start, end = options.get("beta_start", 1e-4), options.get("beta_end", 2e-2)
    if type(steps) is not int:
        raise _unsupported(file, "num_train_timesteps", steps, "a whole number is")
    for key, beta in (("beta_start", start), ("beta_end", end)):
        if type(beta) not in (int, float):
            raise _unsupported(file, key, beta, "a number is")
    scale = steps / REFERENCE_STEPS
    process = {
        "noise_steps": steps,
        "noise_schedule": schedules[schedule],
        "prediction": predictions[prediction],
        "beta_start": start * scale,
        "beta_end": end * scale,
    }
    if options.get("rescale_betas_zero_snr"):
        process["zero_terminal_snr"] = True
    return process


# --- Weights ---


def _new_name(name: str) -> str:
    """The name of a weight today, from today's or that of the first versions of diffusers."""
    before, is_attention, rest = name.partition(ATTENTIONS)
    number, _, layer = rest.partition(".")
    stem, _, leaf = layer.rpartition(".")
    if not is_attention or stem not in OLD_LAYERS:
        return name
    return f"{before}{ATTENTIONS}{number}.{OLD_LAYERS[stem]}.{leaf}"


def _renamed(theirs: dict[str, Tensor], network: torch.nn.Module, file: Path) -> dict[str, Tensor]:
    """Under our names, in float32. UserError for weights that are missing or belong to no layer."""
    ours: dict[str, Tensor] = {}
    used: set[str] = set()
    for name, parts in diffusers_names(network):
        missing = [part for part in parts if part not in theirs]
        if missing:
            raise UserError(f"the weights {file} lack {', '.join(missing)}")
        pieces = [_as_matrix(part, theirs[part]) for part in parts]
        ours[name] = torch.cat(pieces).float() if len(pieces) > 1 else pieces[0].float()
        used.update(parts)
    extra = sorted(theirs.keys() - used)
    if extra:
        raise UserError(
            f"the weights {file} hold what this network has not: {', '.join(extra[:5])}"
        )
    return ours


def _as_matrix(name: str, tensor: Tensor) -> Tensor:
    """Attention's layers as matrices (C,C); a convolution of 1x1, (C,C,1,1), is the same layer."""
    if ATTENTIONS in name and tensor.dim() == 4 and tensor.shape[2:] == (1, 1):
        return tensor[:, :, 0, 0]
    return tensor


def _unsupported(file: Path, key: str, value: Any, instead: str) -> UserError:
    return UserError(f"{file}: {key} {shown(repr(value))} is not supported here, {instead}")
