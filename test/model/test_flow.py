"""Rectified flow, shifted noise and a last step without signal: against diffusers and formulas."""

import math

import diffusers
import numpy as np
import pytest
import torch

from model.diffusion import GaussianDiffusion
from model.noise_schedule import NOISE_SCHEDULES
from model.samplers import SAMPLERS, build_sampler

T = 1000
FLOW = {"noise_schedule": "flow", "prediction": "v"}


def some_velocity(x, t, labels=None):
    """Some nonlinear network."""
    return 0.8 * x + 0.3 * torch.sin(3 * x) * (t.view(-1, 1, 1, 1) / T)


def trajectory(sampler, network, x_T):
    states = []
    sampler.sample(
        network,
        len(x_T),
        tuple(x_T.shape[2:]),
        x_T.shape[1],
        x_T=x_T,
        seeds=range(len(x_T)),
        callback=lambda i, x, x0: states.append(x),
    )
    return states


# --- Rectified flow ---


def test_an_image_is_noised_along_a_straight_line():
    diffusion = GaussianDiffusion(**FLOW)
    x0 = torch.rand(3, 1, 4, 4, dtype=torch.float64)
    noise = torch.randn(3, 1, 4, 4, dtype=torch.float64)
    t = torch.tensor([0, 499, 999])
    time = torch.tensor([0.001, 0.5, 1.0], dtype=torch.float64).view(-1, 1, 1, 1)
    x_t, _ = diffusion.noise_images(x0, t, noise)
    assert (x_t - ((1 - time) * x0 + time * noise)).abs().max() < 1e-12
    target = diffusion.target(x0, noise, t)
    assert (target - (noise - x0)).abs().max() == 0
    found_x0, found_noise = diffusion.x0_and_eps(x_t, t, target)
    assert (found_x0 - x0).abs().max() < 1e-12
    assert (found_noise - noise).abs().max() < 1e-12


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 10, 50])
def test_ddim_is_euler_of_diffusers(steps, shift):
    ours = build_sampler(
        "ddim", {**FLOW, "noise_shift": shift}, sample_steps=steps, clip_sample=False
    )
    sigmas = ours.levels.sigmas_squared.sqrt()[ours.grid].numpy()
    reference = diffusers.FlowMatchEulerDiscreteScheduler(T, shift=1.0)
    reference.set_timesteps(sigmas=sigmas.tolist())
    x = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    found = trajectory(ours, some_velocity, x)
    for t, step, expected in zip(reference.timesteps, ours.grid, found, strict=True):
        velocity = some_velocity(x, torch.full((3,), step))
        x = reference.step(velocity, t, x).prev_sample
        assert (x - expected).abs().max() < 1e-4


def test_a_shift_is_that_of_diffusers():
    levels = GaussianDiffusion(**FLOW, noise_shift=3.0).levels
    reference = diffusers.FlowMatchEulerDiscreteScheduler(T, shift=3.0)
    theirs = reference.sigmas.flip(0)[-T:].double()
    assert (levels.sigmas_squared.sqrt() - theirs).abs().max() < 1e-6


