"""Steps of our training loop, outside a run: nothing is saved, logged or drawn."""

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from model.diffusion import GaussianDiffusion
from model.ema import EMA
from utils.benchmarks.turns import Variant
from utils.devices import Precision, wrap_network
from utils.ranks import Ranks
from utils.training.cuda_graph import why_not_recorded
from utils.training.diffusion_task import DiffusionTask
from utils.training.fit import TrainingLoop, Update
from utils.training.optimizer import build_optimizer
from utils.training.prefetch import Prepared, PreparedBatches
from utils.training.recorder import SilentRecorder
from utils.training.schedule import Schedule
from utils.training.state import TrainState

LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.01
GRAD_CLIP = 1.0
NO_END = 10**9  # steps


def process() -> GaussianDiffusion:
    """The diffusion that train.py trains unless told otherwise."""
    return GaussianDiffusion(noise_schedule="cosine", prediction="v")


def build_loop(
    task: DiffusionTask,
    loader: Iterator[Prepared],
    network: nn.Module,  # on its device
    precision: Precision,
    optimizer: str = "adamw",
    ranks: Ranks | None = None,
    compression: str = "none",  # of the gradients that the processes exchange
    recorded: bool = True,  # as a CUDA graph, where that can be done
) -> TrainingLoop:
    """The loop in utils/training/fit.py, of which single steps are taken."""
    ranks = ranks or Ranks()
    state = TrainState(
        network=network,
        ema=EMA(network),
        optimizer=build_optimizer(optimizer, network, LEARNING_RATE, WEIGHT_DECAY, ranks),
        scaler=precision.scaler(),
        seed=0,
        kind="diffusion",
        config={},
        args={},
        versions={},
    )
    return TrainingLoop(
        wrap_network(network, ranks, False, compression),
        loader,
        task.loss,
        state,
        Schedule(NO_END, NO_END, learning_rate=lambda step: LEARNING_RATE),
        SilentRecorder(ranks, has_previews=False),
        Update(
            precision,
            ranks,
            grad_clip=GRAD_CLIP,
            recorded=recorded and not why_not_recorded(precision, ranks, optimizer),
        ),
        names_of=lambda step: [],
    )


def take_step(loop: TrainingLoop) -> None:
    """One step, until its loss is known."""
    loop.take_step()
    loop.meter.flush(1)


def step_of(
    task: DiffusionTask,
    inputs: Tensor,
    network: nn.Module,
    precision: Precision,
    optimizer: str = "adamw",
    classes: int = 1,
    recorded: bool = True,
) -> Variant:
    """A step on a fixed batch of these inputs (B, ...), with labels that go through the classes:
    draws, loss, backward, optimizer, EMA.
    """
    numbers = torch.arange(len(inputs))
    batch = (inputs, numbers % classes, numbers)
    loader = PreparedBatches(itertools.repeat(batch), task.draw, precision.device, 0, 0)
    loop = build_loop(task, loader, network, precision, optimizer, recorded=recorded)

    def step() -> None:
        take_step(loop)

    return step


def random_pixels(shape: tuple[int, ...]) -> Tensor:
    """The same ones at each call, uint8."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, shape, dtype=torch.uint8, generator=generator)
