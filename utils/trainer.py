"""The training loop. One for every task: what is trained is a function that returns a loss."""

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from model.ema import EMA
from utils.checkpoint import FORMAT_VERSION, SLIM, load_weights
from utils.distributed import Precision, Ranks
from utils.errors import UserError, name_list
from utils.run_folder import RunFolder


@dataclass
class TrainState:
    """All that changes during training. Saving and restoring walk the same list, OBJECTS."""

    network: nn.Module
    ema: EMA
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    seed: int
    config: dict  # {"network", "diffusion", "data"}: what rebuilds the network
    args: dict  # the options of the run, plain values
    step: int = 0  # optimizer steps done

    OBJECTS = ("network", "ema", "optimizer", "scaler")

    def contents(self, epoch: int) -> dict:
        """What goes into a checkpoint."""
        return {
            "format_version": FORMAT_VERSION,
            "kind": "diffusion",
            "config": self.config,
            "state": {"epoch": epoch, "step": self.step, "seed": self.seed},
            **{name: getattr(self, name).state_dict() for name in self.OBJECTS},
            "args": self.args,
            "versions": self.versions(),
        }

    def versions(self) -> dict:
        """What bit-exact repetition depends on beside the decisive options."""
        device = next(self.network.parameters()).device.type
        machine = {
            "torch": str(torch.__version__),
            "threads": torch.get_num_threads(),
            "device": device,
        }
        return machine | {key: self.args[key] for key in ("batch_size", "grad_accum", "compile")}

    def restore(self, contents: dict, source: object) -> None:
        load_weights(self.network, contents["network"], source)
        load_weights(self.ema.network, contents["ema"], source)
        settings = [
            {k: v for k, v in group.items() if k not in ("params", "lr")}
            for group in self.optimizer.param_groups
        ]
        if (contents["args"].get("optim") == "sgd") == (
            self.args["optim"] == "sgd"
        ):  # else its state does not fit
            self.optimizer.load_state_dict(contents["optimizer"])
        for group, chosen in zip(self.optimizer.param_groups, settings, strict=True):
            group.update(chosen)
        if self.scaler.is_enabled() and contents["scaler"]:
            self.scaler.load_state_dict(contents["scaler"])
        self.step = contents["state"]["step"]


def build_optimizer(
    name: str, network: nn.Module, lr: float, weight_decay: float
) -> torch.optim.Optimizer:
    """adam, adamw (beta2 = 0.99, as short runs like it) or sgd with momentum 0.9."""
    if name == "sgd":
        return torch.optim.SGD(network.parameters(), lr, momentum=0.9, weight_decay=weight_decay)
    weight_decay = weight_decay if name == "adamw" else 0.0  # with none, AdamW is Adam
    return torch.optim.AdamW(network.parameters(), lr, betas=(0.9, 0.99), weight_decay=weight_decay)


