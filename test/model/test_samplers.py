"""Samplers against diffusers, against formulas written here, and against closed forms."""

import itertools
import math

import diffusers
import numpy as np
import pytest
import torch
from helpers import ROOT

from model.noise_schedule import NOISE_SCHEDULES, betas, usual_shift
from model.samplers import DDIM, DDPM, PLMS, SAMPLERS, build_sampler
from model.samplers.base import check_rows
from model.samplers.time_grid import _nearest, time_grid
from utils.generation import load_for_inference

T = 1000
SHAPE = (3, 1, 4, 4)


ABAR = np.cumprod(1 - np.linspace(1e-4, 2e-2, T))


def smooth_eps(x, t, labels=None):
    """Some network, right to first order and nonlinear: pure noise is recognised as such."""
    sigma = torch.from_numpy(np.sqrt(1 - ABAR)).to(x)[t].view(-1, 1, 1, 1)
    return sigma * x + 0.1 * (1 - sigma) * torch.sin(5 * x)


def trajectory(diffusion, network, seeds=(1, 2, 3), x_T=None, **options):
    """x after each network call."""
    states = []
    size = SHAPE[2:] if x_T is None else x_T.shape[2:]
    diffusion.sample(
        network,
        len(seeds),
        size,
        1,
        seeds=seeds,
        x_T=x_T,
        callback=lambda i, x, x0: states.append(x),
        **options,
    )
    return states


