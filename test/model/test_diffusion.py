"""What a network learns: weights of the loss, and time steps that are spread over a step."""

import pytest
import torch

from model.diffusion import LOSS_WEIGHTS, GaussianDiffusion
from model.randomness import BatchGenerators, mix

T = 1000


def generators_of(places, global_batch, seed=0):
    each = (torch.Generator().manual_seed(mix(seed, place)) for place in places)
    return BatchGenerators(each, places, global_batch)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_min_snr_weighs_the_error_of_the_image(prediction, schedule):
    """Whatever is predicted, the weighted loss is min(SNR, 5) times the squared error of x0."""
    diffusion = GaussianDiffusion(noise_schedule=schedule, prediction=prediction)
    generator = torch.Generator().manual_seed(0)
    t = torch.tensor([0, 1, 50, 300, 500, 700, 900])
    x0, noise, error = (
        torch.randn(len(t), 2, 3, 3, generator=generator, dtype=torch.float64) for _ in range(3)
    )
    draws = {"t": t, "noise": noise}

    def network(x_t, t, labels):
        return diffusion.target(x0, noise, t) + 0.1 * error

    losses = diffusion.losses_of(network, x0, None, draws, weight="min_snr")
    x_t, _ = diffusion.noise_images(x0, t, noise)
    estimate, _ = diffusion.x0_and_eps(x_t, t, network(x_t, t, None))
    abar = diffusion.alphas_cumprod[t]
    snr = abar / (1 - abar)
    expected = snr.clamp(max=5) * (estimate - x0).square().flatten(1).mean(1)
    assert (losses / expected - 1).abs().max() < 1e-8
    assert snr.max() > 5 > snr.min()


def test_uniform_weights_change_nothing():
    diffusion = GaussianDiffusion()
    t = torch.arange(0, T, 100)
    assert torch.equal(diffusion.loss_weight(t, "uniform"), torch.ones(10))
    assert LOSS_WEIGHTS == ("uniform", "min_snr")
    with pytest.raises(ValueError, match="min_snr"):
        diffusion.loss_weight(t, "p2")


@pytest.mark.parametrize("global_batch", [1, 3, 32, 1000])
def test_a_step_s_time_steps_are_spread_evenly(global_batch):
    """One in each of as many equal parts as there are images."""
    diffusion = GaussianDiffusion()
    for seed in range(3):
        t = diffusion.sample_time_steps(
            global_batch, generators_of(range(global_batch), global_batch, seed)
        )
        part = (t.double() + 0.5) / T * global_batch
        assert part.floor().tolist() == list(range(global_batch)) or global_batch > T / 40
        low = torch.arange(global_batch).double() * T / global_batch
        assert (t + 1 > low).all() and (t <= low + T / global_batch).all()


def test_an_image_s_time_step_depends_on_its_place_alone():
    diffusion = GaussianDiffusion()
    whole = diffusion.sample_time_steps(8, generators_of(range(8), 8))
    for places in (range(0, 8, 2), range(1, 8, 2), range(5, 8)):
        part = diffusion.sample_time_steps(len(places), generators_of(places, 8))
        assert torch.equal(part, whole[list(places)])


def test_over_many_steps_all_time_steps_are_equally_likely():
    diffusion = GaussianDiffusion(noise_steps=10)
    steps = [diffusion.sample_time_steps(4, generators_of(range(4), 4, k)) for k in range(5000)]
    counts = torch.bincount(torch.cat(steps), minlength=10) / 20_000
    assert (counts - 0.1).abs().max() < 0.008


def test_other_generators_draw_as_before():
    """One generator for all, or a plain list: independent, uniform."""
    diffusion = GaussianDiffusion(noise_steps=4)
    generators = [torch.Generator().manual_seed(5) for _ in range(6)]
    assert len(set(diffusion.sample_time_steps(6, generators).tolist())) == 1
