"""How the steps of a run are made, and what one takes."""

from torch import nn

from utils.data import TrainingSet
from utils.devices import Precision, wrap_network
from utils.errors import advice_on_memory
from utils.ranks import Ranks
from utils.training.cuda_graph import why_not_recorded
from utils.training.fit import Update
from utils.training.run_options import RunOptions
from utils.training.state import TrainState
from utils.training.timing import sample_batch, seconds_of_step
from utils.training.work import Task


class Stepping:
    """The steps of one process, with certain options: what they call, and how they move weights.

    It keeps the network that it wrapped last, and what a step of the last state took.
    """

    def __init__(self, options: RunOptions, precision: Precision, ranks: Ranks):
        self.options = options
        self.precision = precision
        self.ranks = ranks
        self._wrapped: tuple[nn.Module, nn.Module] | None = None  # a network, and what calls it
        self._timed: tuple[TrainState, float] | None = None  # a state, and what its step takes

    def wrapped(self, network: nn.Module) -> nn.Module:
        """What the loss calls: the network, compiled on demand, with its gradients averaged over
        the processes.
        """
        if self._wrapped is None or self._wrapped[0] is not network:
            options = self.options
            caller = wrap_network(
                network, self.ranks, options.compile, options.gradient_compression
            )
            self._wrapped = (network, caller)
        return self._wrapped[1]

    def update(self, network: nn.Module) -> Update:
        """How a step changes the network's weights."""
        options = self.options
        return Update(
            self.precision,
            self.ranks,
            options.grad_accum,
            options.grad_clip,
            recorded=bool(options.cuda_graph) and not self._why_not_recorded(network),
        )

    def seconds(self, state: TrainState, task: Task, dataset: TrainingSet) -> float:
        """Seconds of a step, measured once on some images; the state stays as it is. All processes
        call it together.
        """
        options = self.options
        if self._timed is None or self._timed[0] is not state:
            batch = sample_batch(dataset, options.batch_size)
            network, update = self.wrapped(state.network), self.update(state.network)
            with advice_on_memory(options.advice_on_memory):
                seconds = seconds_of_step(network, task.loss, task.draw, state, batch, update)
            self._timed = (state, seconds)
        return self._timed[1]

    def cuda_graph_remark(self, network: nn.Module) -> str:
        """What to say where --cuda_graph was asked for, and cannot be; otherwise ""."""
        reason = self._why_not_recorded(network)
        if self.options.cuda_graph is not True or not reason:
            return ""
        return f"--cuda_graph has no effect: {reason}"

    def _why_not_recorded(self, network: nn.Module) -> str:
        options = self.options
        checkpointed = bool(getattr(network, "checkpointed", ()))
        return why_not_recorded(
            self.precision, self.ranks, options.optim, options.compile, checkpointed
        )
