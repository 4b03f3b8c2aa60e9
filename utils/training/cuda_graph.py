"""A training step as one launch: its kernels are recorded once on a GPU, and then replayed.

A small network's step is a thousand short kernels, and a host takes longer to launch them one by
one than the GPU to compute them. A CUDA graph launches all of them together.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from utils.devices import Precision
from utils.ranks import Ranks
from utils.training.prefetch import Prepared

EAGER_STEPS = 1  # before recording: they build the optimizer's state and choose the convolutions


@dataclass
class StepResult:
    """What a step has measured, on the device."""

    images: int
    sums: dict[str, Tensor]  # (sum, count) of each scalar, (2,)
    grad_norm: Tensor


# (the step's micro-batches, its learning rate) -> what it measured; the weights have moved. A
# recorded step reads its learning rate from the device, where it can change between two replays.
StepFunction = Callable[[Iterable[Prepared], float | Tensor], StepResult]


def why_not_recorded(
    precision: Precision,
    ranks: Ranks,
    optim: str,
    compiled: bool = False,
    checkpointed: bool = False,
) -> str:
    """Why a run's steps cannot be recorded, in a few words; "" where they can.

    fp16's scaler asks the host whether to skip a step, SGD takes no learning rate from the device,
    checkpointed activations put the random state back, and several processes have to meet.
    """
    if precision.device.type != "cuda":
        return "there is no CUDA device"
    if ranks.world_size > 1:
        return "several processes train together"
    if precision.dtype == torch.float16:
        return "fp16 scales its loss"
    if optim == "sgd":
        return "sgd cannot be recorded"
    if compiled:
        return "--compile is on"
    if checkpointed:
        return "--checkpoint_activations is on"
    return ""


class RecordedStep:
    """Calls a StepFunction as it is at first, then records it, and from then on replays it.

    A replay launches the same kernels on the same memory as the recording did, so inputs are copied
    into the tensors that it read, and what it measured is copied out. Micro-batches of other shapes
    than those recorded are computed as they are.

    It keeps no reference to the function, whose owner keeps this: what a recording holds of the
    GPU's memory is let go of together with the owner.
    """

    def __init__(self, device: torch.device):
        self._lr = torch.zeros((), device=device)
        self._eager_left = EAGER_STEPS
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: list[Prepared] = []
        self._result: StepResult | None = None

    def __call__(
        self, compute: StepFunction, batches: list[Prepared], lr: float | Tensor
    ) -> StepResult:
        """`compute` is the same one at each call."""
        self._lr.fill_(lr)
        if self._eager_left > 0:
            self._eager_left -= 1
            return compute(batches, self._lr)
        if self._graph is None:
            self._record(compute, batches)
        elif shapes_of(batches) != shapes_of(self._inputs):
            return compute(batches, self._lr)
        return self._replay(batches)

    def _record(self, compute: StepFunction, batches: list[Prepared]) -> None:
        """Nothing is computed by it."""
        self._inputs = [batch.copy() for batch in batches]
        graph = torch.cuda.CUDAGraph()
        # Another thread prepares the next batch meanwhile: what it asks of CUDA is not recorded.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._result = compute(self._inputs, self._lr)
        self._graph = graph

    def _replay(self, batches: list[Prepared]) -> StepResult:
        assert self._graph is not None and self._result is not None
        for recorded, batch in zip(self._inputs, batches, strict=True):
            for place, value in zip(recorded.tensors(), batch.tensors(), strict=True):
                place.copy_(value, non_blocking=True)
        self._graph.replay()
        sums = {name: pair.clone() for name, pair in self._result.sums.items()}
        return StepResult(self._result.images, sums, self._result.grad_norm.clone())


def shapes_of(batches: list[Prepared]) -> list[list[torch.Size]]:
    return [[value.shape for value in batch.tensors()] for batch in batches]
