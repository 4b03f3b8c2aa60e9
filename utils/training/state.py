"""All that changes during training, and goes into a checkpoint."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model.ema import EMA, PowerAverages
from utils.runs.checkpoint import Checkpoint
from utils.runs.weights import load_weights
from utils.training.optimizer import restore_optimizer

# Each takes back what an object's state_dict gave, and returns a remark on what it left out, or "".


def _restore_network(network: nn.Module, saved: dict, source: Path | str) -> str:
    load_weights(network, saved, source)
    return ""


def _restore_ema(ema: EMA, saved: dict, source: Path | str) -> str:
    load_weights(ema.network, saved, source)
    return ""


def _restore_optimizer(optimizer: torch.optim.Optimizer, saved: dict, source: Path | str) -> str:
    if restore_optimizer(optimizer, saved):
        return ""
    return "the checkpoint is from another optimizer, so this one starts afresh"


def _restore_scaler(scaler: torch.amp.GradScaler, saved: dict, source: Path | str) -> str:
    if scaler.is_enabled() and saved:  # a run without it has saved nothing
        scaler.load_state_dict(saved)
    return ""


# The objects that a checkpoint holds. Saving and restoring walk this list.
OBJECTS: dict[str, Callable[[Any, dict, Path | str], str]] = {
    "network": _restore_network,
    "ema": _restore_ema,
    "optimizer": _restore_optimizer,
    "scaler": _restore_scaler,
}


@dataclass
class TrainState:
    """The state of a run, at the end of optimizer step `step`."""

    network: nn.Module
    ema: EMA
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    seed: int
    kind: str  # of the checkpoint
    config: dict  # of the checkpoint: what rebuilds and uses the network
    args: dict  # a record of the command line
    versions: dict  # what exact repetition depends on beside the config
    codec: dict | None = None  # of a diffusion on latents: the autoencoder's weights
    averages: PowerAverages | None = None  # for an average to be chosen afterwards
    guide: dict | None = None  # the averaged weights of an early step, in bf16, to guide sampling
    guide_step: int = 0  # after so many steps they are taken; 0: never
    step: int = 0
    is_whole: bool = True  # False within an update, when the objects are of different steps

    def checkpoint(self, epoch: int) -> Checkpoint:
        """What is saved after `epoch` whole epochs."""
        objects = {name: getattr(self, name).state_dict() for name in OBJECTS}
        return Checkpoint(
            config=self.config,
            kind=self.kind,
            state={"epoch": epoch, "step": self.step, "seed": self.seed},
            args=self.args,
            versions=self.versions,
            codec=self.codec,
            averages=None if self.averages is None else self.averages.state_dict(),
            guide=self.guide,
            **objects,
        )

    def record(self) -> dict[str, Any]:
        """What config.json holds."""
        return {"kind": self.kind, "args": self.args, "config": self.config}

    def update_averages(self) -> None:
        """Move all averages towards the network after the step that was just made."""
        self.ema.update(self.network, self.step)
        if self.averages is not None:
            self.averages.update(self.network, self.step)
        if self.step + 1 == self.guide_step:
            self.guide = halved(self.ema.state_dict())

    def restore(self, checkpoint: Checkpoint) -> list[str]:
        """Take back what was saved; returns remarks on what was left out.

        Raises UserError or ValueError for what does not fit.
        """
        checkpoint.check_resumable()
        remarks = [
            restore(getattr(self, name), getattr(checkpoint, name), checkpoint.source)
            for name, restore in OBJECTS.items()
        ]
        if self.averages is not None:
            remarks.append(self._restore_averages(checkpoint))
        self.guide = checkpoint.guide
        self.step = checkpoint.state["step"]
        return [remark for remark in remarks if remark]

    def _restore_averages(self, checkpoint: Checkpoint) -> str:
        assert self.averages is not None
        if checkpoint.averages is None:
            saved = self.ema.network.state_dict()
            for average in self.averages.averages:
                average.network.load_state_dict(saved)
            return "the checkpoint has no averages for --ema_snapshots: they start from its EMA"
        for length, average in zip(self.averages.LENGTHS, self.averages.averages, strict=True):
            load_weights(average.network, checkpoint.averages[str(length)], checkpoint.source)
        return ""

    def snapshot(self) -> dict[str, Any]:
        """A copy of all that a step changes, for `put_back`; on the host, since a GPU may have no
        room for it.
        """
        objects = {name: copied_to_host(getattr(self, name).state_dict()) for name in OBJECTS}
        averages = None
        if self.averages is not None:
            averages = copied_to_host(self.averages.state_dict())
        return {**objects, "averages": averages, "guide": self.guide, "step": self.step}

    def put_back(self, snapshot: dict[str, Any]) -> None:
        """Undo the steps since a snapshot, to the bit."""
        for name in OBJECTS:
            holder = self.ema.network if name == "ema" else getattr(self, name)
            holder.load_state_dict(snapshot[name])
        if self.averages is not None:
            self.averages.load_state_dict(snapshot["averages"])
        self.guide = snapshot["guide"]
        self.step = snapshot["step"]

    def weights_are_finite(self) -> bool:
        """Whether all weights and buffers, raw and averaged, are finite. Waits for the device."""
        networks = (self.network, self.ema.network)
        weights = [value for network in networks for value in network.state_dict().values()]
        finite = torch.stack([weight.isfinite().all() for weight in weights])
        return bool(finite.all())


def copied_to_host(value: Any) -> Any:
    """A copy of a state_dict whose tensors lie on the host."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: copied_to_host(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(copied_to_host(each) for each in value)
    return value


def halved(weights: dict) -> dict:
    """A copy of weights in half as many bytes. Nothing waits for the device."""
    return {
        name: value.to(torch.bfloat16) if value.is_floating_point() else value.clone()
        for name, value in weights.items()
    }
