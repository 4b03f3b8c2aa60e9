"""Options that were left open: as in the run that is resumed, or as usual."""

from typing import Any

import torch

from utils.devices import usual_amp
from utils.runs.checkpoint import Checkpoint
from utils.training.run_options import AUTO, RunOptions


def settled_values(
    options: RunOptions, resumed: Checkpoint | None, device: torch.device, usual_epochs: int
) -> dict[str, Any]:
    """The values of the open ones, by name; those that a recipe gives are not among them."""
    training = {} if resumed is None else resumed.config["training"]
    length = {} if resumed is None else resumed.config.get("length", {})
    values: dict[str, Any] = {"amp": _amp(options.amp, training.get("amp", AUTO), device)}
    is_in_epochs = options.minutes is None and length.get("minutes") is None
    if options.epochs is None and is_in_epochs:
        values["epochs"] = length.get("epochs") or usual_epochs
    if options.warmup_steps is None:
        values["warmup_steps"] = training.get("warmup_steps")
    if options.ema_snapshots is None:
        values["ema_snapshots"] = _snapshots_before(resumed)
    return values


def _amp(asked: bool | str, before: bool | str, device: torch.device) -> bool:
    if asked != AUTO:
        return bool(asked)
    return usual_amp(device) if before == AUTO else bool(before)


def _snapshots_before(resumed: Checkpoint | None) -> int:
    """Snapshots that the run which is resumed keeps of its further averages; 0: it has none."""
    if resumed is None or resumed.averages is None:
        return 0
    recorded = resumed.args.get("ema_snapshots")
    return recorded if isinstance(recorded, int) and recorded > 0 else 1
