"""The recipe of a diffusion: what train.py's options are where nobody sets them.

A preset is a network with its optimisation. `auto` takes the largest one that gets enough steps in
the time there is: a small network that is trained long enough draws better than a large one that is
not. Everything here is plain values; tools/train.py asks, and measures.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

# Half a level's side may fall so far below `lowest_side`: 7 pixels will do where 8 are asked for.
SMALLEST_SHARE = 0.75

# Images whose lowest level is more than so many times as large as it is meant are worth a remark.
DEEP_ENOUGH = 2

# A run with a smaller share of a preset's steps is worth a remark.
SHORT_SHARE = 0.5

# Photographs are learned best from their coarse shapes on; of drawings on a plain ground, where
# many pixels are equal to their neighbours, details count.
LOSS_WEIGHT = "min_snr"
LOSS_WEIGHT_OF_DRAWINGS = "lognormal"
FLAT_SHARE_OF_DRAWINGS = 0.2  # CIFAR-10's photographs have 0.03, garments 0.46, emoji 0.5
EMA_LENGTH = 0.1  # share of the run
ACTIVATION = "silu"

# A network sees each image of a small set many times, and learns it by heart.
FEW_IMAGES = 1_000
MANY_IMAGES = 1_000_000
AUGMENTATION = 0.12  # Karras et al. 2206.00364, table 7

# Of the run: the weights from then guide sampling afterwards. With few images they lead to copies.
GUIDE_SHARE = 0.2

# The options of train.py that may be left open: of the network, and of its training.
NETWORK_OPTIONS = (
    "channels",
    "channel_mult",
    "blocks_per_level",
    "attention_levels",
    "head_channels",
    "norm_groups",
    "time_embedding",
    "act",
)
OPEN_OPTIONS = (
    *NETWORK_OPTIONS,
    "batch_size",
    "grad_accum",
    "optim",
    "lr",
    "dropout",
    "augment",
    "loss_weight",
    "time_steps",
    "ema_length",
    "guide_share",
)

# In what published networks differ beside: there is no option for it, but a run that begins with
# such weights computes as they do.
NETWORK_DETAILS = (
    "mid_attention",
    "norm_eps",
    "asymmetric_padding",
    "freq_shift",
    "cos_first",
)

# What runs of earlier versions did where their checkpoints do not say.
EARLIER = {
    "loss_weight": "uniform",
    "time_steps": "uniform",
    "ema_length": EMA_LENGTH,
    "augment": 0.0,
    "guide_share": 0.0,
    "balance": False,
    "joint_masks": False,
    "gradient_compression": "none",
}


@dataclass(frozen=True)
class Preset:
    """A network, and how it is trained. The levels follow the size of the image."""

    about: str
    # The network
    channels: int
    channel_mult: tuple[int, ...]  # of as many levels as there are; beyond, the last one
    blocks_per_level: int
    lowest_side: int  # pixels: levels are added while the next one has at least as many, about
    attention_sides: tuple[int, ...]  # pixels: the levels that come nearest have attention
    head_channels: int | None
    norm_groups: int
    time_embedding: str
    # Optimisation
    batch_size: int
    lr: float
    optim: str
    dropout: float
    # For `auto`
    fewest_steps: int  # with fewer, the preset before draws better
    # For people, and a test
    parameters: float  # in millions, RGB without classes at `reference_side`
    reference_side: int


PRESETS: dict[str, Preset] = {
    "tiny": Preset(
        about="for minutes on a CPU: the demo's network",
        channels=32,
        channel_mult=(1, 2, 3, 4),
        blocks_per_level=1,
        lowest_side=8,
        attention_sides=(8,),
        head_channels=32,
        norm_groups=2,
        time_embedding="scale_shift",
        batch_size=32,
        lr=0.0015,
        optim="muon",
        dropout=0.0,
        fewest_steps=0,
        parameters=1.9,
        reference_side=32,
    ),
    "small": Preset(
        about="for half an hour and more on a CPU",
        channels=64,
        channel_mult=(1, 2, 3, 4),
        blocks_per_level=1,
        lowest_side=8,
        attention_sides=(8,),
        head_channels=32,
        norm_groups=4,
        time_embedding="scale_shift",
        batch_size=32,
        lr=0.001,
        optim="muon",
        dropout=0.0,
        fewest_steps=4_500,
        parameters=7.6,
        reference_side=32,
    ),
    "medium": Preset(
        about="for hours on a CPU, minutes on a GPU",
        channels=96,
        channel_mult=(1, 2, 3, 4),
        blocks_per_level=2,
        lowest_side=8,
        attention_sides=(8,),
        head_channels=32,
        norm_groups=6,
        time_embedding="scale_shift",
        batch_size=64,
        lr=0.0008,
        optim="muon",
        dropout=0.1,
        fewest_steps=6_000,
        parameters=24.7,
        reference_side=32,
    ),
    "base": Preset(
        about="the network and rate of DDPM on CIFAR-10 (google/ddpm-cifar10-32)",
        channels=128,
        channel_mult=(1, 2, 2, 2),
        blocks_per_level=2,
        lowest_side=4,
        attention_sides=(16,),
        head_channels=None,
        norm_groups=32,
        time_embedding="additive",
        batch_size=128,
        lr=0.0002,
        optim="adamw",
        dropout=0.1,
        fewest_steps=50_000,
        parameters=35.7,
        reference_side=32,
    ),
    "large": Preset(
        about="the network and rate of DDPM on 256x256 (google/ddpm-celebahq-256)",
        channels=128,
        channel_mult=(1, 1, 2, 2, 4, 4),
        blocks_per_level=2,
        lowest_side=8,
        attention_sides=(16,),
        head_channels=None,
        norm_groups=32,
        time_embedding="additive",
        batch_size=64,
        lr=2e-05,
        optim="adamw",
        dropout=0.0,
        fewest_steps=200_000,
        parameters=113.7,
        reference_side=256,
    ),
    "adm": Preset(
        about="the widths of ADM on 64x64 (guided-diffusion), without its residual resampling",
        channels=192,
        channel_mult=(1, 2, 3, 4),
        blocks_per_level=3,
        lowest_side=8,
        attention_sides=(32, 16, 8),
        head_channels=64,
        norm_groups=32,
        time_embedding="scale_shift",
        batch_size=64,
        lr=0.0001,
        optim="adamw",
        dropout=0.1,
        fewest_steps=200_000,
        parameters=276.4,
        reference_side=64,
    ),
}


# --- A preset's options ---


def levels_of(preset: Preset, size: tuple[int, int]) -> int:
    """How many levels the network has for images of that height and width."""
    sides, levels = list(size), 1
    while all(side % 2 == 0 for side in sides):
        sides = [side // 2 for side in sides]
        if min(sides) < SMALLEST_SHARE * preset.lowest_side:
            break
        levels += 1
    return levels


def levels_wanted(preset: Preset, size: tuple[int, int]) -> int:
    """How many it would have if every side could be halved."""
    halvings = math.log2(min(size) / (SMALLEST_SHARE * preset.lowest_side))
    return 1 + max(0, math.floor(halvings))


def network_options(
    preset: Preset,
    size: tuple[int, int],
    levels: int | None = None,
    channels: int | None = None,
) -> dict[str, Any]:
    """The options of the network, by their names in train.py; with so many levels and channels
    where these are given.
    """
    levels = levels or levels_of(preset, size)
    channels = channels or preset.channels
    heads = preset.head_channels
    last = preset.channel_mult[-1]
    more = (last,) * (levels - len(preset.channel_mult))
    sides = [min(size) / 2**level for level in range(levels)]
    attends = {_nearest(sides, side) for side in preset.attention_sides}
    return {
        "channels": channels,
        "channel_mult": (*preset.channel_mult[:levels], *more),
        "blocks_per_level": preset.blocks_per_level,
        "attention_levels": tuple(sorted(attends)),
        "head_channels": None if heads is None else math.gcd(heads, channels),
        "norm_groups": preset.norm_groups,
        "time_embedding": preset.time_embedding,
        "act": ACTIVATION,
    }


def _nearest(sides: list[float], wanted: int) -> int:
    """The level whose side is nearest to the wanted one, as a ratio."""
    return min(range(len(sides)), key=lambda level: abs(math.log(sides[level] / wanted)))


def training_options(preset: Preset, images: int) -> dict[str, Any]:
    """The options of optimisation, but for those that depend on the length of the run."""
    return {
        "batch_size": preset.batch_size,
        "grad_accum": 1,
        "optim": preset.optim,
        "lr": preset.lr,
        "dropout": preset.dropout,
        "augment": usual_augmentation(images),
        "loss_weight": LOSS_WEIGHT,
        "ema_length": EMA_LENGTH,
        "guide_share": GUIDE_SHARE if images >= FEW_IMAGES else 0.0,
    }


def usual_augmentation(images: int) -> float:
    """The probability of each change of the augmentation, for a set of so many images."""
    return AUGMENTATION if images < FEW_IMAGES else 0.0


def usual_loss_weight(flat_share: float) -> str:
    """The weight of the loss for images of which so many pixels are equal to their neighbours."""
    return LOSS_WEIGHT_OF_DRAWINGS if flat_share >= FLAT_SHARE_OF_DRAWINGS else LOSS_WEIGHT


def usual_time_steps(loss_weight: str) -> str:
    """How time steps are drawn: the weights of `lognormal` are those of time steps drawn so."""
    return "weighted" if loss_weight == LOSS_WEIGHT_OF_DRAWINGS else "uniform"


def options_of(
    name: str,
    size: tuple[int, int],
    given: Mapping[str, Any] | None = None,
    images: int = MANY_IMAGES,
    known: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """All open options, for so many images (or latents) of that height and width: as they were
    given, and where they were not (None), as is `known` of the weights that the run begins with,
    and where that is not either, as the preset decides.
    """
    given = given or dict.fromkeys(OPEN_OPTIONS)
    levels = len(given["channel_mult"]) if given["channel_mult"] else None
    preset = PRESETS[name]
    usual = {
        **network_options(preset, size, levels, given["channels"]),
        **training_options(preset, images),
        **(known or {}),
    }
    usual["time_steps"] = usual_time_steps(given["loss_weight"] or usual["loss_weight"])
    return settled(given, usual)


def has_network_of(name: str, size: tuple[int, int], values: Mapping[str, Any]) -> bool:
    """Whether options describe a network like that preset's, for images of that height and width.
    Where attention is, is not looked at, as the same levels have several names.
    """
    usual = network_options(PRESETS[name], size)
    names = [each for each in NETWORK_OPTIONS if each != "attention_levels"]
    return all(plain(values[each]) == plain(usual[each]) for each in names)


def plain(value: Any) -> Any:
    """As checkpoints have it."""
    return list(value) if isinstance(value, tuple) else value


def options_before(config: dict, processes: int, grad_accum: int) -> dict[str, Any]:
    """The same of the run that a checkpoint is of; its global batch is split among so many
    processes, and there into so many forward passes.
    """
    training, network = config["training"], config["network"]
    known = {**EARLIER, **network, **training}
    if known.get("ema_decay") is not None:  # it counts, where earlier versions kept both
        known["ema_length"] = None
    known["grad_accum"] = grad_accum
    known["batch_size"] = max(1, training["global_batch"] // (processes * grad_accum))
    return {name: known[name] for name in OPEN_OPTIONS}


def settled(given: Mapping[str, Any], usual: Mapping[str, Any]) -> dict[str, Any]:
    """Each option as it was given, and where it was not (None), as usual."""
    return {name: usual[name] if given[name] is None else given[name] for name in usual}


# --- Remarks ---


def short_run_remark(name: str, steps: int, why_not_smaller: str = "") -> str:
    """What to say where a run of so many steps is too short for a preset; "" where it is not.
    `why_not_smaller`: why the smaller ones do not go with the given options.
    """
    fewest = PRESETS[name].fewest_steps
    if steps >= SHORT_SHARE * fewest:
        return ""
    text = (
        f"the preset {name}, rate and all, is made for {fewest:,} steps and more, and this run has "
        f"{steps:,}"
    )
    if why_not_smaller:
        return f"{text}; the smaller ones do not go with what is given: {why_not_smaller}"
    better = [each for each, preset in PRESETS.items() if preset.fewest_steps <= steps][-1]
    return f"{text}: --preset {better} is likely to draw better"


def shallow_remark(name: str, size: tuple[int, int], factor: int = 1) -> str:
    """What to say where images of that size can be halved so few times that the network lacks
    levels; "" where they need not. Sizes are named times `factor`: in pixels, not in latents.
    """
    preset = PRESETS[name]
    levels, wanted = levels_of(preset, size), levels_wanted(preset, size)
    if min(size) / 2 ** (levels - 1) <= DEEP_ENOUGH * preset.lowest_side:
        return ""
    multiple = 2 ** (wanted - 1)
    sizes = [
        [factor * multiple * max(1, rounded(side / multiple)) for side in size]
        for rounded in (math.floor, math.ceil)
    ]
    this, below, above = (
        f"{height},{width}" for height, width in ([factor * side for side in size], *sizes)
    )
    plural = "s" if levels > 1 else ""
    return (
        f"the sides of {this} have so few factors of 2 that the network has {levels} level{plural} "
        f"where {wanted} would suit: it sees less of the image at once, and takes longer, than "
        f"with --image_size {below} or {above}"
    )


# --- Which preset ---


def nearest_preset(channels: int, size: tuple[int, int]) -> str:
    """The preset whose network is as wide, or the next narrower one; of two that are, the one that
    is for images nearer to that height and width.
    """
    narrower = [preset.channels for preset in PRESETS.values() if preset.channels <= channels]
    width = max(narrower, default=min(preset.channels for preset in PRESETS.values()))
    as_wide = [name for name, preset in PRESETS.items() if preset.channels == width]
    return min(as_wide, key=lambda name: abs(math.log(min(size) / PRESETS[name].reference_side)))


def largest_affordable(presets: Iterable[str], steps_of: Callable[[str], float]) -> str:
    """The largest of these presets, the smallest first, that gets enough steps; `steps_of` says how
    many it would get.
    """
    names = iter(presets)
    chosen = next(names)
    for name in names:
        if steps_of(name) < PRESETS[name].fewest_steps:
            break
        chosen = name
    return chosen


def neighbours(name: str) -> list[str]:
    """The preset before, itself and the one behind, as far as there are such."""
    names = list(PRESETS)
    place = names.index(name)
    return names[max(0, place - 1) : place + 2]
