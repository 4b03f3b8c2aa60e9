"""Weights without metadata: what their shapes tell of the network, and options the rest."""

import re
from dataclasses import dataclass
from pathlib import Path

from utils.errors import UserError
from utils.image_facts import CHANNELS, USUAL_MODES, mode_of
from utils.runs.checkpoint import Checkpoint
from utils.runs.weights import AUGMENTATION

UNKNOWN_SIZE = [64, 64]  # height and width where nothing says them


@dataclass
class Told:
    """What shapes cannot tell, from the command line; None: the usual."""

    conditional: bool | None = None
    num_classes: int | None = None
    network: str | None = None
    act: str | None = None
    head_channels: int | None = None
    norm_groups: int | None = None
    noise_schedule: str | None = None
    prediction: str | None = None


# For each network: the last layer of a stage, whose first dimension is the level's width, and the
# names of the blocks that are counted within the first level.
_LAST_LAYER = {"unet": "block.conv2", "cspdarkunet": "join"}
_BLOCKS = {"unet": r"down\.level0_block", "cspdarkunet": r"down\.level0_block0\.blocks\."}


def describe_bare_weights(contents: dict, told: Told, source: Path) -> Checkpoint:
    """A checkpoint for bare weights {"network": weights} and, where the file has averaged ones too,
    {"ema": weights}. Raises UserError where it cannot be described.
    """
    weights = contents["network"]
    if told.conditional and not told.num_classes:
        raise UserError(f"{source} has no metadata: --conditional needs --num_classes")
    classes = None if told.conditional is False else told.num_classes
    network = guess_network(
        told.network or "unet",
        weights,
        {
            "num_classes": classes,
            "act": told.act or "silu",
            "head_channels": told.head_channels or 32,
            "norm_groups": told.norm_groups or 32,
        },
        source,
    )
    if network["in_channels"] not in (CHANNELS[mode] for mode in USUAL_MODES):
        raise UserError(
            f"the weights in {source} cannot be used: images have 1 (grey) or 3 (RGB) channels, "
            f"not {network['in_channels']}"
        )
    mode = mode_of(network["in_channels"])
    config = {
        "network": network,
        "diffusion": {
            "noise_steps": 1000,
            "noise_schedule": told.noise_schedule or "linear",
            "prediction": told.prediction or "eps",
        },
        "codec": {"name": "pixels"},
        "data": {
            "image_size": UNKNOWN_SIZE,
            "mode": mode,
            "class_names": [str(i) for i in range(classes or 0)],
        },
        "sampling": {"sampler": "ddpm", "guidance": True},
        "training": {},
    }
    averaged = contents.get("ema", weights)
    return Checkpoint(config=config, network=weights, ema=averaged, source=source)


def guess_network(name: str, weights: dict, options: dict, source: Path | str = "the file") -> dict:
    """The config of a network from the shapes of its bare weights; `options` are what shapes cannot
    tell. Raises UserError where they are not those of such a network.
    """
    try:
        channels, in_channels = weights["conv_in.weight"].shape[:2]
        levels = _count(r"up\.level(\d+)_block0", weights)
        last = _LAST_LAYER[name]
        widths = [weights[f"down.level{i}_block0.{last}.weight"].shape[0] for i in range(levels)]
        found = {
            "name": name,
            "in_channels": in_channels,
            "channels": channels,
            "channel_mult": [width // channels for width in widths],
            "blocks_per_level": _count(_BLOCKS[name] + r"(\d+)", weights),
            "time_embedding": _time_embedding(weights),
            "augmentation": weights[AUGMENTATION].shape[1] if AUGMENTATION in weights else 0,
            "attention_levels": sorted(_numbers(r"down\.level(\d+)_block0\.attention\.", weights)),
        }
    except KeyError as error:
        raise UserError(
            f"the weights in {source} are not those of a {name} of this project: {error} is missing"
        ) from None
    except (ArithmeticError, IndexError, TypeError, ValueError):  # too few dimensions, no channels
        raise UserError(
            f"the weights in {source} are not those of a {name} of this project: the names are, "
            "but not the shapes"
        ) from None
    return {**found, **options}


def _time_embedding(weights: dict) -> str:
    """Whether the blocks' projections of the condition give a number for each channel, or two."""
    for name, weight in weights.items():
        block, _, layer = name.rpartition("emb.weight")
        if layer == "" and f"{block}norm2.weight" in weights:
            doubled = len(weight) == 2 * len(weights[f"{block}norm2.weight"])
            return "scale_shift" if doubled else "additive"
    return "additive"


def _count(pattern: str, weights: dict) -> int:
    return len(_numbers(pattern, weights))


def _numbers(pattern: str, weights: dict) -> set[int]:
    """The numbers that a pattern finds in the names of the weights."""
    matches = [re.match(pattern, name) for name in weights]
    return {int(match[1]) for match in matches if match}
