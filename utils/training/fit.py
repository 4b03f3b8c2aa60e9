"""The training loop. One for every task: what is trained is a function that returns a loss."""

import contextlib
import math
import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from utils.devices import Precision
from utils.errors import ReadError, Stopped, UserError, is_out_of_memory, name_list
from utils.ranks import Ranks, is_lost_connection
from utils.training.cuda_graph import RecordedStep, StepResult
from utils.training.evaluation import EvaluateFunction
from utils.training.meter import Meter
from utils.training.prefetch import Batch, Draws, Prepared
from utils.training.randomness import seed_dropout
from utils.training.recorder import Recorder
from utils.training.schedule import Schedule
from utils.training.signals import stop_signals
from utils.training.state import TrainState

# (network, batch, its random numbers) -> {"loss": scalar to minimise, name: (sum, count), ...}; the
# pairs are logged as means over the images of the step.
LossFunction = Callable[[nn.Module, Batch, Draws], dict[str, Tensor]]

# What all processes do together after the last step: it may add to the config, which is then saved
# once more. (state, whether a signal asks to stop) -> whether it was done.
CompleteFunction = Callable[[TrainState, Callable[[], bool]], bool]

# Below this scale of the loss, fp16 has skipped many steps in a row.
SMALLEST_SCALE = 1.0
MOST_NAMES = 1000  # of images, in the message about a non-finite loss


@dataclass
class Update:
    """How a step changes the weights."""

    precision: Precision
    ranks: Ranks
    accumulate: int = 1  # micro-batches per step
    grad_clip: float = 0.0  # largest norm of the gradient; 0: no limit
    recorded: bool = False  # as a CUDA graph, see utils/training/cuda_graph.py


def fit(
    network: nn.Module,  # what loss_fn calls: state.network, or a wrapper of it
    loader: Iterator[Prepared],  # micro-batches from state.step on, on the device
    loss_fn: LossFunction,
    state: TrainState,
    schedule: Schedule,
    recorder: Recorder,
    update: Update,
    names_of: Callable[[int], list[str]] = lambda step: [],  # the images of a step, for messages
    evaluate: EvaluateFunction | None = None,  # where the schedule says so
    complete: CompleteFunction | None = None,
) -> None:
    """Train until the schedule's last step, or a signal.

    Raises Stopped after a signal, when all is saved, and UserError where the loss or the weights
    are no longer finite, or no checkpoint can be written. After an error from outside (an
    unreadable image, a lost process, a failing disk) it saves before it raises that error again.
    """
    loop = TrainingLoop(
        network, loader, loss_fn, state, schedule, recorder, update, names_of, evaluate, complete
    )
    with stop_signals() as received:
        try:
            loop.run(received)
            recorder.finished(state.step)
        except Stopped:
            recorder.stopped(state.step)
            raise
        except Exception as error:
            if is_killed_worker(error):
                error = ReadError(
                    "a data-loading worker was killed, most likely because memory ran out; fewer "
                    "--num_workers need less"
                )
            if is_from_outside(error):
                loop.save_after(error)
            raise error
        finally:
            recorder.close()


