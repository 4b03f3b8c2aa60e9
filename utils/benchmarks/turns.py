"""Variants measured in turns, so that what disturbs the machine affects all of them alike."""

import math
import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeVar

import torch

Variant = Callable[[], None]
Timer = Callable[[int], float]  # the mean seconds of so many runs
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

    What takes less than `shortest_turn` is repeated within a turn, and its seconds are the mean.
    So what a variant prepares ahead, while others have their turn, is prepared while it is timed.
    """
    seconds: dict[Key, list[float]] = {key: [] for key in timers}
    repeats = dict.fromkeys(timers, 1)
    order = list(timers)
    for round_number in range(rounds + WARM_UP_ROUNDS):
        order.reverse()
        for key in order:
            mean = timers[key](repeats[key])
            if round_number >= WARM_UP_ROUNDS:
                seconds[key].append(mean)
            else:
                repeats[key] = max(1, math.ceil(shortest_turn / mean))
            between_turns()
    return seconds


def timer_of(run: Callable[[], Any], device: torch.device) -> Timer:
    """For what runs in this process. The first run of a turn is not counted unless it is long: it
    finds the caches as the variant before it has left them, which no run has within a sampling or a
    training.
    """

    def mean_seconds(repeats: int) -> float:
        first = seconds_of(1)
        return first if first > LONG_RUN else seconds_of(repeats) / repeats

    def seconds_of(repeats: int) -> float:
        start = time.perf_counter()
        for _ in range(repeats):
            run()
        wait_for(device)
        return time.perf_counter() - start

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
