"""Variants measured in turns, so that what disturbs the machine affects all of them alike."""

import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

import torch

Variant = Callable[[], None]
Key = TypeVar("Key", bound=Hashable)

WARM_UP_ROUNDS = 2  # that are not counted


def nothing() -> None:
    pass


def take_turns(
    variants: Mapping[Key, Variant],
    rounds: int,
    device: torch.device,
    between_turns: Variant = nothing,
) -> dict[Key, list[float]]:
    """Seconds of each variant in each round. `between_turns` is not timed."""
    seconds: dict[Key, list[float]] = {key: [] for key in variants}
    for round_number in range(rounds + WARM_UP_ROUNDS):
        for key, run in variants.items():
            start = time.perf_counter()
            run()
            wait_for(device)
            if round_number >= WARM_UP_ROUNDS:
                seconds[key].append(time.perf_counter() - start)
            between_turns()
    return seconds


def wait_for(device: torch.device) -> None:
    """Until a GPU has done what was queued."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def spread_of(seconds: list[float]) -> float:
    """The distance between the quartiles, as a share of the median; 0 for a single value."""
    if len(seconds) < 2:
        return 0.0
    first, median, third = statistics.quantiles(seconds, n=4, method="inclusive")
    return (third - first) / median
