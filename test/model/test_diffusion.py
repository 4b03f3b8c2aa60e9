"""What a network learns: weights of the loss, and time steps that are spread over a step."""

import math
from itertools import pairwise

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


def normal_below(log_ratio):
    """Of a normal distribution of mean -0.8 and deviation 1.2, the share below."""
    return (1 + math.erf((log_ratio + 0.8) / 1.2 / math.sqrt(2))) / 2


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_lognormal_weighs_the_error_of_v(prediction, schedule):
    """Whatever is predicted: the squared error of v, times T times the share of log(sigma / alpha)
    that is nearest to the time step.
    """
    diffusion = GaussianDiffusion(noise_schedule=schedule, prediction=prediction)
    generator = torch.Generator().manual_seed(0)
    t = torch.tensor([0, 1, 50, 300, 500, 700, 900, 999])
    x0, noise, error = (
        torch.randn(len(t), 2, 3, 3, generator=generator, dtype=torch.float64) for _ in range(3)
    )

    def network(x_t, t, labels):
        return diffusion.target(x0, noise, t) + 1e-3 * error

    draws = {"t": t, "noise": noise}
    losses = diffusion.losses_of(network, x0, None, draws, weight="lognormal")
    x_t, _ = diffusion.noise_images(x0, t, noise)
    estimates = diffusion.x0_and_eps(x_t, t, network(x_t, t, None))
    of_v = GaussianDiffusion(noise_schedule=schedule, prediction="v")
    wrong = of_v.target(*estimates, t) - of_v.target(x0, noise, t)

    abar = diffusion.alphas_cumprod.tolist()
    ratios = [math.log((1 - each) / each) / 2 for each in abar]
    borders = [-math.inf, *((a + b) / 2 for a, b in pairwise(ratios)), math.inf]
    shares = [normal_below(b) - normal_below(a) for a, b in pairwise(borders)]
    expected = T * torch.tensor(shares, dtype=torch.float64)[t] * wrong.square().mean((1, 2, 3))
    assert (losses - expected).abs().max() < 1e-6 * expected.max()
    every = diffusion.levels.lognormal_density(torch.arange(T))
    assert abs(every.mean() - 1) < 1e-9


def test_lognormal_with_pure_noise_at_the_end():
    """The last time step, where log(sigma / alpha) is infinite, is never drawn for its weight."""
    for options in ({"noise_schedule": "flow"}, {"zero_terminal_snr": True}):
        diffusion = GaussianDiffusion(**options, prediction="v")
        weights = diffusion.loss_weight(torch.arange(T), "lognormal")
        assert weights.isfinite().all() and weights[-1] == 0 and weights.min() >= 0
        assert diffusion.time_density("lognormal")[-1] == pytest.approx(0.15)


def test_uniform_weights_change_nothing():
    diffusion = GaussianDiffusion()
    t = torch.arange(0, T, 100)
    assert torch.equal(diffusion.loss_weight(t, "uniform"), torch.ones(10))
    assert LOSS_WEIGHTS == ("uniform", "min_snr", "lognormal")
    with pytest.raises(ValueError, match="min_snr"):
        diffusion.loss_weight(t, "p2")


# --- Time steps drawn by their weight ---

PROCESSES = [
    {"noise_schedule": "cosine", "prediction": "v"},
    {"noise_schedule": "cosine", "prediction": "x0", "zero_terminal_snr": True},
    {"noise_schedule": "linear", "prediction": "eps", "noise_steps": 300},
    {"noise_schedule": "flow", "prediction": "v", "noise_shift": 2.0},
]


@pytest.mark.parametrize("weight", ["min_snr", "lognormal"])
@pytest.mark.parametrize("options", PROCESSES)
def test_a_time_step_is_drawn_as_often_as_its_density_says(options, weight, monkeypatch):
    diffusion = GaussianDiffusion(**options)
    density = diffusion.time_density(weight)
    assert abs(density.mean() - 1) < 1e-12 and density.min() >= 0.15 and density.max() > 1.5
    n = 200 * diffusion.noise_steps
    evenly = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    monkeypatch.setattr("model.diffusion.draw_stratified", lambda n, generator: evenly)
    t = diffusion.sample_time_steps(n, None, weight)
    found = torch.bincount(t, minlength=diffusion.noise_steps) / 200
    assert (found - density).abs().max() <= 1 / 200


