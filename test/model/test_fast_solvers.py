"""DPM-Solver++(2M) and UniPC: against diffusers, and against the exact flow of Gaussian data."""

import dataclasses
import itertools
import math

import diffusers
import numpy as np
import pytest
import torch

from model.samplers import SAMPLERS, build_sampler
from model.samplers.time_grid import CURVES, TIMESTEP_SPACINGS, time_grid

T = 1000
SHAPE = (3, 1, 4, 4)
LINEAR = np.cumprod(1 - np.linspace(1e-4, 2e-2, T))
SOLVERS = ("dpmpp2m", "unipc")


def smooth_eps(x, t, labels=None):
    """Some nonlinear network."""
    sigma = torch.from_numpy(np.sqrt(1 - LINEAR)).to(x)[t].view(-1, 1, 1, 1)
    return sigma * x + 0.1 * (1 - sigma) * torch.sin(5 * x)


def states_of(sampler, network, x_T):
    """x after each network call."""
    states = []
    sampler.sample(
        network,
        len(x_T),
        tuple(x_T.shape[2:]),
        x_T.shape[1],
        seeds=range(len(x_T)),
        x_T=x_T,
        callback=lambda i, x, x0: states.append(x),
    )
    return states


def noise(seed=0, dtype=torch.float32):
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def largest_difference(ours, theirs):
    assert len(ours) == len(theirs) > 0
    return max((a - b).abs().max().item() for a, b in zip(ours, theirs, strict=True))


# --- The same trajectory as diffusers ---


@pytest.mark.parametrize("steps", [2, 7, 10, 25])
@pytest.mark.parametrize("spacing", TIMESTEP_SPACINGS)
def test_2m_equals_diffusers_on_any_grid(spacing, steps):
    ours = build_sampler(
        "dpmpp2m", {}, sample_steps=steps, timestep_spacing=spacing, clip_sample=False
    )
    reference = diffusers.DPMSolverMultistepScheduler(
        T, 1e-4, 2e-2, "linear", final_sigmas_type="zero", lower_order_final=True
    )
    reference.alphas_cumprod = torch.from_numpy(LINEAR)
    reference.set_timesteps(timesteps=ours.grid)
    # its sigmas once more in float64: it keeps float32 ones, and asks alpha and sigma of those
    sigmas = ((1 - LINEAR) / LINEAR) ** 0.5
    reference.sigmas = torch.from_numpy(np.append(sigmas[ours.grid], 0.0))
    x = noise(dtype=torch.float64)
    found = states_of(ours, smooth_eps, x)
    theirs = []
    for t in reference.timesteps:
        x = reference.step(smooth_eps(x, t.expand(3)), t, x).prev_sample
        theirs.append(x)
    assert largest_difference(found, theirs) < 2e-5


@pytest.mark.parametrize("steps", [4, 10, 25, 50])
def test_unipc_equals_diffusers_where_the_grids_agree(steps):
    assert T % steps == 0
    ours = build_sampler("unipc", {}, sample_steps=steps, clip_sample=False)
    reference = diffusers.UniPCMultistepScheduler(
        T, 1e-4, 2e-2, "linear", timestep_spacing="trailing", final_sigmas_type="zero"
    )
    reference.set_timesteps(steps)
    assert reference.timesteps.tolist() == ours.grid
    sigmas = ((1 - LINEAR) / LINEAR) ** 0.5
    reference.sigmas = torch.from_numpy(np.append(sigmas[ours.grid], 0.0))
    x = noise(1, torch.float64)
    found = states_of(ours, smooth_eps, x)
    theirs = []
    for t in reference.timesteps:
        x = reference.step(smooth_eps(x, t.expand(3)), t, x).prev_sample
        theirs.append(x)
    assert largest_difference(found, theirs) < 2e-5


# --- Gaussian data, whose flow is known exactly ---

MEAN, STD = 0.3, 0.4


def exact_network(sampler):
    """The best prediction for pixels from N(MEAN, STD^2), in the sampler's parametrisation."""

    def network(x, t, labels=None):
        signal, sigma = sampler.levels.alpha(t).to(x), sampler.levels.sigma(t).to(x)
        variance = signal**2 * STD**2 + sigma**2
        eps = sigma * (x - signal * MEAN) / variance
        x0 = MEAN + signal * STD**2 * (x - signal * MEAN) / variance
        a, b = sampler.velocity_weights(signal, sigma)
        return {"eps": eps, "x0": x0, "v": a * eps - b * x0}[sampler.prediction]

    return network


