"""How many rows a network call takes."""

import pytest
import torch

from utils.serving.data_samples import _spread
from utils.serving.lane import MOST_ROWS, measured_budget
from utils.serving.states import snapshot_calls


def test_as_many_as_pay() -> None:
    assert measured_budget(lambda rows: 0.001) == MOST_ROWS
    assert measured_budget(lambda rows: 0.01 * rows) == MOST_ROWS  # no gain, no loss
    # From 8 rows on each row takes twice as long.
    assert measured_budget(lambda rows: 0.001 * rows * (2 if rows >= 8 else 1)) == 4


def test_no_call_is_long() -> None:
    assert measured_budget(lambda rows: 0.3 * rows) == 2
    assert measured_budget(lambda rows: 20.0 * rows) == 1


def test_long_calls_are_not_repeated_often() -> None:
    """The first one may be long for other reasons."""
    asked = []

    def call(rows: int) -> float:
        asked.append(rows)
        return 20.0

    assert measured_budget(call) == 1 and asked == [1, 1]
    seconds = iter([20.0, 0.6, 0.6])
    assert measured_budget(lambda rows: next(seconds)) == 1
    minutes = iter([100.0])
    assert measured_budget(lambda rows: next(minutes)) == 1


def test_as_many_as_fit_into_memory() -> None:
    def call(rows: int) -> float:
        if rows > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 0.001

    assert measured_budget(call) == 4
    with pytest.raises(torch.OutOfMemoryError):
        measured_budget(lambda rows: call(rows + 5))


def test_samples_of_a_folder_are_spread_over_all_of_it() -> None:
    for total in (1, 5, 24, 47, 71, 95, 10_000):
        places = _spread(total, 24)
        assert sorted(places) == sorted(set(places)) and len(places) == min(24, total)
        first = places[:8]  # those that are shown where none is damaged
        assert max(first) >= 0.8 * (total - 1) and min(places) == 0


def test_snapshots_are_spread_and_never_the_last_call() -> None:
    assert snapshot_calls(10, 0) == frozenset()
    assert snapshot_calls(100, 3) == {25, 50, 75}
    assert snapshot_calls(2, 3) == {1}
    assert snapshot_calls(1, 3) == frozenset()
