"""The bounds of a network's options. A checkpoint from elsewhere may hold anything, so each option
is checked before memory is asked for.
"""

import math
from collections.abc import Callable
from typing import Any

from model.modules.layers import ACTIVATIONS

# Option: the largest whole number allowed (the smallest is 1).
LARGEST = {
    "in_channels": 64,
    "out_channels": 64,
    "num_classes": 1_000_000,
    "channels": 2048,
    "blocks_per_level": 16,
    "head_channels": 2048,
    "norm_groups": 2048,
}
MAY_BE_NONE = ("out_channels", "num_classes", "head_channels")
LARGEST_FROM_0 = {"augmentation": 64, "numbers": 1000}
LARGEST_LEVELS = 8
LARGEST_MULT = 64

# The same of upscalers; not each has all of them.
LARGEST_OF_UPSCALER = {
    "in_channels": 64,
    "features": 2048,
    "blocks": 256,
    "layers": 64,
    "growth": 2048,
}
SMALLEST_SCALE, LARGEST_SCALE = 2, 4

# The same of autoencoders.
LARGEST_OF_AUTOENCODER = {
    "in_channels": 64,
    "latent_channels": 64,
    "layers_per_block": 16,
    "norm_num_groups": 2048,
}
SWITCHES_OF_AUTOENCODER = ("mid_block_add_attention", "use_quant_conv", "use_post_quant_conv")
LARGEST_WIDTH = 2048


def _is_number(value: object) -> bool:
    # `type`, not isinstance: True is an int too
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


def _is_switch(value: object) -> bool:
    return type(value) is bool


# Option of a U-Net: whether a value is one, and what it has to be.
VALUES_OF_UNET: dict[str, tuple[Callable[[Any], bool], str]] = {
    "dropout": (lambda value: _is_number(value) and 0 <= value < 1, "a probability below 1"),
    "norm_eps": (lambda value: _is_number(value) and value > 0, "a number above 0"),
    "freq_shift": (_is_number, "a number"),
    "mid_attention": (_is_switch, "True or False"),
    "asymmetric_padding": (_is_switch, "True or False"),
    "cos_first": (_is_switch, "True or False"),
    "act": (lambda value: value in list(ACTIVATIONS), f"one of {', '.join(ACTIVATIONS)}"),
}


def check_unet_config(config: dict) -> None:
    """Raise ValueError, naming the option, where a value of a U-Net's config is out of bounds."""
    for key, largest in LARGEST.items():
        if config[key] is not None or key not in MAY_BE_NONE:
            check_whole(config, key, largest)
    _check_levels(config["channel_mult"], config["attention_levels"])
    for key, largest in LARGEST_FROM_0.items():
        if not _is_whole(config[key], 0, largest):
            raise ValueError(
                f"network option {key} is a whole number from 0 to {largest}, not {config[key]!r}"
            )
    for key, (is_right, expected) in VALUES_OF_UNET.items():
        if not is_right(config[key]):
            raise ValueError(f"network option {key} is {expected}, not {config[key]!r}")
    if config["channels"] % 2:
        raise ValueError(
            f"network option channels must be even (sine and cosine halves), "
            f"not {config['channels']}"
        )
    if 2 * config["freq_shift"] == config["channels"]:
        raise ValueError("network option freq_shift must not be half of channels: it divides by 0")


def check_upscaler_config(config: dict) -> None:
    """Raise ValueError, naming the option, where a value of an upscaler's config is out of
    bounds.
    """
    if not _is_whole(config["scale"], SMALLEST_SCALE, LARGEST_SCALE):
        raise ValueError(f"network option scale is 2, 3 or 4, not {config['scale']!r}")
    for key, largest in LARGEST_OF_UPSCALER.items():
        if key in config:
            check_whole(config, key, largest)


def check_autoencoder_config(config: dict) -> None:
    """Raise ValueError, naming the option, where a value of an autoencoder's config is out of
    bounds.
    """
    for key, largest in LARGEST_OF_AUTOENCODER.items():
        check_whole(config, key, largest)
    for key in SWITCHES_OF_AUTOENCODER:
        if type(config[key]) is not bool:
            raise ValueError(f"network option {key} is True or False, not {config[key]!r}")
    if config["act_fn"] not in list(ACTIVATIONS):  # a list: what a file holds may have no hash
        known = ", ".join(ACTIVATIONS)
        raise ValueError(f"network option act_fn is one of {known}, not {config['act_fn']!r}")
    widths = config["block_out_channels"]
    is_list = isinstance(widths, list | tuple) and 1 <= len(widths) <= LARGEST_LEVELS
    if not is_list or not all(_is_whole(width, 1, LARGEST_WIDTH) for width in widths):
        raise ValueError(
            f"network option block_out_channels is 1 to {LARGEST_LEVELS} whole numbers "
            f"from 1 to {LARGEST_WIDTH}, not {widths!r}"
        )
    groups = config["norm_num_groups"]
    if any(width % groups for width in widths):
        raise ValueError(
            f"network option norm_num_groups must divide every width of block_out_channels "
            f"{list(widths)}, not {groups}; {math.gcd(*widths)} would work"
        )


def check_whole(config: dict, key: str, largest: int) -> None:
    """Raise ValueError, naming the option, unless its value is a whole number from 1 to
    `largest`.
    """
    if not _is_whole(config[key], 1, largest):
        raise ValueError(
            f"network option {key} is a whole number from 1 to {largest}, not {config[key]!r}"
        )


def _check_levels(channel_mult: list[int], attention_levels: list[int]) -> None:
    levels = len(channel_mult)
    whole = all(_is_whole(mult, 1, LARGEST_MULT) for mult in channel_mult)
    if not whole or not 1 <= levels <= LARGEST_LEVELS:
        raise ValueError(
            f"network option channel_mult is 1 to {LARGEST_LEVELS} whole numbers "
            f"from 1 to {LARGEST_MULT}, not {channel_mult!r}"
        )
    for level in attention_levels:
        if not _is_whole(level, -levels, levels - 1):
            raise ValueError(
                f"attention level {level!r} does not exist: "
                f"the network has levels 0 to {levels - 1}"
            )


def _is_whole(value: object, low: int, high: int) -> bool:
    # `type`, not isinstance: True is an int too
    return type(value) is int and low <= value <= high


def check_image_size(height: int, width: int, factor: int) -> None:
    """Raise ValueError where a height or width is not a multiple of a network's total stride."""
    if height % factor == 0 and width % factor == 0:
        return
    smaller = [max(side // factor, 1) * factor for side in (height, width)]
    larger = [math.ceil(side / factor) * factor for side in (height, width)]
    raise ValueError(
        f"image size {height},{width}: both must be multiples of {factor}; "
        f"{smaller[0]},{smaller[1]} and {larger[0]},{larger[1]} would work"
    )
