"""A checkpoint -> a folder that diffusers' DDPMPipeline and DDIMPipeline load."""

import json
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from model.noise_schedule import FLOW, LARGEST_BETA, REFERENCE_STEPS
from model.samplers import build_sampler
from utils.errors import UserError
from utils.exchange.diffusers_names import diffusers_state
from utils.exchange.to_files import whole_or_nothing
from utils.image_facts import USUAL_MODES
from utils.runs import safetensors
from utils.runs.checkpoint import Checkpoint
from utils.runs.inference import inference_network

WEIGHTS = "diffusion_pytorch_model.safetensors"
LABELS = "class_embedding.weight"
TIME_BIAS = "time_embedding.linear_2.bias"

ACTIVATIONS = {"silu": "silu", "gelu": "gelu", "relu": "relu"}
PREDICTIONS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
# Schedules that diffusers has too; of the others it is given each beta.
SCHEDULES = {"linear": "linear", "sqrt_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}


def model_options(config: dict[str, Any]) -> dict[str, Any]:
    """The options of the UNet2DModel with the layers of our U-Net of this config. Raises UserError
    for a layer that it cannot have.
    """
    if config["act"] not in ACTIVATIONS:
        raise UserError(
            f"diffusers has no activation {config['act']}; it has {', '.join(ACTIVATIONS)}"
        )
    count = len(config["channel_mult"])
    levels = {level % count for level in config["attention_levels"]}
    attends = [level in levels for level in range(count)]
    is_scale_shift = config["time_embedding"] == "scale_shift"
    return {
        "in_channels": config["in_channels"],
        "out_channels": config["out_channels"] or config["in_channels"],
        "block_out_channels": [config["channels"] * mult for mult in config["channel_mult"]],
        "layers_per_block": config["blocks_per_level"],
        "down_block_types": ["AttnDownBlock2D" if at else "DownBlock2D" for at in attends],
        "up_block_types": ["AttnUpBlock2D" if at else "UpBlock2D" for at in reversed(attends)],
        "attention_head_dim": config["head_channels"],
        "resnet_time_scale_shift": "scale_shift" if is_scale_shift else "default",
        "act_fn": ACTIVATIONS[config["act"]],
        "norm_num_groups": config["norm_groups"],
        # Of the attention in the middle, which has no norm under scale_shift without.
        "attn_norm_num_groups": config["norm_groups"],
        "norm_eps": config["norm_eps"],
        "add_attention": config["mid_attention"],
        "downsample_padding": 0 if config["asymmetric_padding"] else 1,
        "freq_shift": config["freq_shift"],
        "flip_sin_to_cos": config["cos_first"],
        "dropout": config["dropout"],
    }


def group_options(network: nn.Module) -> dict[str, int]:
    """The groups of all its norms. A norm of ours has fewer where `norm_groups` does not divide its
    channels; UserError where they do not all have the same number then.
    """
    found = {layer.num_groups for layer in network.modules() if isinstance(layer, nn.GroupNorm)}
    if len(found) > 1:
        numbers = ", ".join(map(str, sorted(found)))
        raise UserError(
            f"its norms have {numbers} groups, where diffusers has one number for all: a network "
            "whose --norm_groups divides the width of every level can be exported"
        )
    (groups,) = found
    return {"norm_num_groups": groups, "attn_norm_num_groups": groups}


def export_pipeline(
    checkpoint: Checkpoint, folder: Path, label: int | None = None, use_ema: bool = True
) -> None:
    """Write the folder. Where the network learned classes, `label` is the one that the pipeline
    draws: its vector becomes part of the time embedding's bias, so that nothing is approximated.

    Raises UserError for what diffusers' pipelines cannot do, OSError where the disk refuses it.
    """
    network = _exportable(checkpoint, label, use_ema)
    size = checkpoint.image_size
    options = {
        "_class_name": "UNet2DModel",
        "sample_size": size[0] if size[0] == size[1] else list(size),
        **model_options(cast(dict, network.config)),
        **group_options(network),
    }
    scheduler = scheduler_options(checkpoint.config["diffusion"])
    weights = diffusers_state(network)
    labels = weights.pop(LABELS, None)
    if labels is not None and label is not None:
        weights[TIME_BIAS] = weights[TIME_BIAS] + labels[label]
    index = {
        "_class_name": "DDPMPipeline",
        "scheduler": ["diffusers", "DDPMScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
    }
    with whole_or_nothing(folder.parent) as half:
        made = half / folder.name
        for name in ("unet", "scheduler"):
            (made / name).mkdir(parents=True)
        safetensors.write(_contiguous(weights), made / "unet" / WEIGHTS)
        _write_json(options, made / "unet" / "config.json")
        _write_json(scheduler, made / "scheduler" / "scheduler_config.json")
        _write_json(index, made / "model_index.json")


def _exportable(checkpoint: Checkpoint, label: int | None, use_ema: bool) -> nn.Module:
    """The network. Raises UserError where no pipeline could draw with it."""
    source = checkpoint.source
    checkpoint.check_kind("diffusion")
    network = checkpoint.config["network"]
    if network["name"] != "unet":
        raise UserError(f"{source} holds a {network['name']}; diffusers has the unet alone")
    if checkpoint.config.get("codec", {}).get("name", "pixels") != "pixels":
        raise UserError(f"{source} diffuses {checkpoint.config['codec']['name']}, not plain pixels")
    mode = checkpoint.config["data"]["mode"]
    if mode not in USUAL_MODES:
        raise UserError(f"{source} makes images of mode {mode}; diffusers' pipelines, grey or RGB")
    if checkpoint.numbers:
        raise UserError(f"{source} learned numbers, which diffusers' pipelines cannot be told")
    if checkpoint.class_names and label is None:
        raise UserError(
            f"{source} learned classes, and diffusers' pipelines draw without: choose one with "
            "--class_name"
        )
    return inference_network(checkpoint, use_ema)


def scheduler_options(process: dict[str, Any]) -> dict[str, Any]:
    """The config of the DDPMScheduler of the same process. Raises UserError for rectified flow."""
    schedule, steps = process["noise_schedule"], process["noise_steps"]
    if schedule == FLOW:
        raise UserError("diffusers' DDPMPipeline knows no rectified flow")
    options: dict[str, Any] = {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": steps,
        "prediction_type": PREDICTIONS[process["prediction"]],
        "clip_sample": True,
        "timestep_spacing": "trailing",
        "variance_type": "fixed_small",
    }
    scale = REFERENCE_STEPS / steps
    start = process.get("beta_start", 1e-4) * scale
    end = process.get("beta_end", 2e-2) * scale
    is_named = schedule in SCHEDULES and process.get("noise_shift", 1.0) == 1
    # Larger ones are cut off there, but not in diffusers; cosine has no ends.
    if is_named and (schedule == "cosine" or end <= LARGEST_BETA):
        options |= {
            "beta_schedule": SCHEDULES[schedule],
            "beta_start": start,
            "beta_end": end,
            "rescale_betas_zero_snr": process.get("zero_terminal_snr", False),
        }
        return options
    alphas = build_sampler("ddim", process).alphas_cumprod
    before = torch.cat([torch.ones(1, dtype=alphas.dtype), alphas[:-1]])
    return {**options, "trained_betas": (1 - alphas / before).tolist()}


def _contiguous(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}


def _write_json(contents: dict, file: Path) -> None:
    file.write_text(json.dumps(contents, indent=2) + "\n", encoding="utf-8")
