"""The parts of the training loop that can be checked by themselves."""

import math

import pytest
import torch

from model.randomness import mix
from utils.ranks import Ranks
from utils.training.fit import non_finite
from utils.training.learning_rate import learning_rate
from utils.training.meter import Meter
from utils.training.randomness import image_generators


@pytest.mark.parametrize("schedule", ["linear", "cosine", "warmup_cosine", "constant"])
def test_learning_rate(schedule):
    rates = [learning_rate(step, 1000, 0.1, schedule, 50) for step in range(1000)]
    assert all(0 < rate <= 0.1 for rate in rates)
    if schedule == "constant":
        assert set(rates) == {0.1}
        return
    assert rates[-1] < 0.001
    start = 50 if schedule == "warmup_cosine" else 0
    assert all(a > b for a, b in zip(rates[start:], rates[start + 1 :], strict=False))
    if schedule == "linear":
        assert rates[0] == 0.1 and rates[500] == pytest.approx(0.05)
    if schedule == "cosine":
        assert rates[0] == 0.1 and rates[250] == pytest.approx(
            0.1 * (1 + math.cos(math.pi / 4)) / 2
        )
    if schedule == "warmup_cosine":
        assert rates[0] == pytest.approx(0.1 / 50) and all(
            a < b for a, b in zip(rates[:48], rates[1:49], strict=True)
        )
        assert learning_rate(0, 10, 0.1, schedule, 0) == 0.1


def test_seeds_are_scattered():
    seeds = {
        mix(seed, step, place) for seed in range(3) for step in range(100) for place in range(100)
    }
    assert len(seeds) == 30_000
    low_bits = (
        torch.tensor([seed & 0xFFFFFFFF for seed in seeds]).double() / 2**32
    )  # all that the CPU generator uses
    assert abs(low_bits.mean() - 0.5) < 0.01 and len({seed & 0xFFFFFFFF for seed in seeds}) > 29_990


def test_an_image_s_generator_depends_on_its_global_place_alone():
    def seeds(world_size, accumulate, batch):
        found = {}
        for rank in range(world_size):
            for micro in range(accumulate):
                generators = image_generators(
                    7, 3, micro * batch, batch, Ranks(rank, world_size), 24
                )
                found |= {
                    (micro * batch + i) * world_size + rank: g.initial_seed()
                    for i, g in enumerate(generators)
                }
        return found

    assert (
        seeds(1, 1, 8) == seeds(2, 1, 4) == seeds(2, 2, 2) == seeds(4, 1, 2)
        and len(seeds(1, 1, 8)) == 8
    )


def test_meter_gives_means():
    meter = Meter(Ranks())
    for step in range(2):
        sums = {"loss": torch.tensor([3.0, 2.0]), "loss_q1": torch.tensor([0.0, 0.0])}
        meter.add(step, 0.1, torch.tensor(2.0), sums, 8)
    first, second = meter.flush(steps_per_epoch=1)
    assert (first["step"], first["epoch"], second["step"], second["epoch"]) == (1, 1, 2, 2)
    assert first["loss"] == 1.5 and first["loss_q1"] != first["loss_q1"] and first["grad_norm"] == 2
    assert first["images_per_second"] > 0 and meter.flush(1) == []


def test_what_is_no_number_stops_the_run():
    good = {"step": 1, "loss": 1.0, "grad_norm": 1.0}
    fp32, fp16 = (torch.amp.GradScaler("cpu", enabled=enabled) for enabled in (False, True))
    fp16._lazy_init_scale_growth_tracker(torch.device("cpu"))
    assert non_finite([good], fp32, lambda step: []) is None
    for bad in ({**good, "loss": math.nan}, {**good, "grad_norm": math.inf}):
        message = non_finite([good, bad], fp32, lambda step: [f"file of step {step}"])
        assert message.startswith("step 1: ") and "--lr" in message and "file of step 0" in message
        assert (
            non_finite([good, bad], fp16, lambda step: []) is None
        )  # the scaler skips such a step
        fp16.load_state_dict({**fp16.state_dict(), "scale": 0.5})  # after many skipped in a row
        assert non_finite([bad, bad], fp16, lambda step: []) is not None
        fp16.load_state_dict({**fp16.state_dict(), "scale": 1024.0})