def test_the_density_follows_the_weight_of_v():
    """Whatever the network predicts: the image's, min(SNR, 5), times sigma^2."""
    abar = GaussianDiffusion(noise_schedule="cosine").alphas_cumprod
    weight = (abar / (1 - abar)).clamp(max=5) * (1 - abar)
    expected = 0.85 * weight / weight.mean() + 0.15
    for prediction in ("eps", "x0", "v"):
        diffusion = GaussianDiffusion(noise_schedule="cosine", prediction=prediction)
        assert (diffusion.time_density("min_snr") - expected).abs().max() < 1e-9
    assert torch.equal(diffusion.time_density("uniform"), torch.ones(T, dtype=torch.float64))
    with pytest.raises(ValueError, match="min_snr"):
        diffusion.time_density("p2")


@pytest.mark.parametrize(
    ("options", "weight"),
    [(options, "min_snr") for options in PROCESSES]
    + [(options, "lognormal") for options in PROCESSES if options["prediction"] == "v"],
)
def test_the_mean_loss_stays_what_it_is(options, weight):
    """Of a network that says zero, over very many draws; that of uniform draws varies more."""
    diffusion = GaussianDiffusion(**options)
    n, batch = 32 * 500, 32
    x0 = torch.randn(n, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def losses(drawn_by):
        parts = []
        for start in range(0, n, batch):
            one = generators_of(range(batch), batch, start)
            draws = diffusion.draw((batch, 1, 2, 2), False, one, 0.0, drawn_by)
            part = x0[start : start + batch]
            found = diffusion.losses_of(lambda x, t, _: x * 0, part, None, draws, weight=weight)
            parts.append(found.mean())
        return torch.stack(parts)

    uniform, weighted = losses("uniform"), losses(weight)
    error = (uniform.var() / 500 + weighted.var() / 500).sqrt()
    assert (uniform.mean() - weighted.mean()).abs() < 4 * error < 0.1 * uniform.mean()
    if options["prediction"] == "v":
        assert weighted.var() < 0.9 * uniform.var()


def test_uniform_draws_have_no_density():
    diffusion = GaussianDiffusion()
    draws = diffusion.draw((4, 1, 2, 2), True, generators_of(range(4), 4), 0.1)
    weighted = diffusion.draw((4, 1, 2, 2), True, generators_of(range(4), 4), 0.1, "min_snr")
    assert set(draws) == {"t", "dropped", "noise"} and set(weighted) == {*draws, "density"}
    for name in ("dropped", "noise"):  # what else is drawn stays as it was
        assert torch.equal(draws[name], weighted[name])
    expected = diffusion.time_density("min_snr")[weighted["t"]]
    assert torch.equal(weighted["density"], expected.float())


# --- Time steps of a batch ---


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


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_small_noise_shift_keeps_its_digits(schedule):
    """sigma^2 / alpha^2 is that of the process without it, times the square of the shift."""
    plain = GaussianDiffusion(noise_schedule=schedule, prediction="v")
    shifted = GaussianDiffusion(noise_schedule=schedule, prediction="v", noise_shift=1e-6)
    ratios = [each.levels.sigmas_squared / each.levels.alphas_squared for each in (plain, shifted)]
    assert ((ratios[1] / ratios[0] / 1e-12) - 1).abs().max() < 1e-12
    assert shifted.time_density("lognormal").isfinite().all()


@pytest.mark.parametrize("options", [{"beta_end": 0.99}, {"beta_start": 1e-17}])
def test_processes_beyond_64_bits_are_refused(options):
    with pytest.raises(ValueError, match="too extreme"):
        GaussianDiffusion(prediction="v", **options)


def test_where_32_bits_see_no_signal_nothing_is_undefined():
    """On MPS, whose tables have 32 bits."""
    diffusion = GaussianDiffusion(noise_schedule="sqrt", noise_steps=100, prediction="v")
    cpu = torch.device("cpu")
    tables = diffusion.levels._tables_for(cpu)
    diffusion.levels._tables[cpu] = {name: table.float() for name, table in tables.items()}
    t = torch.arange(100)
    kept, added = diffusion.transition(t, t - 1)
    assert kept.isfinite().all() and added.isfinite().all()
    assert diffusion.levels.alpha_squared(torch.tensor([99])) == 0
