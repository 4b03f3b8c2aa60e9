"""Batches and their random numbers, prepared ahead or not: the same numbers."""

import threading

import pytest
import torch

from utils.errors import ReadError
from utils.ranks import Ranks
from utils.training.prefetch import PreparedBatches
from utils.training.randomness import image_generators

CPU = torch.device("cpu")


def pixels(count):
    for i in range(count):
        yield torch.full((2, 3), float(i)), torch.tensor([i, i + 1])


def draw(batch, generators):
    return {"noise": torch.stack([torch.randn(3, generator=g) for g in generators])}


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_draws_depend_on_step_and_place(ahead, accumulate):
    prepared = PreparedBatches(pixels(6), draw, CPU, 7, 4, accumulate, ahead=ahead)
    found = list(prepared)
    prepared.close()
    assert len(found) == 6
    for micro, item in enumerate(found):
        step, turn = divmod(micro, accumulate)
        generators = image_generators(7, 4 + step, 2 * turn, 2, Ranks(), 4)
        expected = draw(item.batch, generators)["noise"]
        assert torch.equal(item.draws["noise"], expected)
        assert item.batch[0][0, 0] == micro and len(item) == 2


@pytest.mark.parametrize("ahead", [False, True])
def test_an_unreadable_image_comes_through(ahead):
    def source():
        yield from pixels(2)
        raise ReadError("gone")

    prepared = PreparedBatches(source(), draw, CPU, 0, 0, ahead=ahead)
    assert len(next(prepared)) == 2 and len(next(prepared)) == 2
    with pytest.raises(ReadError, match="gone"):
        next(prepared)
    prepared.close()


def test_the_next_batch_is_prepared_while_this_one_is_used():
    begun = [threading.Event() for _ in range(3)]

    def source():
        for i, batch in enumerate(pixels(3)):
            begun[i].set()
            yield batch

    prepared = PreparedBatches(source(), draw, CPU, 0, 0, ahead=True)
    next(prepared)
    assert begun[1].wait(10)  # nobody has asked for it yet
    assert not begun[2].is_set()  # one ahead, and no more
    prepared.close()


def test_what_is_drawn_ahead_does_not_touch_the_global_generator():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    list(PreparedBatches(pixels(3), draw, CPU, 0, 0, ahead=False))
    assert torch.equal(torch.get_rng_state(), before)
