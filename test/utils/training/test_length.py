"""How many steps fit into some minutes, and how often previews are drawn."""

import pytest

from utils.errors import UserError
from utils.training import length
from utils.training.length import Pace, RunLength, kept_steps, steps_within, usual_preview_epochs

PER_EPOCH = 50


@pytest.fixture(autouse=True)
def started_ten_seconds_ago(monkeypatch):
    monkeypatch.setattr(length, "seconds_since_start", lambda: 10.0)


def seconds_of(steps, pace, preview_epochs, share=0.0):
    """All that a run does, added up."""
    previews = -(-steps // (preview_epochs * PER_EPOCH))
    drawing = previews * pace.rows_per_preview / pace.images_per_step / 3 * pace.seconds_per_step
    return 10.0 + length.SECONDS_AT_THE_END + steps * pace.seconds_per_step * (1 + share) + drawing


@pytest.mark.parametrize("minutes", [1, 8, 120.5])
@pytest.mark.parametrize("pace", [Pace(0.1, 32, 4000), Pace(2.5, 16, 4000), Pace(0.1, 8, 0)])
@pytest.mark.parametrize("preview_epochs", [None, 1, 7])
def test_the_steps_fill_the_minutes(minutes, pace, preview_epochs):
    steps = steps_within(minutes, pace, preview_epochs, PER_EPOCH)
    if preview_epochs is None:
        preview_epochs = usual_preview_epochs(steps, PER_EPOCH, pace.steps_per_preview)
    used = seconds_of(steps, pace, preview_epochs) / 60
    if steps > length.FEWEST_STEPS:
        assert used <= minutes + 1e-9
        one_preview = pace.rows_per_preview / pace.images_per_step / 3 * pace.seconds_per_step
        assert used > minutes - (2 * pace.seconds_per_step + 2 * one_preview) / 60


@pytest.mark.parametrize("images", [0, 100, 500])
def test_evaluations_are_counted_as_they_will_be(images):
    """20 of them, each of so many images in 25 calls."""
    pace = Pace(0.1, 32, 0.0)

    def share(steps):
        return 0.02 + 20 * images * 25 / 3 / (steps * 32)

    steps = steps_within(8, pace, 1, PER_EPOCH, share)
    used = seconds_of(steps, pace, 1, share(steps))
    assert 8 * 60 - 1 < used <= 8 * 60
    assert images == 0 or steps < 4580


@pytest.mark.parametrize(
    ("beside", "per_epoch", "more", "seconds"),
    [
        (False, 102, 0, 0.5),  # every 102 steps
        (False, 102, 3, 0.5),  # and every 3 steps
        (False, 6, 0, 0.5),  # every 17 epochs, which take ten times as long
        (True, 102, 3, 0.5 - 102 * 3 / 105 * 0.05),  # meanwhile the GPU trains
        (True, 102, 0, 0.0),
    ],
)
def test_saves_are_counted(beside, per_epoch, more, seconds):
    pace = Pace(0.05, 32, 0.0, 1e8, more, beside)
    steps = steps_within(8, pace, 1, per_epoch)
    saves = steps / 102 + (steps / more if more else 0)
    used = 10.0 + length.SECONDS_AT_THE_END + steps * 0.05 + saves * seconds
    assert 8 * 60 - 2 < used <= 8 * 60


def test_what_comes_before_and_after_the_steps_is_counted():
    """A row of a network call takes a third of a step's image."""
    pace = Pace(0.1, 32, 0.0)
    alone = steps_within(8, pace, 1, PER_EPOCH)
    later = steps_within(8, pace, 1, PER_EPOCH, seconds_ahead=60.0)
    assert later == pytest.approx(alone - 600, abs=1)
    at_the_end = Pace(0.1, 32, 0.0, rows_at_the_end=3 * 32 * 600)
    assert steps_within(8, at_the_end, 1, PER_EPOCH) == pytest.approx(alone - 600, abs=1)


@pytest.mark.parametrize(
    ("megabytes", "seconds_per_epoch", "epochs"),
    [
        (1, 0.001, 1),  # a tiny network
        (10, 0.001, 1),
        (10.1, 0.001, 505),
        (40, 8.0, 1),  # the demo on a CPU
        (40, 2.0, 1),
        (40, 1.9, 2),
        (40, 0.1, 20),  # 500 images on a GPU
        (700, 0.1, 350),
    ],
)
def test_saves_take_a_tenth_of_the_time_at_most(megabytes, seconds_per_epoch, epochs):
    assert length.usual_save_epochs(megabytes * 1e6, seconds_per_epoch) == epochs


def test_a_run_has_a_few_steps_even_where_the_time_is_over():
    assert steps_within(0.1, Pace(0.1, 32, 0), None, PER_EPOCH) == length.FEWEST_STEPS
    assert steps_within(0.5, Pace(100.0, 32, 0), None, PER_EPOCH) == length.FEWEST_STEPS


def test_previews_take_a_twentieth_of_the_run_at_most():
    assert usual_preview_epochs(1000, 10, steps_per_preview=0.0) == 10  # ten of them
    assert usual_preview_epochs(1000, 10, steps_per_preview=1.0) == 10
    assert usual_preview_epochs(1000, 10, steps_per_preview=25.0) == 34  # two and the last one
    assert usual_preview_epochs(1000, 10, steps_per_preview=60.0) == 100  # the last one alone
    assert usual_preview_epochs(90, 100, steps_per_preview=0.1) == 1  # not a whole epoch


def test_a_length_in_words_and_in_the_checkpoint():
    whole = RunLength(1475, 59, 32)
    assert whole.in_words() == "25 epochs x 59"
    assert whole.record() == {"epochs": 25, "total_steps": 1475}
    part = RunLength(3307, 1869, 32, minutes=8.0)
    assert part.in_words() == "1.77 epochs of 1,869"
    assert part.record() == {"epochs": 2, "total_steps": 3307, "minutes": 8.0}


def test_a_resumed_run_keeps_its_length():
    epochs, minutes = {"epochs": 25, "total_steps": 1475}, {"total_steps": 3300, "minutes": 8.0}
    assert kept_steps(epochs, None) == (None, None)
    assert kept_steps({}, None) == (None, None)
    assert kept_steps(minutes, None) == (3300, 8.0)
    assert kept_steps(minutes, 8.0) == (3300, 8.0)
    assert kept_steps(minutes, 16.0) == (6600, 16.0)
    assert kept_steps(minutes, 1e-5) == (length.FEWEST_STEPS, 1e-5)  # as a new run has
    with pytest.raises(UserError, match="25 epochs"):
        kept_steps(epochs, 8.0)


def test_what_makes_a_run_twice_as_long():
    assert length.twice_as_long(30, None) == "--epochs 60"
    assert length.twice_as_long(2, 8.0) == "--minutes 16"
    assert length.twice_as_long(1, 0.25) == "--minutes 0.5"


@pytest.mark.parametrize(
    ("minutes", "seconds", "words"),
    [
        (8, 0.2, []),
        (1.5, 0.2, []),
        (0.5, 0.2, ["10 s of --minutes have gone by before the first step"]),
        (0.2, 1.0, ["--minutes 0.2 is less than what has gone by (10 s) and the 10 steps"]),
        (8, 60.0, ["--minutes 8 is less than"]),
    ],
)
def test_what_is_said_of_short_runs(minutes, seconds, words):
    found = length.minutes_remarks(minutes, seconds)
    assert len(found) == len(words)
    assert all(text in remark for remark, text in zip(found, words, strict=True))