def drawn_noise(seeds, calls, shape=SHAPE[1:]):
    """What `sample` draws from the seeds: x_T, then one map per step."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return [
        torch.stack([torch.randn(shape, generator=g) for g in generators]) for _ in range(calls + 1)
    ]


def max_difference(ours, theirs):
    assert len(ours) == len(theirs) > 0
    return max((a - b).abs().max().item() for a, b in zip(ours, theirs, strict=True))


# --- The same trajectory as diffusers, wherever the grids are the same ---


def same_grid(spacing, steps):
    return spacing == "leading" or (spacing == "trailing" and T % steps == 0)


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize(
    ("spacing", "steps"), [("leading", 10), ("leading", 30), ("trailing", 50), ("trailing", 1000)]
)
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_equals_diffusers(spacing, steps, clip, eta):
    assert same_grid(spacing, steps)
    ours = trajectory(
        DDIM(sample_steps=steps, timestep_spacing=spacing, clip_sample=clip, eta=eta), smooth_eps
    )
    reference = diffusers.DDIMScheduler(
        T, 1e-4, 2e-2, "linear", clip_sample=clip, timestep_spacing=spacing
    )
    reference.set_timesteps(steps)
    x, *noises = drawn_noise((1, 2, 3), steps)
    theirs = []
    for t, noise in zip(reference.timesteps, noises, strict=True):
        eps = smooth_eps(x, t.expand(3))
        x = reference.step(
            eps, t, x, eta=eta, use_clipped_model_output=clip, variance_noise=noise
        ).prev_sample
        theirs.append(x)
    assert max_difference(ours, theirs) < 1e-4


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize(
    ("spacing", "steps"),
    [("leading", 10), ("linspace", 50), ("trailing", 30), ("trailing", 250), ("trailing", 1000)],
)
def test_ddpm_equals_diffusers(spacing, steps, clip, monkeypatch):
    ours = trajectory(
        DDPM(sample_steps=steps, timestep_spacing=spacing, clip_sample=clip), smooth_eps
    )
    reference = diffusers.DDPMScheduler(
        T, 1e-4, 2e-2, "linear", clip_sample=clip, timestep_spacing=spacing
    )
    reference.alphas_cumprod = torch.from_numpy(
        ABAR
    )  # its own, in float32, are off by more than is allowed here
    reference.set_timesteps(steps)
    x, *noises = drawn_noise((1, 2, 3), steps)
    theirs = []
    for t, noise in zip(reference.timesteps, noises, strict=True):
        monkeypatch.setattr(
            diffusers.schedulers.scheduling_ddpm,
            "randn_tensor",
            lambda *_, value=noise, **__: value,
        )
        x = reference.step(smooth_eps(x, t.expand(3)), t, x).prev_sample
        theirs.append(x)
    assert max_difference(ours, theirs) < 1e-4


@pytest.mark.parametrize(
    ("spacing", "steps"), [("leading", 10), ("leading", 70), ("trailing", 50), ("trailing", 1000)]
)
def test_plms_equals_diffusers(spacing, steps):
    assert same_grid(spacing, steps)
    ours = trajectory(
        PLMS(sample_steps=steps, timestep_spacing=spacing, clip_sample=False), smooth_eps
    )
    reference = diffusers.PNDMScheduler(
        T,
        1e-4,
        2e-2,
        "linear",
        skip_prk_steps=True,
        set_alpha_to_one=True,
        timestep_spacing=spacing,
    )
    reference.set_timesteps(steps)
    x = drawn_noise((1, 2, 3), 0)[0]
    theirs = []
    for t in reference.timesteps:
        x = reference.step(smooth_eps(x, t.expand(3)), t, x).prev_sample
        theirs.append(x)
    assert max_difference(ours, theirs) < 1e-4


# --- Elsewhere: formulas written here, in float64 ---


def reference_ddim(abar, grid, x, eta, noises, clip):
    """Song et al. equation 12, step by step, in numpy."""
    out = []
    for i, t in enumerate(grid):
        a, a_prev = abar[t], abar[grid[i + 1]] if i + 1 < len(grid) else 1.0
        eps = smooth_eps(torch.from_numpy(x), torch.full((3,), t)).numpy()
        x0 = (x - math.sqrt(1 - a) * eps) / math.sqrt(a)
        if clip:
            x0 = np.clip(x0, -1, 1)
            eps = (x - math.sqrt(a) * x0) / math.sqrt(1 - a)
        sigma = eta * math.sqrt((1 - a_prev) / (1 - a)) * math.sqrt(1 - a / a_prev)
        x = math.sqrt(a_prev) * x0 + math.sqrt(max(1 - a_prev - sigma**2, 0)) * eps
        if sigma:
            x = x + sigma * noises[i]
        out.append(torch.from_numpy(x))
    return out


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize(
    ("spacing", "steps", "eta"),
    [("linspace", 10, 0), ("linspace", 50, 1), ("trailing", 30, 0.5), ("trailing", 7, 0)],
)
def test_ddim_follows_its_formula_on_uneven_grids(spacing, steps, eta, clip):
    diffusion = DDIM(sample_steps=steps, timestep_spacing=spacing, clip_sample=clip, eta=eta)
    x_T, *noises = drawn_noise((1, 2, 3), steps)
    ours = trajectory(diffusion, smooth_eps, x_T=x_T.double())
    # with x_T given, the first map drawn from the seeds is the first step's noise
    noises = [x_T.double().numpy(), *(n.double().numpy() for n in noises)]
    theirs = reference_ddim(ABAR, diffusion.grid, x_T.double().numpy(), eta, noises, clip)
    assert max_difference(ours, theirs) < 1e-9


def test_plms_follows_its_formula_on_an_uneven_grid():
    diffusion = PLMS(sample_steps=30, timestep_spacing="linspace", clip_sample=False)

    def transfer(x, eps, t, t_prev):  # equation 11 of Liu et al.
        a, a_prev = ABAR[t], ABAR[t_prev] if t_prev >= 0 else 1.0
        denominator = math.sqrt(a) * (math.sqrt((1 - a_prev) * a) + math.sqrt((1 - a) * a_prev))
        return math.sqrt(a_prev / a) * x - (a_prev - a) / denominator * eps

    def net(x, t):
        return smooth_eps(x, torch.full((3,), t))

    x = drawn_noise((1, 2, 3), 0)[0].double()
    ours = trajectory(diffusion, smooth_eps, x_T=x)
    grid = [*diffusion.grid, -1]
    e = [net(x, grid[0])]
    euler = transfer(x, e[0], grid[0], grid[1])
    x = transfer(x, (e[0] + net(euler, grid[1])) / 2, grid[0], grid[1])
    theirs = [euler, x]
    for t, t_prev in itertools.pairwise(grid[1:]):
        e.append(net(x, t))
        if len(e) == 2:
            slope = (3 * e[-1] - e[-2]) / 2
        elif len(e) == 3:
            slope = (23 * e[-1] - 16 * e[-2] + 5 * e[-3]) / 12
        else:
            slope = (55 * e[-1] - 59 * e[-2] + 37 * e[-3] - 9 * e[-4]) / 24
        x = transfer(x, slope, t, t_prev)
        theirs.append(x)
    assert max_difference(ours, theirs) < 1e-9


# --- Closed form: Gaussian data, whose exact eps is known ---

MEAN, STD = 0.3, 0.4


def exact_network(diffusion):
    """The best prediction for pixels from N(MEAN, STD^2), in the diffusion's parametrisation."""

    def network(x, t, labels=None):
        abar = diffusion.levels.alpha_squared(t).to(x)
        signal, sigma = abar.sqrt(), (1 - abar).sqrt()
        eps = sigma * (x - signal * MEAN) / (abar * STD**2 + 1 - abar)
        x0 = MEAN + signal * STD**2 * (x - signal * MEAN) / (abar * STD**2 + 1 - abar)
        return {"eps": eps, "x0": x0, "v": signal * eps - sigma * x0}[diffusion.prediction]

    return network


