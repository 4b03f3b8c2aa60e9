"""How a batch draws its time steps, and what is logged of them."""

import torch

from model.codecs import PixelCodec
from model.diffusion import GaussianDiffusion
from model.randomness import BatchGenerators
from utils.training.diffusion_task import DiffusionTask


def task_with(**options) -> DiffusionTask:
    diffusion = GaussianDiffusion(noise_schedule="cosine", prediction="v")
    return DiffusionTask(diffusion, PixelCodec(), conditional=False, **options)


def drawn(task: DiffusionTask) -> dict:
    batch = (torch.zeros(8, 1, 4, 4, dtype=torch.uint8), torch.zeros(8).long(), torch.arange(8))
    each = [torch.Generator().manual_seed(seed) for seed in range(8)]
    return task.draw(batch, BatchGenerators(each, range(8), 8))


def test_time_steps_are_drawn_by_the_weight_of_the_loss():
    uniform = drawn(task_with(loss_weight="min_snr"))
    weighted = drawn(task_with(loss_weight="min_snr", time_steps="weighted"))
    assert "density" not in uniform and len(weighted["density"]) == 8
    assert weighted["t"].min() > uniform["t"].min() and weighted["t"].max() < uniform["t"].max()
    assert torch.equal(uniform["noise"], weighted["noise"])


def test_without_a_weight_they_are_uniform():
    uniform = drawn(task_with())
    weighted = drawn(task_with(time_steps="weighted"))
    assert uniform.keys() == weighted.keys() and torch.equal(uniform["t"], weighted["t"])


def test_quarters_are_those_of_uniform_draws():
    """A loss of 3 everywhere is 3 in each quarter, however often its time steps are drawn."""
    task = task_with()
    t = torch.tensor([0, 10, 240, 300, 300, 600, 999])
    density = torch.tensor([0.5, 0.25, 2.0, 3.0, 1.0, 4.0, 0.2])
    found = task.by_quarter(3 / density, {"t": t, "density": density})
    for name, count in zip(("q1", "q2", "q3", "q4"), (6.5, 4 / 3, 0.25, 5.0), strict=True):
        total, number = found[f"loss_{name}"]
        assert abs(number - count) < 1e-6 and abs(total / number - 3) < 1e-6
    plain = task.by_quarter(torch.full((7,), 3.0), {"t": t})
    assert [pair[1].item() for pair in plain.values()] == [3, 2, 1, 1]