@pytest.mark.parametrize("prediction", ["v", "x0"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_gaussian_data_comes_back(name, prediction):
    mean, std = 0.3, 0.4
    config = {"noise_schedule": "flow", "prediction": prediction}
    sampler = build_sampler(name, config, sample_steps=500, clip_sample=False)

    def network(x, t, labels=None):
        time = ((t.to(x) + 1) / T).view(-1, 1, 1, 1)
        variance = (1 - time) ** 2 * std**2 + time**2
        innovation = (x - (1 - time) * mean) / variance
        x0 = mean + (1 - time) * std**2 * innovation
        return x0 if prediction == "x0" else time * innovation - x0

    x_T = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    x = trajectory(sampler, network, x_T)[-1]
    if not sampler.draws_noise:
        # the flow keeps the standardised value of each pixel; the order of Euler is 1
        assert (x - (mean + std * x_T)).abs().max() < 0.01
    assert abs(x.mean() - mean) < 5 * std / 64 + 0.01
    assert abs(x.std() - std) < 5 * std / (2 * 4096) ** 0.5 + 0.01


def test_eps_is_refused_where_it_says_nothing():
    with pytest.raises(ValueError, match="eps"):
        GaussianDiffusion(noise_schedule="flow", prediction="eps")
    with pytest.raises(ValueError, match="eps"):
        GaussianDiffusion(zero_terminal_snr=True)


# --- The weight of the loss ---


@pytest.mark.parametrize("schedule", ["cosine", "flow"])
def test_min_snr_weighs_the_error_of_the_image(schedule):
    """Whatever the network predicts: min(SNR, 5) times the squared error of x0."""
    x0 = torch.rand(4, 1, 2, 2, dtype=torch.float64)
    noise = torch.randn(4, 1, 2, 2, dtype=torch.float64)
    t = torch.tensor([3, 200, 600, 990])
    for prediction in ("v", "x0"):
        diffusion = GaussianDiffusion(noise_schedule=schedule, prediction=prediction)
        x_t, _ = diffusion.noise_images(x0, t, noise)
        wrong = diffusion.target(x0, noise, t) + 0.1
        found, _ = diffusion.x0_and_eps(x_t, t, wrong)
        snr = diffusion.levels.log_snr(t).exp().flatten()
        expected = snr.clamp(max=5) * (found - x0).square().mean((1, 2, 3))
        weighted = diffusion.loss_weight(t, "min_snr") * 0.1**2
        assert (weighted - expected).abs().max() < 1e-9


# --- More noise at each step ---


@pytest.mark.parametrize("schedule", [*NOISE_SCHEDULES, "flow"])
def test_a_shift_moves_the_log_snr(schedule):
    plain = GaussianDiffusion(noise_schedule=schedule, prediction="v").levels
    shifted = GaussianDiffusion(noise_schedule=schedule, prediction="v", noise_shift=2.0).levels
    t = torch.arange(T - 1)
    moved = plain.log_snr(t) - shifted.log_snr(t)
    assert (moved - 2 * math.log(2)).abs().max() < 1e-6


# --- A last step without signal ---


@pytest.mark.parametrize("schedule", ["linear", "cosine", "sqrt_linear"])
def test_zero_terminal_snr_equals_diffusers(schedule):
    ours = GaussianDiffusion(noise_schedule=schedule, prediction="v", zero_terminal_snr=True)
    plain = GaussianDiffusion(noise_schedule=schedule, prediction="v")
    from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

    abar = plain.alphas_cumprod
    betas = 1 - torch.cat([abar[:1], abar[1:] / abar[:-1]])
    theirs = torch.cumprod(1 - rescale_zero_terminal_snr(betas), 0)
    assert ours.alphas_cumprod[-1] == 0
    assert (ours.alphas_cumprod - theirs).abs().max() < 1e-9


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("spacing", ["trailing", "karras"])
def test_samplers_start_from_pure_noise(name, spacing):
    config = {"zero_terminal_snr": True, "prediction": "v", "noise_schedule": "linear"}
    sampler = build_sampler(name, config, sample_steps=20, timestep_spacing=spacing)
    image = torch.linspace(-1, 1, 16).view(1, 1, 4, 4).expand(2, 1, 4, 4)

    def network(x, t, labels=None):
        """Knows the image; the noise is what is left."""
        alpha, sigma = sampler.levels.alpha(t).to(x), sampler.levels.sigma(t).to(x)
        noise = (x - alpha * image) / sigma
        return alpha * noise - sigma * image

    x = sampler.sample(network, 2, (4, 4), 1, seeds=[1, 2])
    assert np.isfinite(x.numpy()).all()
    assert (x - image).abs().max() < 1e-4


def test_a_single_step_has_no_terminal_step_apart():
    with pytest.raises(ValueError, match="noise_steps"):
        GaussianDiffusion(noise_steps=1, prediction="v", zero_terminal_snr=True)


def test_what_is_not_set_is_not_in_the_config():
    """So that a run from before these options existed resumes."""
    assert "noise_shift" not in GaussianDiffusion().config
    config = GaussianDiffusion(prediction="v", noise_shift=2.0, zero_terminal_snr=True).config
    assert GaussianDiffusion(**config).config == config