@pytest.mark.parametrize(
    "diffusion",
    [
        DDPM(sample_steps=1000, clip_sample=False),
        DDIM(sample_steps=200, clip_sample=False),
        DDIM(sample_steps=1000, clip_sample=False, eta=1.0),
        DDIM(noise_schedule="cosine", prediction="v", sample_steps=200, clip_sample=False),
        PLMS(sample_steps=50, clip_sample=False),
        PLMS(noise_schedule="cosine", prediction="v", sample_steps=50, clip_sample=False),
        DDPM(noise_schedule="sqrt_linear", prediction="x0", sample_steps=1000, clip_sample=False),
    ],
    ids=lambda d: f"{type(d).__name__}-{d.config['noise_schedule']}-{d.config['prediction']}",
)
def test_gaussian_data_comes_back(diffusion):
    x_T = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    x = trajectory(diffusion, exact_network(diffusion), seeds=range(64), x_T=x_T)[-1].double()
    n = x.numel()
    assert n == 4096
    # five standard errors, plus the discretisation error of the grid
    assert abs(x.mean() - MEAN) < 5 * STD / n**0.5 + 0.01
    assert abs(x.std() - STD) < 5 * STD / (2 * n) ** 0.5 + 0.01


@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("plms", 2)])
def test_error_falls_at_the_sampler_s_order(name, order):
    """Halfway, against the exact solution of the probability-flow ODE (at t = -1 itself sigma is
    not smooth in t).
    """
    x_T = torch.linspace(-1.5, 1.5, 48, dtype=torch.float64).view(SHAPE)
    errors = []
    for steps in (50, 100, 200):
        diffusion = build_sampler(name, {}, sample_steps=steps, clip_sample=False)
        states = trajectory(diffusion, exact_network(diffusion), x_T=x_T)
        halfway = max(i for i, (_, t_prev, _) in enumerate(diffusion.calls()) if t_prev == 499)
        # the flow keeps the standardised value of each pixel
        (mean_T, std_T), (mean, std) = (marginal(t) for t in (999, 499))
        errors.append((states[halfway] - mean - std * (x_T - mean_T) / std_T).abs().max().item())
    orders = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert all(abs(measured - order) < 0.25 for measured in orders), (errors, orders)


def marginal(t):
    """Mean and standard deviation of x_t for the Gaussian data."""
    return math.sqrt(ABAR[t]) * MEAN, math.sqrt(ABAR[t] * STD**2 + 1 - ABAR[t])


def test_plms_is_nearer_to_the_exact_image_than_ddim():
    x_T = torch.linspace(-1.5, 1.5, 48, dtype=torch.float64).view(SHAPE)
    mean_T, std_T = marginal(999)
    exact = MEAN + STD * (x_T - mean_T) / std_T
    errors = []
    for sampler in (DDIM, PLMS):
        diffusion = sampler(sample_steps=50, clip_sample=False)
        errors.append(
            (trajectory(diffusion, exact_network(diffusion), x_T=x_T)[-1] - exact).abs().max()
        )
    assert errors[1] < errors[0] / 20


@pytest.mark.parametrize("sampler", [DDPM, DDIM, PLMS])
@pytest.mark.parametrize("clip", [True, False])
def test_predictions_are_equivalent(sampler, clip):
    ends = []
    for prediction in ("eps", "x0", "v"):
        diffusion = sampler(prediction=prediction, sample_steps=20, clip_sample=clip)
        x_T = drawn_noise((1, 2, 3), 0)[0].double()
        ends.append(trajectory(diffusion, exact_network(diffusion), x_T=x_T))
    assert max_difference(ends[0], ends[1]) < 1e-9
    assert max_difference(ends[0], ends[2]) < 1e-9


