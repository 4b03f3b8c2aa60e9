"""What a run will do and what it will cost, before it begins."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

from PIL import Image
from torch import nn

from utils.data.split import Split
from utils.devices import Precision
from utils.evaluation.verdict import FEWEST_EVALUATIONS
from utils.ranks import Ranks
from utils.training.evaluation import EvaluationPlan
from utils.training.length import FORWARD_SHARE, RunLength
from utils.training.optimizer import STATE_NAMES
from utils.training.state import TrainState

FEW_STEPS = 300
BYTES_PER_WEIGHT = 4
MEGABYTE = 1e6


class Previews(Protocol):
    """Draws the picture that a run shows now and then."""

    @property
    def network_rows(self) -> float:
        """Forward passes that a picture takes, each of as many pixels as a training image."""

    def draw(self, sign_of_life: Callable[[], None]) -> Image.Image:
        """The picture. `sign_of_life` is called after each network call."""


@dataclass
class PreviewCost:
    """What previews cost."""

    count: int = 0  # that are still to come
    rows: float = 0  # of network calls, for each

    @classmethod
    def of(cls, previews: Previews | None, count: int) -> "PreviewCost":
        return cls() if previews is None else cls(count, previews.network_rows)


@dataclass
class Cost:
    """What a run costs."""

    seconds_per_step: float
    images_per_step: int  # of this process
    steps_left: int
    previews: PreviewCost
    checkpoints_kept: int
    evaluation_share: float = 0.0  # of the steps' time
    has_best: bool = False  # whether the best checkpoint is kept too
    averages_kept: int = 0  # snapshots of the averages
    save_epochs: int = 1  # epochs between saves
    rows_at_the_end: float = 0.0  # of network calls after the last step, those of a preview apart

    @property
    def seconds_left(self) -> float:
        per_row = self.seconds_per_step * FORWARD_SHARE / self.images_per_step
        rows = self.previews.count * self.previews.rows + self.rows_at_the_end
        steps = self.steps_left * self.seconds_per_step * (1 + self.evaluation_share)
        return steps + rows * per_row


def size_of_checkpoints(
    state: TrainState, kept: int, has_best: bool, averages_kept: int = 0
) -> float:
    """Bytes of ckpt_last, ckpt_prev, the numbered checkpoints that are kept, and ema_last; of
    ckpt_best and ema_best; and of snapshots of averages.
    """
    full, slim = size_of_checkpoint(state), _size_of_slim(state)
    best = full + slim if has_best else 0
    return (2 + kept) * full + slim + best + averages_kept * _size_of_averages(state)


def size_of_checkpoint(state: TrainState) -> int:
    """Bytes of a checkpoint to resume from: what ema_last has, and the network, the optimizer's
    moments and the averages.
    """
    weights = count_weights(state.network)
    moments = len(STATE_NAMES[type(state.optimizer)] - {"step"})
    own = BYTES_PER_WEIGHT * weights * (1 + moments)
    return _size_of_slim(state) + own + _size_of_averages(state)


def _size_of_slim(state: TrainState) -> int:
    """Bytes of ema_last."""
    weights = count_weights(state.network)
    slim = BYTES_PER_WEIGHT * weights
    if state.codec is not None:
        slim += BYTES_PER_WEIGHT * sum(weight.numel() for weight in state.codec.values())
    if state.guide_step > 0:
        slim += BYTES_PER_WEIGHT * weights // 2  # in bf16
    return slim


def _size_of_averages(state: TrainState) -> int:
    """Bytes of a snapshot of the averages."""
    if state.averages is None:
        return 0
    return BYTES_PER_WEIGHT * count_weights(state.network) * len(state.averages.averages)


def count_weights(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def plan_lines(
    state: TrainState,
    precision: Precision,
    ranks: Ranks,
    cost: Cost,
    length: RunLength,
    results: object,
) -> list[str]:
    """Network, steps, time and disk, in lines for people."""
    millions = count_weights(state.network) / 1e6
    plural = "es" if ranks.world_size > 1 else ""
    finish = time.strftime("%a %H:%M", time.localtime(time.time() + cost.seconds_left))
    left = timedelta(seconds=round(cost.seconds_left))
    size = size_of_checkpoints(state, cost.checkpoints_kept, cost.has_best, cost.averages_kept)
    disk = f"{size / MEGABYTE:,.0f} MB of checkpoints below {results}"
    if cost.save_epochs > 1:
        disk += f", written every {cost.save_epochs:,} epochs"
    return [
        f"network     {state.config['network']['name']}, {millions:.2f} M parameters, {precision}",
        f"steps       {length.total_steps:,} = {length.in_words()}, {state.step:,} done; "
        f"{length.global_batch} images per step on {ranks.world_size} process{plural}",
        f"time        {cost.seconds_per_step:.3f} s per step, about {left} left: until {finish}",
        f"disk        {disk}",
    ]


def evaluation_lines(
    split: Split, images: int, evaluations: EvaluationPlan | None, steps_per_epoch: int
) -> list[str]:
    """What is held out of `images`, and when it is measured."""
    held_out = len(split.held_out)
    lines = [f"held out    {held_out:,} of {images:,} images, to measure on"]
    if held_out == 0:
        lines = ["held out    no images, so the run cannot say whether it is done (--val_fraction)"]
    if len(split.unused):
        lines.append(
            f"            and {len(split.unused):,} near copies of training images used for neither"
        )
    if evaluations is None:
        return lines
    often = f"every {evaluations.interval:,} steps"
    if evaluations.interval % steps_per_epoch == 0:
        epochs = evaluations.interval // steps_per_epoch
        often = "every epoch" if epochs == 1 else f"every {epochs:,} epochs"
    parts = []
    if evaluations.images:
        parts.append(
            f"{evaluations.figures} of {evaluations.images:,} held-out and as many training images"
        )
    if evaluations.generated:
        parts.append(f"the KID of {evaluations.generated:,} generated images")
    lines.append(
        f"evaluation  {often}, {evaluations.count:,} in all: {' and '.join(parts)}; "
        f"{evaluations.share:.1%} of the run's time"
        + (", too few for a verdict" if evaluations.count < FEWEST_EVALUATIONS else "")
    )
    return lines


def remark_lines(remarks: list[str]) -> list[str]:
    """Remarks, as lines of the plan."""
    return [f"warning:    {remark}" for remark in remarks if remark]


def length_remarks(total_steps: int, warmup_asked: int, warmup_used: int) -> list[str]:
    """Remarks on a run that is too short for a good result, or for its warm-up."""
    remarks = []
    if total_steps < FEW_STEPS:
        remarks.append(
            f"{total_steps:,} steps are few: recognisable images need hundreds to thousands; "
            "raise --epochs or --minutes"
        )
    if warmup_used < warmup_asked:
        remarks.append(
            f"--warmup_steps {warmup_asked} is more than a tenth of the run and is shortened to "
            f"{warmup_used}"
        )
    return remarks
