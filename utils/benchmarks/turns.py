"""Variants measured in turns, so that what disturbs the machine affects all of them alike."""

import math
import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeVar

import torch

Variant = Callable[[], None]
# The mean seconds of so many runs, behind one that is not counted where it is asked for
Timer = Callable[[int, bool], float]
Key = TypeVar("Key", bound=Hashable)

WARM_UP_ROUNDS = 2  # that are not counted

# What takes longer than this, in seconds, does not notice in which state it finds the caches.
LONG_RUN = 1.0


def nothing() -> None:
    pass


def take_turns(
    timers: Mapping[Key, Timer],
    rounds: int,
    between_turns: Variant = nothing,
    shortest_turn: float = 0.0,  # seconds
) -> dict[Key, list[float]]:
    """Seconds of each variant in each round, whose order is turned round each time. `between_turns`
    is not timed.

    With a `shortest_turn`, what takes less is repeated within a turn, and its seconds are the mean.
    So what a variant prepares ahead, while others have their turn, is prepared while it is timed.
    And unless one of the variants is long, the first run of each turn is not counted: it finds the
    caches as the variant before it has left them, which no run has within a sampling or a training.
    """
    seconds: dict[Key, list[float]] = {key: [] for key in timers}
    repeats = dict.fromkeys(timers, 1)
    begins_warm = False
    order = list(timers)
    for round_number in range(rounds + WARM_UP_ROUNDS):
        order.reverse()
        means: dict[Key, float] = {}
        for key in order:
            means[key] = timers[key](repeats[key], begins_warm)
            between_turns()
        if round_number >= WARM_UP_ROUNDS:
            for key, mean in means.items():
                seconds[key].append(mean)
        else:
            repeats = {key: max(1, math.ceil(shortest_turn / means[key])) for key in timers}
            begins_warm = shortest_turn > 0 and max(means.values()) <= LONG_RUN
    return seconds


def timer_of(run: Callable[[], Any], device: torch.device) -> Timer:
    """For what runs in this process."""

    def mean_seconds(repeats: int, begins_warm: bool) -> float:
        if begins_warm:
            run()
            wait_for(device)
        start = time.perf_counter()
        for _ in range(repeats):
            run()
        wait_for(device)
        return (time.perf_counter() - start) / repeats

    return mean_seconds


def wait_for(device: torch.device) -> None:
    """Until a GPU has done what was queued."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def spread_of(seconds: list[float]) -> float:
    """The distance between the quartiles, as a share of the median; 0 for a single value."""
    if len(seconds) < 2:
        return 0.0
    first, median, third = statistics.quantiles(seconds, n=4, method="inclusive")
    return (third - first) / median