# --- Grids, schedules, edges ---


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 30, 333, 600, 999, 1000])
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_grid(spacing, steps):
    grid = time_grid(spacing, T, steps)
    assert len(grid) == steps == len(set(grid))
    assert grid == sorted(grid, reverse=True) and grid[-1] >= 0 and grid[0] < T
    expected = {
        "leading": np.arange(0, T, T // steps)[:steps][::-1],
        "linspace": np.round(np.linspace(0, T - 1, steps))[::-1],
        "trailing": np.round(T - np.arange(steps) * T / steps) - 1,
    }[spacing]
    assert grid == expected.astype(int).tolist()
    if spacing == "trailing":
        assert grid[0] == T - 1


@pytest.mark.parametrize("sampler", [DDPM, DDIM, PLMS])
@pytest.mark.parametrize("schedule", NOISE_SCHEDULES)
@pytest.mark.parametrize("steps", [1, 3, 7, 50])
def test_no_noise_is_left(sampler, schedule, steps):
    """A network that always knows the image gives exactly that image, from any grid."""
    image = torch.linspace(-1, 1, 16).view(1, 1, 4, 4).expand(SHAPE)
    diffusion = sampler(noise_schedule=schedule, prediction="x0", sample_steps=steps)
    x = diffusion.sample(lambda x, t, labels=None: image, 3, (4, 4), 1, seeds=[1, 2, 3])
    assert (x - image).abs().max() < 1e-4


def test_one_plms_step_is_a_ddim_step():
    plms, ddim = PLMS(sample_steps=1), DDIM(sample_steps=1)
    assert plms.calls() == ddim.calls() == [(T - 1, -1, 0)]
    assert max_difference(trajectory(plms, smooth_eps), trajectory(ddim, smooth_eps)) == 0
    assert len(PLMS(sample_steps=10).calls()) == 11


@pytest.mark.parametrize("sampler", [DDPM, DDIM, PLMS])
@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_a_schedule_that_ends_in_pure_noise_works(sampler, prediction):
    diffusion = sampler(prediction=prediction, sample_steps=20)
    diffusion.alphas_cumprod[-1] = 0.0
    x = diffusion.sample(exact_network(diffusion), 64, (8, 8), 1, seeds=range(64))
    assert x.isfinite().all()
    assert abs(x.mean() - MEAN) < 0.05


def test_schedules():
    for name in NOISE_SCHEDULES:
        for steps in (10, 100, 1000, 4000):
            beta = betas(name, steps, 1e-4, 2e-2)
            assert beta.dtype == torch.float64 and beta.shape == (steps,)
            assert beta.min() > 0 and beta.max() <= 0.999
    assert betas("cosine", 1000, 1e-4, 2e-2).max() == 0.999
    assert usual_shift("flow", (128, 128)) == 2 and usual_shift("flow", (32, 48)) == 1
    assert usual_shift("cosine", (512, 512)) == 1
    assert torch.equal(
        betas("linear", 1000, 1e-4, 2e-2), torch.linspace(1e-4, 2e-2, 1000, dtype=torch.float64)
    )
    theirs = diffusers.DDPMScheduler(T, beta_schedule="squaredcos_cap_v2").alphas_cumprod
    assert (DDPM(noise_schedule="cosine").alphas_cumprod - theirs).abs().max() < 1e-5
    theirs = diffusers.DDPMScheduler(T, 1e-4, 2e-2, beta_schedule="scaled_linear").alphas_cumprod
    assert (DDPM(noise_schedule="sqrt_linear").alphas_cumprod - theirs).abs().max() < 1e-5


def test_bad_arguments_are_named():
    for options, word in [
        ({"noise_schedule": "linera"}, "linera"),
        ({"prediction": "epsilon"}, "epsilon"),
        ({"sample_steps": 1001}, "1001"),
        ({"sample_steps": 0}, "sample_steps"),
        ({"timestep_spacing": "even"}, "even"),
    ]:
        with pytest.raises(ValueError, match=word):
            DDPM(**options)
    with pytest.raises(ValueError, match="eta"):
        DDIM(eta=1.5)
    with pytest.raises(ValueError, match="dpm"):
        build_sampler("dpm", {})


# --- Forward process and loss ---


def test_noise_images():
    diffusion = DDPM()
    x0, t = torch.randn(4, 3, 8, 8), torch.tensor([0, 10, 500, 999])
    x_t, noise = diffusion.noise_images(x0, t)
    abar = ABAR[t]
    expected = (
        np.sqrt(abar)[:, None, None, None] * x0.numpy()
        + np.sqrt(1 - abar)[:, None, None, None] * noise.numpy()
    )
    assert np.abs(x_t.numpy() - expected).max() < 1e-6


def test_every_time_step_is_trained():
    t = DDPM(noise_steps=20).sample_time_steps(20_000, torch.Generator().manual_seed(0))
    counts = torch.bincount(t, minlength=20)
    assert len(counts) == 20 and counts.min() > 800 and counts.max() < 1200


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_the_exact_network_has_the_least_loss(prediction):
    diffusion = DDIM(prediction=prediction)
    x0 = MEAN + STD * torch.randn(512, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    exact = exact_network(diffusion)
    losses = [
        diffusion.loss(
            lambda x, t, labels, k=k: k * exact(x, t),
            x0,
            generator=torch.Generator().manual_seed(1),
        )
        for k in (0.9, 1.0, 1.1)
    ]
    assert losses[1] < losses[0] and losses[1] < losses[2]


class Recorder(torch.nn.Module):
    """A network with three classes that remembers what it was asked."""

    num_classes = 3

    def __init__(self):
        super().__init__()
        self.asked = []

    def forward(self, x, t, labels=None):
        self.asked.append(labels)
        shift = (
            0
            if labels is None
            else torch.where(labels == 3, 0.0, 0.2 * (labels + 1)).view(-1, 1, 1, 1)
        )
        return 0.5 * x + shift


def test_labels_are_dropped_per_image():
    network, labels = Recorder(), torch.arange(3).repeat(1000)
    DDIM().loss(network, torch.zeros(3000, 1, 2, 2), labels, torch.Generator().manual_seed(0))
    (asked,) = network.asked
    dropped = asked == 3
    assert 0.08 < dropped.float().mean() < 0.12
    assert torch.equal(asked[~dropped], labels[~dropped])
    network.asked.clear()
    DDIM().loss(network, torch.zeros(3000, 1, 2, 2), labels, label_drop=0.0)
    assert torch.equal(network.asked[0], labels)


def test_what_is_drawn_for_an_image_does_not_depend_on_the_batch():
    def generators(seeds):
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    network, x0, labels = Recorder(), torch.rand(4, 1, 2, 2), torch.tensor([0, 1, 2, 0])
    together, t = DDIM().losses(network, x0, labels, generators(range(4)))
    for i in range(4):
        alone, t_alone = DDIM().losses(network, x0[i : i + 1], labels[i : i + 1], generators([i]))
        assert t_alone == t[i] and (alone - together[i]).abs() < 1e-6


# --- Guidance ---


@pytest.mark.parametrize(
    ("scale", "calls_of"), [(1.0, 3), (0.0, 3), (2.0, 6), (torch.tensor([1.0, 2.0, 0.0]), 4)]
)
@pytest.mark.parametrize("name", SAMPLERS)
def test_guidance_is_one_call_per_step(name, scale, calls_of):
    network, diffusion = Recorder(), build_sampler(name, {}, sample_steps=5)
    diffusion.sample(network, 3, (4, 4), 1, labels=[0, 1, 2], cfg_scale=scale, seeds=[1, 2, 3])
    assert len(network.asked) == len(diffusion.calls()) == (6 if name == "plms" else 5)
    for labels in network.asked:  # every call, the two of the first PLMS step too
        if isinstance(scale, float) and scale == 0:
            assert labels is None
        else:
            assert len(labels) == calls_of
            expected = {3: [0, 1, 2], 6: [0, 1, 2, 3, 3, 3], 4: [0, 1, 3, 3]}
            assert labels.tolist() == expected[calls_of]


@pytest.mark.parametrize("name", SAMPLERS)
def test_guidance_scale_of_each_image(name):
    """s = 0, 1 and 2 in one batch give what they give alone; and eps_null + s (eps_label -
    eps_null) holds.
    """
    diffusion = build_sampler(name, {}, sample_steps=5)
    options = {"labels": [0, 1, 2], "seeds": [1, 2, 3]}
    mixed = diffusion.sample(
        Recorder(), 3, (4, 4), 1, cfg_scale=torch.tensor([0.0, 1.0, 2.0]), **options
    )
    for i, scale in enumerate([0.0, 1.0, 2.0]):
        alone = diffusion.sample(Recorder(), 3, (4, 4), 1, cfg_scale=scale, **options)
        assert (alone[i] - mixed[i]).abs().max() < 1e-6

    def by_hand(x, t, labels=None):
        null, label = Recorder()(x, t, torch.full((3,), 3)), Recorder()(x, t, torch.arange(3))
        return null + 2.0 * (label - null)

    expected = diffusion.sample(by_hand, 3, (4, 4), 1, seeds=[1, 2, 3])
    guided = diffusion.sample(Recorder(), 3, (4, 4), 1, cfg_scale=2.0, **options)
    assert (expected - guided).abs().max() < 1e-6


def test_numbers_that_no_image_has_are_refused():
    sampler = build_sampler("ddim", {}, sample_steps=2)
    with pytest.raises(ValueError, match="n must be at least 1, not 0"):
        sampler.sample(smooth_eps, 0, (4, 4), 1)
    with pytest.raises(ValueError, match=r"labels must lie in 0..2, not \[1.7\]"):
        check_rows([(0.0, 1.7)], Rows())
    check_rows([(0.5, 2.0, math.nan)], Rows())


class Rows:
    """What `check_rows` asks a network."""

    num_classes = 3
    config = {"numbers": 1}


def test_a_scale_of_numpy_is_one():
    sampler = build_sampler("ddim", {}, sample_steps=2)
    for scale in (np.float32(2), np.float64(2), 2, torch.tensor(2.0)):
        state = sampler.start(2, (4, 4), 1, seeds=[1, 2], cfg_scale=scale)
        assert state.scales == (2.0, 2.0)


def test_an_interval_ends_between_two_steps():
    sampler = build_sampler("ddim", {}, sample_steps=10)
    t = torch.arange(T)
    ratio = (sampler.levels.sigma(t) / sampler.levels.alpha(t)).flatten().tolist()
    little = 1e-9
    for step in (1, 7, 400):
        inside = (ratio[step] * (1 - little), ratio[step + 3] * (1 + little))
        assert sampler._steps_within(inside) == (step, step + 3)
        outside = (ratio[step] * (1 + little), ratio[step + 3] * (1 - little))
        assert sampler._steps_within(outside) == (step + 1, step + 2)


def test_labels_out_of_range_are_an_error():
    for labels in ([0, 1, 4], [0, 1, -1], [0, 1]):
        with pytest.raises(ValueError, match="labels"):
            DDIM(sample_steps=2).sample(Recorder(), 3, (4, 4), 1, labels=labels)


# --- An image belongs to its seed ---


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_an_image_is_the_same_in_any_batch(name, scale):
    diffusion = build_sampler(name, {"noise_schedule": "cosine"}, eta=1.0, sample_steps=20)
    labels = [0, 1, 2, 0, 1]
    together = diffusion.sample(
        Recorder(), 5, (4, 4), 1, labels=labels, cfg_scale=scale, seeds=range(5)
    )
    for i in range(5):
        alone = diffusion.sample(
            Recorder(), 1, (4, 4), 1, labels=labels[i : i + 1], cfg_scale=scale, seeds=[i]
        )
        assert (alone[0] - together[i]).abs().max() < 1e-5
    assert (together[0] - together[3]).abs().max() > 1e-3  # same class, other seed


@pytest.mark.fault
@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-4), (torch.float64, 1e-10)])
def test_an_image_is_the_same_in_any_batch_after_1000_steps(name, scale, dtype, bound):
    """The shipped network, at 8x8; its convolutions round differently in other batch sizes."""
    network, config, _ = load_for_inference(ROOT / "weight/demo.pt")
    network.to(dtype)
    diffusion = build_sampler(name, config, sample_steps=1000)
    x_T = drawn_noise((1, 2, 3), 0, (1, 8, 8))[0].to(dtype)
    options = {"image_size": (8, 8), "channels": 1, "cfg_scale": scale}
    together = diffusion.sample(network, 3, labels=[0, 4, 7], seeds=[1, 2, 3], x_T=x_T, **options)
    alone = diffusion.sample(network, 1, labels=[4], seeds=[2], x_T=x_T[1:2], **options)
    assert (alone[0] - together[1]).abs().max() < bound


def test_the_nearest_time_step_is_found():
    chance = torch.Generator().manual_seed(0)
    ratios = torch.randn(50, generator=chance).sort().values.tolist()
    halfway = [(a + b) / 2 for a, b in zip(ratios, ratios[1:], strict=False)]
    for wanted in [*ratios, *halfway, -9.0, 9.0, *torch.randn(50, generator=chance).tolist()]:
        expected = min(range(len(ratios)), key=lambda t: abs(ratios[t] - wanted))
        assert _nearest(ratios, wanted) == expected
    assert _nearest([-1.0, math.inf], 5.0) == 0
