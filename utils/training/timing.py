"""How long a training step takes, found out by taking some."""

import itertools
import statistics
import time

from torch import nn
from torch.utils.data import default_collate

from utils.data import TrainingSet
from utils.errors import ReadError
from utils.training.fit import LossFunction, TrainingLoop, Update
from utils.training.prefetch import Batch, DrawFunction, PreparedBatches
from utils.training.recorder import SilentRecorder
from utils.training.schedule import Schedule
from utils.training.state import TrainState

WARM_UP_STEPS = 2  # that are not counted; the first one may compile the network
FEWEST_STEPS, MOST_STEPS = 3, 12  # that are counted
ENOUGH_TIME = 2.0  # seconds: beyond, no more than the fewest steps are counted
LONGEST_TIME = 20.0  # seconds: where steps are slow, fewer are taken

# How much longer a step takes in the mean of a run than when it is timed: processors slow down when
# they are warm, and machines are shared. A run of half an hour was 12% slower, one of 8 minutes 1%.
SLOW_DOWN = 1.05


def seconds_of_step(
    network: nn.Module,
    loss_fn: LossFunction,
    draw_fn: DrawFunction,
    state: TrainState,
    batch: Batch,
    update: Update,
) -> float:
    """Seconds that a whole step (draws, loss, backward, optimizer, EMA) will take in a run, on
    micro-batches like this: somewhat more than the median after a warm-up, or where steps are slow
    the shortest of those behind the first one.

    The steps are those of the training loop. The state is put back as it was, to the bit. The
    processes of a run call it together.
    """
    before = state.snapshot()
    ranks = update.ranks
    loader = PreparedBatches(
        itertools.repeat(batch), draw_fn, update.precision.device, 0, 0, update.accumulate, ranks
    )
    loop = TrainingLoop(
        network,
        loader,
        loss_fn,
        state,
        Schedule(total_steps=1, steps_per_epoch=1, learning_rate=lambda step: 0.0),
        SilentRecorder(ranks, has_previews=False),
        update,
        names_of=lambda step: [],
    )
    seconds: list[float] = []
    try:
        while not _are_enough(seconds, several=ranks.world_size > 1):
            start = time.perf_counter()
            loop.take_step()
            loop.meter.flush(1)  # waits for the device
            seconds.append(time.perf_counter() - start)
    finally:
        loader.close()
        state.put_back(before)
    counted = seconds[WARM_UP_STEPS:]
    now = statistics.median(counted) if len(counted) >= FEWEST_STEPS else min(seconds[1:])
    return SLOW_DOWN * now


def _are_enough(seconds: list[float], several: bool) -> bool:
    """Whether enough steps were taken; several processes take equally many, whatever their time."""
    counted = len(seconds) - WARM_UP_STEPS
    if several:
        return counted >= FEWEST_STEPS
    total = sum(seconds[1:])
    if total > LONGEST_TIME or counted >= MOST_STEPS:
        return True
    return counted >= FEWEST_STEPS and total > ENOUGH_TIME


def sample_batch(dataset: TrainingSet, size: int) -> Batch:
    """A batch of `size` images, to measure with. Raises ReadError where one cannot be read."""
    items = [dataset[i % len(dataset)] for i in range(size)]
    for item in items:
        if isinstance(item, ReadError):
            raise item
    return tuple(default_collate(items))
