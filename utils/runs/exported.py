"""A checkpoint as export.py writes it into a safetensors file, and back.

The file holds the weights that images are made with under our names, those of the autoencoder and
of the guide with a prefix; its header, the kind of checkpoint and its config, as JSON.
"""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from utils.runs.checkpoint import Checkpoint

CONFIG = "config"  # of the header
KIND = "kind"  # within it
PARTS = ("codec", "guide")  # of a checkpoint, beside its network


def to_exported(
    checkpoint: "Checkpoint", use_ema: bool = True
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors, and the texts of the header."""
    weights = dict(checkpoint.weights(use_ema))
    for part in PARTS:
        for name, weight in (getattr(checkpoint, part) or {}).items():
            weights[f"{part}.{name}"] = weight
    config = json.dumps({KIND: checkpoint.kind, **checkpoint.config}, default=list)
    return weights, {CONFIG: config, "format": "pt"}


def from_exported(
    weights: Mapping[str, Tensor], metadata: Mapping[str, str], format_version: int
) -> dict | None:
    """What a checkpoint file holds, of what such a file holds; None for any other file."""
    try:
        config = json.loads(metadata[CONFIG])
    except (KeyError, ValueError, RecursionError):
        return None
    if not isinstance(config, dict) or KIND not in config or "network" not in config:
        return None
    kind = config.pop(KIND)
    contents: dict = {"format_version": format_version, KIND: kind, "config": config}
    parts: dict[str, dict[str, Tensor]] = {part: {} for part in ("ema", *PARTS)}
    for name, weight in weights.items():
        first, _, rest = name.partition(".")
        if first in PARTS:
            parts[first][rest] = weight
        else:
            parts["ema"][name] = weight
    return contents | {part: found for part, found in parts.items() if found}
