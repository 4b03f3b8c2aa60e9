"""Into how many forward passes a batch is split, and what the plan says of it."""

import pytest

from utils.training.passes import passes_before, passes_of, shortage_lines, split_lines


@pytest.mark.parametrize(
    ("batch", "most", "passes"),
    [(32, 32, 1), (32, 1e9, 1), (32, 31.9, 2), (32, 16, 2), (32, 5.7, 8), (32, 0.3, 32)]
    + [(32, -4, 32), (24, 9, 3), (7, 6, 7), (1, 0, 1), (32, float("inf"), 1)],
)
def test_a_batch_is_split_into_as_few_equal_passes_as_fit(batch, most, passes):
    assert passes_of(batch, most) == passes


@pytest.mark.parametrize(
    ("processes", "recorded", "passes"),
    [(1, 4, 4), (2, 4, 4), (8, 4, 4), (16, 4, 2), (32, 4, 1), (64, 4, 1), (1, 3, 2), (3, 4, 2)]
    + [(1, None, 1), (1, 0, 1), (1, "4", 1), (1, 100, 32)],
)
def test_a_resumed_run_splits_its_batch_as_before(processes, recorded, passes):
    assert passes_before(32, processes, recorded) == passes


def test_lines_of_the_plan():
    assert split_lines(32, 1, 1e9, 2e9) == []
    said = " ".join(line.strip() for line in split_lines(8, 4, 43.41e9, 17.9e9))
    assert "32 images per step in 4 passes of 8, as together they need about 43.4 GB" in said
    assert said.endswith("and 17.9 GB may be taken")
    resumed = split_lines(8, 4, 43.41e9, 50e9)  # where there is more memory now
    assert resumed == ["memory      32 images per step in 4 passes of 8, as before"]
    assert shortage_lines(1e9, 1e9) == []
    assert "about 1.2 GB are needed, and 1.0 GB may be taken" in shortage_lines(1.2e9, 1e9)[0]
