"""How long a training step takes with a recipe that a run might have."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch

from model.codecs import PixelCodec
from model.condition import Condition, LabelCondition
from model.diffusion import GaussianDiffusion
from model.networks import checkpoint_activations
from utils.training.diffusion_task import DiffusionTask
from utils.training.new_state import new_state
from utils.training.run import TrainingRun
from utils.training.run_options import RunOptions
from utils.training.stepping import Stepping

OF_A_RUN = {field.name for field in fields(RunOptions)}


class BlankImages:
    """A training set to time steps with."""

    is_decoded = True

    def __init__(self, shape: tuple[int, ...]):
        self.image = torch.zeros(shape, dtype=torch.uint8)
        self.label = 0

    def __len__(self) -> int:
        return 1

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int, int]:
        return self.image, self.label, i

    def name(self, i: int) -> str:
        return "a blank image"


def seconds_of_recipe(
    run: TrainingRun,
    values: Mapping[str, Any],  # options by name
    network: dict[str, Any],  # its config
    size: tuple[int, int],  # of what the diffusion sees
    condition: Condition | None,
    checkpointed: Sequence[int],  # levels that keep no activations
) -> float:
    """Seconds of a step of the run with these options, on blank images. Nothing is kept of it. All
    processes of the run call it together.

    Raises what training raises where memory runs out.
    """
    known = {name: value for name, value in values.items() if name in OF_A_RUN}
    options = run.options.with_settled(**known)
    state = new_state(run.kind, {"network": network}, options, run.precision, run.ranks)
    checkpoint_activations(state.network, checkpointed)
    stand_in = None
    planes = network["in_channels"]
    if condition is not None:
        # As many channels as those of the run, of a label map that is cheap to encode
        stand_in = LabelCondition(range(condition.channels - 1))
        planes += stand_in.planes - condition.channels
    task = DiffusionTask(
        GaussianDiffusion(prediction="v"),
        PixelCodec(),
        network["num_classes"] is not None,
        condition=stand_in,
        augment=values["augment"],
    )
    blank = BlankImages((planes, *size))
    return Stepping(options, run.precision, run.ranks).seconds(state, task, blank)