def marginal(sampler, t):
    """Mean and standard deviation of x_t."""
    at = torch.tensor([t])
    signal, sigma = sampler.levels.alpha(at).item(), sampler.levels.sigma(at).item()
    return signal * MEAN, math.hypot(signal * STD, sigma)


@pytest.mark.parametrize(("name", "lowest"), [("dpmpp2m", 1.9), ("unipc", 2.8)])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_error_falls_at_the_solver_s_order(name, lowest, schedule):
    """Inside the schedule: from t = 900 to 100, against the exact flow, which keeps the
    standardised value of each pixel.
    """
    x_T = torch.linspace(-1.5, 1.5, 48, dtype=torch.float64).view(SHAPE)
    errors = []
    for steps in (25, 50, 100, 200):
        sampler = build_sampler(name, {"noise_schedule": schedule}, clip_sample=False)
        grid = [round(900 - i * 800 / steps) for i in range(steps + 1)]
        sampler.grid = grid
        network = exact_network(sampler)
        start_mean, start_std = marginal(sampler, grid[0])
        trajectory = sampler.start(3, (4, 4), 1, seeds=range(3), x_T=start_mean + start_std * x_T)
        states = {}
        for denoised, _ in sampler.denoise(network, trajectory):
            done = denoised.position[0]
            # the corrected image at the last grid point, where there is a corrector
            states[done] = denoised.history["x"] if name == "unipc" else denoised.x
        found = states[steps + 1] if name == "unipc" else states[steps]
        mean, std = marginal(sampler, grid[-1])
        errors.append((found - mean - std * x_T).abs().max().item())
    orders = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert orders[-1] >= lowest, (errors, orders)


@pytest.mark.parametrize("schedule", ["cosine", "flow"])
@pytest.mark.parametrize("name", SOLVERS)
def test_gaussian_data_comes_back(name, schedule):
    config = {"noise_schedule": schedule, "prediction": "v"}
    sampler = build_sampler(
        name, config, sample_steps=50, timestep_spacing="logsnr", clip_sample=False
    )
    x_T = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    x = states_of(sampler, exact_network(sampler), x_T)[-1].double()
    mean_T, std_T = marginal(sampler, T - 1)
    exact = MEAN + STD * (x_T - mean_T) / std_T
    assert (x - exact).abs().max() < 0.01


def test_ten_calls_are_nearer_to_the_data_than_ten_of_ddim(demo_covariance):
    """The Frechet distance between the Gaussian of the demo images and what becomes of pure noise
    in 10 calls, as a share of the data's own spread. (Measured: 32% and 2.2%.)
    """
    eigenvalues = torch.linalg.eigvalsh(demo_covariance).clamp(min=0)

    def distance(name, spacing):
        """A linear solver takes each eigendirection's noise to a multiple of it."""
        config = {"noise_schedule": "cosine", "prediction": "v"}
        sampler = build_sampler(
            name, config, sample_steps=10, timestep_spacing=spacing, clip_sample=False
        )

        def network(x, t, labels=None):
            signal, sigma = sampler.levels.alpha(t).to(x), sampler.levels.sigma(t).to(x)
            variance = signal**2 * eigenvalues + sigma**2
            return signal * sigma * x / variance - sigma * signal * eigenvalues * x / variance

        ones = torch.ones(1, 1, 1, len(eigenvalues), dtype=torch.float64)
        factors = states_of(sampler, network, ones)[-1].flatten()
        squared = ((factors.abs() - eigenvalues.sqrt()) ** 2).sum()
        return (squared / eigenvalues.sum()).sqrt().item()

    assert distance("dpmpp2m", "logsnr") <= 0.03
    assert distance("ddim", "trailing") > 0.3


@pytest.fixture(scope="module")
def demo_covariance():
    from helpers import ROOT
    from PIL import Image

    files = sorted((ROOT / "datasets" / "demo").rglob("*.png"))
    pixels = np.stack([np.array(Image.open(file).convert("L")) for file in files])
    x = torch.from_numpy(pixels).double().flatten(1) / 127.5 - 1
    return torch.cov(x.T)


# --- Grids ---


@pytest.mark.parametrize("noise_steps", [1, 2, 50, 1000])
@pytest.mark.parametrize("schedule", ["linear", "cosine", "sqrt", "flow"])
@pytest.mark.parametrize("spacing", CURVES)
def test_curves_descend_from_the_last_step(spacing, schedule, noise_steps):
    config = {"noise_schedule": schedule, "noise_steps": noise_steps, "prediction": "v"}
    for steps in {1, min(2, noise_steps), min(7, noise_steps), noise_steps}:
        grid = build_sampler("ddim", config, sample_steps=steps, timestep_spacing=spacing).grid
        assert len(grid) == steps
        assert grid[0] == noise_steps - 1
        assert grid[-1] >= 0
        assert all(a > b for a, b in itertools.pairwise(grid))


