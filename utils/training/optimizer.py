"""The optimizers, and how they take over a checkpoint's optimizer state."""

import torch
from torch import nn

from utils.ranks import Ranks
from utils.training.muon import FUSES_ADAMW, Muon

BETAS = (0.9, 0.99)  # beta2 = 0.99 suits short runs
MOMENTUM = 0.9

# What each optimizer remembers of a parameter.
STATE_NAMES: dict[type[torch.optim.Optimizer], set[str]] = {
    torch.optim.AdamW: {"step", "exp_avg", "exp_avg_sq"},
    torch.optim.SGD: {"momentum_buffer"},
    Muon: {"momentum_buffer", "step", "exp_avg", "exp_avg_sq"},
}


def build_optimizer(
    name: str, network: nn.Module, lr: float, weight_decay: float, ranks: Ranks | None = None
) -> torch.optim.Optimizer:
    """muon (with adamw for what is no matrix), adamw, adam (AdamW without weight decay is Adam) or
    sgd with momentum 0.9.
    """
    parameters = list(network.parameters())
    if name not in ("adam", "adamw", "muon", "sgd"):
        raise ValueError(f"optimizer {name!r} is unknown; known are adam, adamw, muon, sgd")
    if name == "muon":
        return Muon(network, lr, BETAS, weight_decay, ranks)
    if name == "sgd":
        return torch.optim.SGD(parameters, lr, momentum=MOMENTUM, weight_decay=weight_decay)
    device = parameters[0].device.type
    fused = True if device in FUSES_ADAMW else None
    return torch.optim.AdamW(
        parameters,
        lr,
        betas=BETAS,
        weight_decay=weight_decay if name == "adamw" else 0.0,
        fused=fused,
        capturable=device == "cuda",  # torch asks for it where a step is recorded
    )


def restore_optimizer(optimizer: torch.optim.Optimizer, saved: dict) -> bool:
    """Take over what the saved optimizer remembers; the settings stay those of this run,
    but for the learning rate, which each step sets.

    Returns False, and changes nothing, for the state of another kind of optimizer, which does not
    fit. Raises ValueError where the saved parameters are not those of the network.
    """
    remembered = {name for entry in saved["state"].values() for name in entry}
    was_muon = any("is_muon" in group for group in saved["param_groups"])
    if was_muon != isinstance(optimizer, Muon) or not remembered <= STATE_NAMES[type(optimizer)]:
        return False
    # Before loading: where torch puts the state depends on the settings (`fused`). The learning
    # rate is set at each step; as saved, a finished run stays as it was to the bit.
    groups = [
        {**own, "params": theirs["params"], "lr": theirs["lr"]}
        for own, theirs in zip(optimizer.param_groups, saved["param_groups"], strict=True)
    ]
    optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})
    return True
