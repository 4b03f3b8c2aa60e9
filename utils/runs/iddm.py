"""Checkpoints of IDDM, the article's own program: what they say of themselves, and what to train
here instead, since its networks are built otherwise.
"""

from pathlib import Path
from typing import Any

from utils.options import types
from utils.runs.foreign import shown

MARKS = ("start_epoch", "model", "image_size", "network", "act")  # which all its files have
# An entry that only one kind of its files has -> what is trained here instead.
SCRIPTS = {
    "num_classes": "train.py",
    "psnr": "train_upscaler.py",
    "latent_channel": "train_autoencoder.py",
}
LARGEST_SIDE = 10_000


def is_iddm(contents: dict) -> bool:
    """Whether a checkpoint has the entries that IDDM 1.1 and later write."""
    return all(mark in contents for mark in MARKS)


def describe_iddm(contents: dict, path: Path) -> str:
    """What the file says, and the command for a network of ours like it."""
    script = next((SCRIPTS[key] for key in SCRIPTS if key in contents), "train.py")
    facts = ", ".join(_facts(contents)) or "no details"
    command = " ".join([f"python tools/{script}", *_options(contents, script)])
    return (
        f"{path} is a checkpoint of IDDM ({facts}); its network is built otherwise and cannot be "
        f"loaded here. Train one of ours on the same images: {command}"
    )


def _facts(contents: dict) -> list[str]:
    facts = []
    for name in ("network", "sample", "act"):
        value = contents.get(name)
        if isinstance(value, str):
            facts.append(f"{name} {shown(value, 20)}")
    side = _side(contents)
    if side is not None:
        facts.append(f"image_size {side}")
    classes = contents.get("num_classes")
    if contents.get("conditional") is True and _is_whole(classes):
        facts.append(f"{classes} classes")
    epoch = contents.get("start_epoch")
    if _is_whole(epoch):
        facts.append(f"epoch {epoch}")
    return facts


def _options(contents: dict, script: str) -> list[str]:
    """Those of our script that say the same, as far as it has them."""
    options = []
    side = _side(contents)
    if side is not None:
        options.append(f"--image_size {side}")
    if script != "train.py":
        return options
    choices = {"network": types.NETWORKS, "act": types.ACTIVATIONS, "sample": types.SAMPLERS}
    for name, choice in choices.items():
        if contents.get(name) in choice.values:
            options.append(f"--{name} {contents[name]}")
    if isinstance(contents.get("conditional"), bool):
        options.append(f"--conditional {contents['conditional']}")
    return options


def _side(contents: dict) -> str | None:
    """As --image_size takes it: a side, or height and width."""
    size = contents["image_size"]
    sides = list(size) if isinstance(size, list | tuple) else [size]
    if len(sides) > 2 or not all(_is_whole(side) and 0 < side <= LARGEST_SIDE for side in sides):
        return None
    return ",".join(map(str, sides))


def _is_whole(value: Any) -> bool:
    return type(value) is int