def test_karras_follows_its_formula():
    log_ratios = np.log(np.sqrt((1 - LINEAR) / LINEAR))
    grid = time_grid("karras", T, 10, log_ratios.tolist())
    first = min(80.0, math.exp(log_ratios[-1]))
    curve = (first ** (1 / 7) + np.arange(10) / 9 * (0.02 ** (1 / 7) - first ** (1 / 7))) ** 7
    expected = [int(np.abs(log_ratios - math.log(value)).argmin()) for value in curve]
    assert grid == [T - 1, *expected[1:]]  # the network is asked at the noisiest step, too


# --- Edges ---


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("spacing", TIMESTEP_SPACINGS)
@pytest.mark.parametrize("schedule", ["linear", "cosine", "sqrt", "flow"])
@pytest.mark.parametrize("steps", [1, 2, 3, 50])
def test_a_network_that_knows_the_image_gives_it(name, spacing, schedule, steps):
    image = torch.linspace(-1, 1, 16).view(1, 1, 4, 4).expand(SHAPE)
    config = {"noise_schedule": schedule, "prediction": "x0"}
    sampler = build_sampler(name, config, sample_steps=steps, timestep_spacing=spacing)
    x = sampler.sample(lambda x, t, labels=None: image, 3, (4, 4), 1, seeds=[1, 2, 3])
    assert (x - image).abs().max() < 1e-4


@pytest.mark.parametrize("schedule", ["cosine", "flow"])
@pytest.mark.parametrize("steps", [1, 2, 3, 5])
@pytest.mark.parametrize("name", SAMPLERS)
def test_gradients_flow_through_sampling(name, steps, schedule):
    """Those with respect to x_T are those of finite differences; none is NaN for a branch that is
    not taken.
    """
    config = {"noise_schedule": schedule, "prediction": "v"}
    sampler = build_sampler(name, config, sample_steps=steps, clip_sample=False)

    def run(x):
        state = sampler.start(1, (2, 2), 1, seeds=[1], x_T=x)
        while not state.all_done:
            state, _ = sampler.update(state, 0.5 * sampler.rows(state)[0])
        return state.x

    x = torch.randn(1, 1, 2, 2, dtype=torch.float64, requires_grad=True)
    run(x).sum().backward()
    step = torch.zeros_like(x)
    step[0, 0, 0, 0] = 1e-4
    with torch.no_grad():
        expected = (run(x + step) - run(x - step)).sum() / 2e-4
    assert x.grad.isfinite().all()
    assert abs(x.grad[0, 0, 0, 0] - expected) < 1e-5 * max(1, abs(expected))


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_change_between_steps_stays(name):
    """Of a network that sees the same image whatever x is, so that only x carries it on."""
    sampler = build_sampler(name, {"noise_schedule": "cosine"}, sample_steps=6, clip_sample=False)
    eps = torch.full((1, 1, 2, 2), 0.3, dtype=torch.float64)

    def run(added):
        state = sampler.start(1, (2, 2), 1, seeds=[1], x_T=torch.zeros_like(eps))
        calls = 0
        while not state.all_done:
            state, _ = sampler.update(state, eps)
            calls += 1
            if calls == 3:
                state = dataclasses.replace(state, x=state.x + added)
        return state.x

    changed = (run(1.0) - run(0.0)).abs()
    assert changed.min() > 0.5


@pytest.mark.parametrize("name", SAMPLERS)
def test_images_at_different_steps_share_a_batch(name):
    """Joined halfway, each image is what it is alone."""
    sampler = build_sampler(name, {"noise_schedule": "cosine"}, sample_steps=8)
    alone = sampler.sample(smooth_eps, 2, (4, 4), 1, seeds=[5, 6])
    early = sampler.start(1, (4, 4), 1, seeds=[5])
    for _ in range(3):
        early, _ = sampler.update(early, smooth_eps(*sampler.rows(early)[:2]))
    both = type(early).cat([early, sampler.start(1, (4, 4), 1, seeds=[6])])
    finished = {}
    while len(both):
        both, _ = sampler.update(both, smooth_eps(*sampler.rows(both)[:2]))
        for place, is_done in enumerate(both.done.tolist()):
            if is_done:
                seed = 5 if 5 not in finished else 6
                finished[seed] = sampler.finished_images(both.select([place]))[0]
        both = both.select(~both.done)
    assert (torch.stack([finished[5], finished[6]]) - alone).abs().max() < 1e-5
