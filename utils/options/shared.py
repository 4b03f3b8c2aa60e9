"""Rows that several scripts have in common: one definition, each script with its own default.

train.py has its whole table in its file, since people edit it there; a test holds its types equal
to these.
"""

from typing import Any

from utils.errors import UserError
from utils.image_facts import FEWEST_FOR_KID
from utils.options import types as t
from utils.options.table import Option

_ROWS: dict[str, tuple[t.OptionType, str]] = {
    # What is read
    "--weight_path": (t.path, "checkpoint: a run's ckpt_*.pt or ema_last.pt, or bare weights"),
    "--use_ema": (t.switch, "use the averaged (EMA) weights; False: the raw ones"),
    # How images are made
    "--num_images": (t.positive, "number of images"),
    "--class_name": (
        t.text,
        "class name or number; -1: one image of each class; not set: all in turn",
    ),
    "--image_size": (t.image_size, "64, or height,width such as 64,96; not set: as in training"),
    "--seed": (t.seed, "random seed; image i has the seed --seed + i"),
    "--sample": (t.SAMPLERS, "sampler; not set: as the checkpoint says"),
    "--sample_steps": (
        t.positive,
        "sampling steps; not set: as the checkpoint says, or as the sampler usually takes",
    ),
    "--timestep_spacing": (
        t.TIMESTEP_SPACINGS,
        "which time steps the sampler visits; not set: as --sample_steps",
    ),
    "--eta": (t.probability, "ddim: 0 is deterministic, 1 adds as much noise as ddpm"),
    "--clip_sample": (t.switch, "keep estimates of the image within [-1, 1]"),
    "--cfg_scale": (
        t.not_negative,
        "guidance scale; 1: none; larger: clearer but less varied; not set: 1.5, or 1 where "
        "guidance was not trained or there is a guide",
    ),
    "--cfg_interval": (
        t.interval,
        "guide only where the noise is so many times the image, such as 0.3,5; not set: everywhere",
    ),
    "--guide_path": (
        t.path,
        "worse checkpoint to lead away from (autoguidance), such as an early one of the same run",
    ),
    "--guide_scale": (
        t.not_negative,
        "how far to lead away from --guide_path, or from the guide that the weights hold; 1: not "
        "at all; not set: as the checkpoint says, otherwise 1.5 where there is a guide and "
        "--cfg_scale is not set",
    ),
    "--guide_labels": (
        t.switch,
        "tell the guide the class too; False: images are led towards their class as well; not set: "
        "as the checkpoint says, otherwise True",
    ),
    "--batch_size": (t.positive, "images per network call"),
    # What is written
    "--result_path": (t.path, "folder that holds the results"),
    "--image_format": (t.IMAGE_FORMATS, "file format of images"),
    # The machine
    "--use_gpu": (t.minus_one_up, "GPU number; -1, or no GPU: the CPU"),
    "--amp --fp16": (
        t.switch_or_auto,
        "mixed precision (bf16 or fp16) where the hardware benefits; auto: where it has bf16",
    ),
    "--distributed": (t.switch, "run several processes"),
    "--world_size": (t.positive, "number of processes with --distributed"),
}


def shared(flag: str, default: Any, help: str | None = None) -> Option:
    """The common row of that flag, with a script's own default and, if need be, help."""
    kind, common_help = _ROWS[flag]
    return Option(flag, default, kind, help or common_help)


def shared_flags() -> dict[str, t.OptionType]:
    """The type of each common flag."""
    return {flag: kind for flag, (kind, _) in _ROWS.items()}


def check_enough_for_kid(option: str, count: int) -> None:
    """Raise UserError where an option asks for fewer images than a KID takes."""
    if count < FEWEST_FOR_KID:
        raise UserError(f"{option} {count} is too few for a KID: {FEWEST_FOR_KID} are the fewest")


def check_seeds(first: int, count: int) -> None:
    """Raise UserError if that many images need seeds beyond the largest one."""
    last = first + count - 1
    if last > t.seed.high:
        raise UserError(
            f"--seed {first} with {count} images needs seeds up to {last}; "
            f"{t.seed.high} is the largest"
        )