def time_step(
    network: nn.Module,
    loss_fn: Callable,
    batch: tuple,
    precision: Precision,
    ranks: Ranks,
    repeats: int = 3,
) -> float:
    """Seconds of one forward and backward pass on a batch, the median after a warm-up. Leaves no
    gradients behind.
    """
    seconds = []
    for i in range(repeats + 2):
        start = time.perf_counter()
        with precision.autocast():
            loss = loss_fn(network, batch, image_generators(0, i, 0, len(batch[0]), ranks))["loss"]
        loss.backward()
        loss.item()  # waits for the device
        seconds.append(time.perf_counter() - start)
    network.zero_grad(set_to_none=True)
    return sorted(seconds[2:])[repeats // 2]


def learning_rate(
    step: int, total_steps: int, lr: float, schedule: str, warmup_steps: int
) -> float:
    """The rate of step 0..total_steps-1: a pure function, so nothing needs to be saved. Never zero."""
    if schedule == "constant":
        return lr
    if schedule == "linear":
        return lr * (1 - step / total_steps)
    warmup = min(1.0, (step + 1) / max(1, warmup_steps)) if schedule == "warmup_cosine" else 1.0
    return warmup * lr * (1 + math.cos(math.pi * step / total_steps)) / 2


def mix(*numbers: int) -> int:
    """Whole numbers -> a well-scattered seed (the finaliser of splitmix64, once per number)."""
    state, mask = 0, 2**64 - 1
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & mask
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
        state ^= state >> 31
    return state & 0x7FFFFFFFFFFFFFFF


def image_generators(
    seed: int, step: int, first: int, count: int, ranks: Ranks
) -> list[torch.Generator]:
    """One generator per image of a micro-batch, by the image's place in the global batch of this
    step. `first` counts this process's images of the step so far. Processes take turns in the
    global order, so the place does not depend on how many there are, and neither does anything
    drawn for the image.
    """
    places = (i * ranks.world_size + ranks.rank for i in range(first, first + count))
    return [torch.Generator().manual_seed(mix(seed, step, place)) for place in places]


class Meter:
    """Scalars of each step, left on the device until `flush`: reading one waits for the device."""

    def __init__(self, ranks: Ranks):
        self.ranks, self.rows = ranks, []
        self.images, self.start = 0, time.perf_counter()

    def add(
        self, step: int, lr: float, grad_norm: Tensor, sums: dict[str, Tensor], images: int
    ) -> None:
        """`sums`: name -> (sum, count), (2,), of this process."""
        self.rows.append((step, lr, grad_norm, sums))
        self.images += images

    def flush(self, steps_per_epoch: int) -> list[dict[str, float]]:
        """The rows since the last flush, means over all processes; the same on each of them."""
        if not self.rows:
            return []
        names = list(self.rows[0][3])
        totals = torch.stack(
            [torch.stack([sums[name] for name in names]) for *_, sums in self.rows]
        )
        totals = self.ranks.sum(
            (totals.cpu() if totals.device.type == "mps" else totals).double()
        ).tolist()
        norms = torch.stack([norm for _, _, norm, _ in self.rows]).tolist()
        speed = self.images / max(time.perf_counter() - self.start, 1e-9)
        rows = []
        for (step, lr, _, _), norm, values in zip(self.rows, norms, totals, strict=True):
            means = {
                name: s / n if n else math.nan for name, (s, n) in zip(names, values, strict=True)
            }
            row = {
                "step": step + 1,
                "epoch": step // steps_per_epoch + 1,
                **means,
                "lr": lr,
                "grad_norm": norm,
            }
            rows.append(row | {"images_per_second": round(speed, 1)})
        self.rows, self.images, self.start = [], 0, time.perf_counter()
        return rows


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """SIGINT and SIGTERM are noted in the list that this yields; a second SIGINT interrupts at
    once.
    """
    received: list[int] = []

    def note(number: int, _frame: object) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def fit(
    network: nn.Module,  # what loss_fn calls: state.network, or a wrapper of it (DistributedDataParallel, compiled)
    loader: Iterable,  # micro-batches from state.step on, `accumulate` per step; tuples, the first item of length B
    loss_fn: Callable[[nn.Module, tuple, list[torch.Generator]], dict[str, Tensor]],
    preview_fn: Callable[[nn.Module, Callable], Image.Image]
    | None,  # (EMA network, for it to call now and then) -> a picture
    state: TrainState,
    *,
    run: RunFolder | None,  # where the main process writes; None on the others
    ranks: Ranks,
    precision: Precision,
    lr_at: Callable[[int], float],
    total_steps: int,
    steps_per_epoch: int,
    accumulate: int = 1,
    grad_clip: float = 0.0,
    log_interval: int = 10,
    save_steps: int = 0,  # checkpoints every so many steps, beside those at the end of each epoch; 0: none
    preview_epochs: int = 1,
    numbered: Callable[[int], bool] = lambda epoch: (
        False
    ),  # whether an epoch's checkpoint is kept under its number
    keep: int = 0,  # how many of these; 0: all
    image_format: str = "png",
    batch_names: Callable[
        [int], list[str]
    ] = lambda step: [],  # the images of a step, for when its loss is no number
) -> int:
    """Train until step `total_steps` or a signal. Returns 0, or 128 + the signal's number.

    loss_fn: (network, batch, generators) -> {"loss": scalar to minimise, name: (sum, count), ...};
    the pairs are logged as means. All its randomness comes from the generators, one per image.
    """
    batches, meter = iter(loader), Meter(ranks)
    parameters = [p for p in state.network.parameters() if p.requires_grad]
    first_step, saved_step = state.step, None
    bar = tqdm(
        total=total_steps,
        initial=state.step,
        unit="step",
        disable=not ranks.is_main,
        dynamic_ncols=True,
    )

    with stop_signals() as received, bar, contextlib.ExitStack() as at_end:
        at_end.callback(
            getattr(batches, "_shutdown_workers", int)
        )  # else an error would wait for workers for ever
        while True:
            # Between two steps: read what was measured, save, preview; then leave, or take the next
            # step.
            epoch, into_epoch = divmod(state.step, steps_per_epoch)
            finished = state.step >= total_steps
            stop = ranks.any(bool(received))
            # At the start too: a kill between two files of a save left the second behind, and a
            # full disk is found out.
            due = finished or stop or into_epoch == 0 or saved_step is None
            due = due or (save_steps and state.step % save_steps == 0)
            if ranks.is_main:
                run.check_saving()
            if due or state.step % log_interval == 0:
                rows = meter.flush(steps_per_epoch)
                if problem := not_finite(rows, state.scaler, batch_names):
                    if ranks.is_main:
                        run.log(f"error: {problem}")
                        run.finish_saving()
                    raise UserError(problem)
                if ranks.is_main and rows:
                    run.write_metrics(rows)
                    bar.set_postfix(
                        loss=f"{rows[-1]['loss']:.4f}", img_s=rows[-1]["images_per_second"]
                    )
                if due and state.step != saved_step:
                    ranks.check_equal(parameters)
                    if ranks.is_main:
                        number = (
                            epoch if into_epoch == 0 and epoch > 0 and numbered(epoch) else None
                        )
                        run.write_checkpoint(state.contents(epoch), number, keep)
                        if saved_step is None and not run.finish_saving():
                            raise UserError(f"no checkpoint can be written into {run.path}")
                    saved_step = state.step
                drawing = finished or (into_epoch == 0 and epoch % preview_epochs == 0)
                if preview_fn and drawing and state.step and not stop:
                    if ranks.is_main and (
                        state.step > first_step or not [*run.path.glob(f"samples/*_{epoch:04d}.*")]
                    ):
                        picture = preview_fn(state.ema.network, lambda *_: ranks.main_is_busy(True))
                        file = run.write_preview(picture, epoch, state.step, image_format)
                        loss = f"loss {rows[-1]['loss']:.4f}, " if rows else ""
                        run.log(f"epoch {epoch}: {loss}samples in {file}")
                    while ranks.main_is_busy(False):
                        pass
                meter.start = time.perf_counter()  # none of this counts as training
                if stop or finished:
                    status = 128 + (received[0] if received else signal.SIGTERM) if stop else 0
                    break

            lr = lr_at(state.step)
            for group in state.optimizer.param_groups:
                group["lr"] = lr
            torch.manual_seed(mix(state.seed, state.step, ranks.rank))  # for dropout
            seen, sums = 0, {}
            for micro in range(accumulate):
                batch = next(batches)
                count = len(batch[0])
                generators = image_generators(state.seed, state.step, seen, count, ranks)
                last = micro == accumulate - 1
                with (
                    contextlib.nullcontext() if last or ranks.world_size == 1 else network.no_sync()
                ):
                    with precision.autocast():
                        out = loss_fn(network, batch, generators)
                    state.scaler.scale(out["loss"] / accumulate).backward()
                seen += count
                out["loss"] = torch.stack(
                    [out["loss"].detach() * count, out["loss"].new_tensor(count)]
                )
                sums = {name: pair + sums.get(name, 0) for name, pair in out.items()}
            state.scaler.unscale_(state.optimizer)
            norm = torch.nn.utils.clip_grad_norm_(parameters, grad_clip or math.inf)
            state.scaler.step(state.optimizer)
            state.scaler.update()
            state.optimizer.zero_grad(set_to_none=True)
            state.ema.update(state.network, state.step)
            meter.add(state.step, lr, norm, sums, seen * ranks.world_size)
            state.step += 1
            bar.update()
        if ranks.is_main:
            safe = run.finish_saving()
            end = (
                "stopped, saved; --resume goes on"
                if status
                else f"finished; the weights are {run.path / SLIM}"
            )
            end = end if safe else "the last checkpoint could not be written"
            run.log(f"step {state.step:,} of {total_steps:,}: {end}")
            run.close()
            status = status if safe else 1
    return status


def not_finite(
    rows: list[dict], scaler: torch.amp.GradScaler, batch_names: Callable[[int], list[str]]
) -> str | None:
    """What to say where the loss or the gradient is no number. Under fp16 the scaler skips single
    such steps.
    """
    bad = [
        row for row in rows if not (math.isfinite(row["loss"]) and math.isfinite(row["grad_norm"]))
    ]
    if not bad or (
        scaler.is_enabled() and scaler.get_scale() >= 1
    ):  # below, it has skipped many in a row
        return None
    step, loss, norm = (bad[0][key] for key in ("step", "loss", "grad_norm"))
    return (
        f"step {step}: the loss is {loss} and the gradient norm {norm}; what is saved is from before. --resume with "
        "--allow_changes and a lower --lr, --grad_clip 1 or --amp False. "
        f"The images: {name_list(batch_names(step - 1), 1000)}"
    )