class TrainingLoop:
    """The loop's parts, and what they share."""

    def __init__(
        self,
        network: nn.Module,
        loader: Iterator[Prepared],
        loss_fn: LossFunction,
        state: TrainState,
        schedule: Schedule,
        recorder: Recorder,
        update: Update,
        names_of: Callable[[int], list[str]],
        evaluate: EvaluateFunction | None = None,
        complete: CompleteFunction | None = None,
    ):
        self.network = network
        self.loader = loader
        self.loss_fn = loss_fn
        self.state = state
        self.schedule = schedule
        self.recorder = recorder
        self.update = update
        self.ranks = update.ranks
        self.names_of = names_of
        self.evaluate = evaluate
        self.complete = complete
        self.received: list[int] = []  # signals
        self.meter = Meter(self.ranks)
        self.parameters = [p for p in state.network.parameters() if p.requires_grad]
        self.first_step = state.step
        self.saved_step: int | None = None
        self.recorded = RecordedStep(update.precision.device) if update.recorded else None

    def run(self, received: list[int]) -> None:
        """Look, then leave or take a step, and repeat: the first and last look need no copy."""
        self.received = received
        while True:
            stop = self.stop_is_asked()
            self.look(stop)
            if stop:
                raise self.stopped()
            if self.schedule.is_finished(self.state.step):
                return
            self.take_step()

    def stop_is_asked(self) -> bool:
        """Whether a process has received a signal; all processes ask together."""
        return self.ranks.any(bool(self.received))

    def stopped(self) -> Stopped:
        return Stopped(self.received[0] if self.received else signal.SIGTERM)

    # --- Between two steps ---

    def look(self, stop: bool) -> None:
        """Read what was measured, save, evaluate, and draw a preview, as far as they are due."""
        state, schedule = self.state, self.schedule
        # At the start too: a kill may have left a save half done, and a full disk is found out.
        save_is_due = stop or self.saved_step is None or schedule.save_is_due(state.step)
        self.recorder.check_saving()
        if not save_is_due and not schedule.log_is_due(state.step):
            return
        self.report()
        if save_is_due and state.step != self.saved_step:
            self.save()
            if not stop and schedule.is_finished(state.step):
                self.make_complete()
        if not stop:
            self.show(resumed=state.step == self.first_step)
        self.meter.restart_clock()  # none of this counts as training

    def report(self) -> None:
        """Write what was measured since the last time; refuse what is not finite."""
        rows = self.meter.flush(self.schedule.steps_per_epoch)
        problem = non_finite(rows, self.state.scaler, self.names_of)
        if problem:
            self.fail(problem)
        self.recorder.metrics(rows)

    def save(self) -> None:
        """Save the state, the same on all processes and finite."""
        state, schedule = self.state, self.schedule
        self.ranks.check_equal(self.parameters)
        if not state.weights_are_finite():
            self.fail(f"step {state.step}: the weights are no longer finite; {HOW_TO_RECOVER}")
        self.recorder.save(
            state,
            schedule.epoch(state.step),
            schedule.number(state.step),
            wait=self.saved_step is None,
        )
        self.saved_step = state.step
        if state.averages is not None and schedule.averages_are_due(state.step):
            self.recorder.averages(state)

    def make_complete(self) -> None:
        """What is to be done after the last step, and the save with it."""
        if self.complete is None:
            return
        if not self.complete(self.state, self.stop_is_asked):
            raise self.stopped()
        self.save()

    def show(self, resumed: bool) -> None:
        """Evaluate the averaged network and draw a preview of it, as far as they are due. A resumed
        run does only what an interruption prevented.
        """
        state, epoch = self.state, self.schedule.epoch_of(self.state.step)
        if self.evaluate is not None and self.schedule.evaluation_is_due(state.step):
            if not (resumed and self.recorder.has_evaluation(state.step)):
                self.recorder.evaluation(self.evaluate(state.ema.network, state.step), epoch)
        if self.schedule.preview_is_due(state.step):
            self.recorder.preview(state, epoch, resumed)

    def fail(self, problem: str) -> None:
        self.recorder.error(problem)
        raise UserError(problem)

    def save_after(self, error: Exception) -> None:
        """Save what is done, where an error from outside ends the run between two saves."""
        if self.saved_step is None:
            self.recorder.error(str(error))
            return
        # First, since a checkpoint without the rows of its steps would not be the same run.
        has_rows = self.write_last_rows()
        with self.ranks.saving():  # the launcher waits meanwhile
            if has_rows and self.state.step != self.saved_step:
                self.save_alone()
            self.recorder.ended_by(error, self.saved_step)

    def write_last_rows(self) -> bool:
        """Write what was measured of the steps that are done; whether that could be had."""
        try:
            self.recorder.metrics(self.meter.flush(self.schedule.steps_per_epoch))
        except RuntimeError:  # another process was lost before they could be summed
            return False
        return True

    def save_alone(self) -> None:
        """Save the state, if it is that of one step and finite; the others may be gone."""
        state = self.state
        if state.is_whole and state.weights_are_finite():
            number = self.schedule.number(state.step)
            self.recorder.save(state, self.schedule.epoch(state.step), number, wait=False)
            self.saved_step = state.step

    # --- A step ---

    def take_step(self) -> None:
        """One optimizer step on `accumulate` micro-batches.

        Nothing in it waits for the device, except that fp16's scaler asks whether to skip the step.
        """
        state = self.state
        lr = self.schedule.learning_rate(state.step)
        seed_dropout(state.seed, state.step, self.ranks)
        result = self.move_weights(lr)

        state.is_whole = False
        for group in state.optimizer.param_groups:
            group["lr"] = lr  # a number again, as checkpoints have it
        state.update_averages()
        images = result.images * self.ranks.world_size
        self.meter.add(state.step, lr, result.grad_norm, result.sums, images)
        state.step += 1
        state.is_whole = True
        self.recorder.step_done()

    def move_weights(self, lr: float) -> StepResult:
        """Compute the step, or replay its recording."""
        if self.recorded is None:
            return self.compute_step(self.micro_batches(), lr)
        return self.recorded(self.compute_step, list(self.micro_batches()), lr)

    def micro_batches(self) -> Iterator[Prepared]:
        """Those of the next step."""
        for _ in range(self.update.accumulate):
            yield next(self.loader)

    def compute_step(self, batches: Iterable[Prepared], lr: float | Tensor) -> StepResult:
        """All of a step that the device computes, but for the averages."""
        state = self.state
        for group in state.optimizer.param_groups:
            group["lr"] = lr
        images, sums = self.add_gradients(batches)

        state.is_whole = False
        state.scaler.unscale_(state.optimizer)
        norm = self.clip_gradients()
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.optimizer.zero_grad(set_to_none=True)
        return StepResult(images, sums, norm)

    def add_gradients(self, batches: Iterable[Prepared]) -> tuple[int, dict[str, Tensor]]:
        """Forward and backward passes of a step: images seen, and (sum, count) of each scalar."""
        update = self.update
        images = 0
        sums: dict[str, Tensor] = {}
        for micro, prepared in enumerate(batches):
            is_last = micro == update.accumulate - 1
            with self.gradients_meet(is_last):
                with update.precision.autocast():
                    out = self.loss_fn(self.network, prepared.batch, prepared.draws)
                self.state.scaler.scale(out["loss"] / update.accumulate).backward()
            images += len(prepared)
            out["loss"] = mean_as_pair(out["loss"].detach(), len(prepared))
            for name, pair in out.items():
                sums[name] = pair if micro == 0 else sums[name] + pair
        return images, sums

    def clip_gradients(self) -> Tensor:
        """The norm of the gradient, which is at most `grad_clip` afterwards; 0: no limit."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if self.update.grad_clip > 0:
            nn.utils.clip_grads_with_norm_(self.parameters, self.update.grad_clip, norm)
        return norm

    def gradients_meet(self, is_last: bool) -> contextlib.AbstractContextManager:
        """The processes average their gradients once per step, in its last micro-batch."""
        if is_last or self.ranks.world_size == 1:
            return contextlib.nullcontext()
        return self.network.no_sync()  # type: ignore[operator]


def is_killed_worker(error: BaseException) -> bool:
    """Whether torch says that a data-loading worker was killed. Its signal handler raises a plain
    RuntimeError, in whatever line the loop is.
    """
    return type(error) is RuntimeError and str(error).startswith("DataLoader worker")


def is_from_outside(error: BaseException) -> bool:
    """Whether an error is the machine's, not the run's: disk, memory, another process."""
    if isinstance(error, ReadError | OSError):
        return True
    return is_out_of_memory(error) or is_lost_connection(error)


def mean_as_pair(mean: Tensor, count: int) -> Tensor:
    """A mean over `count` images as (sum, count), (2,), without asking the host for memory."""
    return torch.stack([mean * count, torch.full_like(mean, count)])


HOW_TO_RECOVER = (
    "the last checkpoint is from before this. Resume with --allow_changes and a lower "
    "--lr, --grad_clip 1 or --amp False"
)


def non_finite(
    rows: list[dict], scaler: torch.amp.GradScaler, names_of: Callable[[int], list[str]]
) -> str | None:
    """The error message for a non-finite loss or gradient, or None. Under fp16 the scaler skips
    single such steps, so there it is an error only after many in a row.
    """
    bad = [
        row for row in rows if not (math.isfinite(row["loss"]) and math.isfinite(row["grad_norm"]))
    ]
    if not bad:
        return None
    if scaler.is_enabled() and scaler.get_scale() >= SMALLEST_SCALE:
        return None
    step = int(bad[0]["step"])
    return (
        f"step {step}: the loss is {bad[0]['loss']} and the gradient norm {bad[0]['grad_norm']}; "
        f"{HOW_TO_RECOVER}. The images: {name_list(names_of(step - 1), MOST_NAMES)}"
    )
