"""What guides images where not everything is said."""

import pytest

from utils.guidance_choice import Guidable, Guidance

NOTHING = (None, None, None)
UNLABELLED = Guidance(1.0, 2.0, False)


@pytest.mark.parametrize(
    ("has_guide", "was_trained", "asked", "expected"),
    [
        (True, True, NOTHING, Guidance(1.0, 1.5)),
        (True, False, NOTHING, Guidance(1.0, 1.5)),
        (False, True, NOTHING, Guidance(1.5, 1.0)),
        (False, False, NOTHING, Guidance(1.0, 1.0)),
        # One way, unless both are asked for
        (True, True, (3.0, None, None), Guidance(3.0, 1.0)),
        (True, True, (None, 3.0, None), Guidance(1.0, 3.0)),
        (True, True, (None, 1.0, None), Guidance(1.5, 1.0)),
        (True, True, (2.0, 3.0, None), Guidance(2.0, 3.0)),
        (True, True, (None, None, False), Guidance(1.0, 1.5, False)),
        (True, True, (None, 2.0, False), UNLABELLED),
    ],
)
def test_what_is_usual(has_guide, was_trained, asked, expected):
    assert Guidable(has_guide, was_trained).choose(*asked) == expected


@pytest.mark.parametrize(
    ("has_guide", "was_trained", "asked", "expected"),
    [
        (True, True, NOTHING, UNLABELLED),
        (True, True, (1.0, None, None), Guidance(1.0, 1.0, False)),
        (True, True, (None, 3.0, None), Guidance(1.0, 3.0, False)),
        (True, True, (None, None, True), Guidance(1.0, 2.0, True)),
        # What the file can do no longer
        (False, True, NOTHING, Guidance(1.5, 1.0, False)),
        (True, False, NOTHING, Guidance(1.0, 1.5, True)),
    ],
)
def test_what_was_recommended(has_guide, was_trained, asked, expected):
    assert Guidable(has_guide, was_trained, recommended=UNLABELLED).choose(*asked) == expected


@pytest.mark.parametrize(
    ("has_guide", "asked", "expected"),
    [
        (True, (3.0, None, None), Guidance(1.0, 1.5)),
        (True, (3.0, 2.0, False), Guidance(1.0, 2.0)),
        (True, (1.0, None, None), Guidance()),
        (False, (3.0, None, None), Guidance()),
        (False, (None, None, False), Guidance()),
    ],
)
def test_where_nothing_can_be_told(has_guide, asked, expected):
    assert Guidable(has_guide, False, can_be_told=False).choose(*asked) == expected


def test_a_named_guide_leads():
    assert Guidable(True, True).choose(2.0, None, None, True) == Guidance(2.0, 1.5)
    plain = Guidance(1.0, 1.0)
    assert Guidable(True, True, recommended=plain).choose(*NOTHING) == plain
    assert Guidable(True, True, recommended=plain).choose(*NOTHING, True) == Guidance(1.0, 1.5)


@pytest.mark.parametrize(
    ("guidance", "rows", "text"),
    [
        (Guidance(), 1, "no guidance"),
        (Guidance(cfg_scale=0.0), 1, "cfg 0"),
        (Guidance(cfg_scale=1.5), 2, "cfg 1.5"),
        (Guidance(guide_scale=1.25), 2, "guide 1.25"),
        (Guidance(2.0, 1.5, False), 4, "cfg 2 and guide 1.5 without labels"),
    ],
)
def test_what_it_costs_and_is_called(guidance, rows, text):
    assert guidance.rows == rows
    assert str(guidance) == text


@pytest.mark.parametrize(
    ("guidance", "rows"),
    [
        (Guidance(), 10),
        (Guidance(cfg_scale=0.0), 10),
        (Guidance(cfg_scale=3.0), 14),
        (Guidance(guide_scale=2.0), 20),
        (Guidance(3.0, 2.0), 28),
    ],
)
def test_within_an_interval_fewer_calls_take_a_second_row(guidance, rows):
    assert guidance.rows_of(calls=10, guided_calls=4) == rows
