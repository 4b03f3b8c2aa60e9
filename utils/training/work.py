"""What a run trains: the task, and all that goes with it."""

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from utils.data import ImageSet, TrainingSet
from utils.data.split import Split
from utils.training.evaluation import EvaluateFunction, EvaluationPlan
from utils.training.fit import CompleteFunction
from utils.training.length import RunLength
from utils.training.plan import Previews
from utils.training.prefetch import Batch, Draws
from utils.training.state import TrainState


class Task(Protocol):
    """What is trained."""

    def draw(self, batch: Batch, generators: list[torch.Generator]) -> Draws:
        """What the loss of a batch needs at random, on the CPU, one generator per image."""

    def loss(self, network: nn.Module, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """{"loss": scalar, name: (sum, count), ...}"""


@dataclass
class Work:
    """What a run trains, measures and draws."""

    images: ImageSet  # all that were found
    split: Split  # which of them are held out
    dataset: TrainingSet  # what is trained on
    task: Task
    state: TrainState
    length: RunLength
    evaluations: EvaluationPlan | None = None  # None: nothing is measured
    evaluate: EvaluateFunction | None = None
    complete: CompleteFunction | None = None  # after the last step
    rows_at_the_end: float = 0.0  # forward passes of one image that `complete` takes, about
    previews: Previews | None = None
    balance: np.ndarray | None = None  # labels of `dataset`, to see as much of each; None: as it is
    plan_lines: list[str] = field(default_factory=list)  # of this kind of run
    remarks: list[str] = field(default_factory=list)  # legal options that cannot work well
