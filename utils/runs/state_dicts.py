"""Weights in the files of other programs: where in the dict they lie, and under which prefixes."""

from pathlib import Path
from typing import Any

import torch

from utils.errors import UserError, name_list
from utils.runs.foreign import network_of, program_of, shown
from utils.runs.iddm import describe_iddm, is_iddm

# Where programs put their weights in a dict, the commonest first.
RAW_KEYS = ("network", "state_dict", "model_state_dict", "model", "net", "weights", "params")
AVERAGED_KEYS = ("ema", "ema_state_dict", "model_ema", "ema_model", "params_ema", "ema_params")

# What wrappers put before every name: DistributedDataParallel, torch.compile, AveragedModel.
WRAPPERS = ("module.", "_orig_mod.")
# What a program's own class that holds the network puts before its names, averaged weights first.
OWNERS = ("ema_model.", "online_model.", "model.", "network.", "net.", "unet.", "denoise_fn.")
# Beside the weights in AveragedModel and ema-pytorch; they are no part of a network.
COUNTERS = ("n_averaged", "initted", "step")

OUR_FIRST_LAYER = "conv_in.weight"


def find_weights(contents: dict, path: Path) -> dict:
    """{"network": weights} and, where there are averaged ones too, "ema", of a file that is no
    checkpoint of this project. Where only one kind is there, it is the network.

    UserError where there are none, or where they are those of another program's network.
    """
    if is_state_dict(contents):
        found = {"network": contents}
    else:
        found = {}
        for name, keys in (("network", RAW_KEYS), ("ema", AVERAGED_KEYS)):
            weights = first_state_dict(contents, keys)
            if weights is not None:
                found[name] = weights
        if "network" not in found and "ema" in found:
            found = {"network": found["ema"]}
    if not found:
        raise UserError(describe_other_dict(contents, path))
    stripped = {name: strip_prefixes(weights) for name, weights in found.items()}
    if is_iddm(contents) and OUR_FIRST_LAYER not in stripped["network"]:
        raise UserError(describe_iddm(contents, path))
    for weights in found.values():
        program = program_of(weights)
        if program is not None:
            raise UserError(f"{path} is a checkpoint of {network_of(program)}")
    return stripped


def is_state_dict(value: Any) -> bool:
    """Whether this is a dict of named tensors, and of nothing else."""
    if not isinstance(value, dict) or not value:
        return False
    return all(isinstance(key, str) for key in value) and all(
        isinstance(item, torch.Tensor) for item in value.values()
    )


def first_state_dict(contents: dict, keys: tuple[str, ...]) -> dict | None:
    """The first of these entries that holds weights, itself or under "state_dict"."""
    for key in keys:
        value = contents.get(key)
        if is_state_dict(value):
            return value
        if isinstance(value, dict) and is_state_dict(value.get("state_dict")):
            return value["state_dict"]
    return None


def strip_prefixes(weights: dict) -> dict:
    """The weights under the names that the network itself gives them."""
    weights = dict(weights)
    while True:
        weights = {strip_wrappers(key): value for key, value in weights.items()}
        owned = owned_weights(weights)
        if owned is None:
            break
        weights = owned
    if OUR_FIRST_LAYER in weights:
        for counter in COUNTERS:
            weights.pop(counter, None)
    return weights


def strip_wrappers(key: str) -> str:
    """The name without any `module.` and `_orig_mod.` at its beginning."""
    for prefix in WRAPPERS:
        if key.startswith(prefix):
            return strip_wrappers(key.removeprefix(prefix))
    return key


def owned_weights(weights: dict) -> dict | None:
    """The weights of the network inside another module, under their own names; None where there is
    no such module.

    A module is taken for the owner where all names begin with its prefix, or where one of our
    networks lies under it: then what lies beside it (tables of the diffusion, a second copy of the
    network) is left out.
    """
    for prefix in OWNERS:
        inside = {
            key.removeprefix(prefix): value
            for key, value in weights.items()
            if key.startswith(prefix)
        }
        names = {strip_wrappers(key) for key in inside}
        if inside and (len(inside) == len(weights) or OUR_FIRST_LAYER in names):
            return inside
    return None


def describe_other_dict(contents: dict, path: Path) -> str:
    """The sentence for a dict without weights that could be loaded."""
    keys = [shown(str(key)) for key in contents]
    held = name_list(keys, 5)
    if "pytorch-lightning_version" in contents:
        return f"{path} is a checkpoint of PyTorch Lightning that holds no weights under state_dict"
    return (
        f"{path} is neither a checkpoint of this project nor a bare state_dict: it holds {held}, "
        f"and weights are looked for under {', '.join(RAW_KEYS[:4])} and {AVERAGED_KEYS[0]}"
    )
