"""Images that begin with an image: against closed forms."""

import math

import pytest
import torch

from model.editing import FillIn, first_call_of, noised, slerp
from model.samplers import SAMPLERS, build_sampler
from model.samplers.inversion import InvertingDDIM

MEAN, STD = 0.2, 0.4
CONFIG = {"noise_schedule": "cosine", "prediction": "v"}
SEEDS = [1, 2, 3]
X0 = 0.8 * torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)) - 0.4


def exact(sampler):
    """The best prediction for pixels from N(MEAN, STD^2)."""

    def network(x, t, labels=None):
        signal, sigma = sampler.levels.alpha(t).to(x), sampler.levels.sigma(t).to(x)
        variance = signal**2 * STD**2 + sigma**2
        eps = sigma * (x - signal * MEAN) / variance
        x0 = MEAN + signal * STD**2 * (x - signal * MEAN) / variance
        return signal * eps - sigma * x0

    return network


def wavy(sampler):
    """A network that is not linear."""
    plain = exact(sampler)
    return lambda x, t, labels=None: plain(x, t) + 0.1 * torch.sin(4 * x)


def finish(sampler, network, trajectory, change=None):
    *_, (last, _) = sampler.denoise(network, trajectory, change)
    return sampler.finished_images(last)


# --- Image to image ---


@pytest.mark.parametrize("name", SAMPLERS)
def test_strength_is_the_share_of_the_calls(name):
    sampler = build_sampler(name, CONFIG, sample_steps=20)
    calls = len(sampler.calls())
    assert first_call_of(sampler, 1.0) == 0
    assert first_call_of(sampler, 0.0) == calls - 1
    assert abs(calls - first_call_of(sampler, 0.6) - 0.6 * calls) <= 0.5


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_less_strength_the_nearer_to_the_image(name):
    sampler = build_sampler(name, CONFIG, sample_steps=40, clip_sample=False)
    network = exact(sampler)
    distances = []
    for strength in (0.05, 0.4, 0.9):
        first = first_call_of(sampler, strength)
        x = noised(sampler, X0, first, SEEDS)
        start = sampler.start(3, (8, 8), 1, seeds=SEEDS, x_T=x, first_call=first)
        result = finish(sampler, network, start)
        distances.append((result - X0).square().mean().sqrt().item())
    assert distances[0] < 0.1 < distances[1] < distances[2]


def test_an_image_gets_its_own_noise():
    sampler = build_sampler("ddim", CONFIG, sample_steps=10)
    together = noised(sampler, X0, 5, SEEDS)
    alone = noised(sampler, X0[1:2], 5, [2])
    assert torch.equal(together[1], alone[0])
    t = sampler.calls()[5][0]
    alpha, sigma = (
        f(torch.tensor([t])).item() for f in (sampler.levels.alpha, sampler.levels.sigma)
    )
    noise = (together - alpha * X0) / sigma
    assert abs(noise.std().item() - 1) < 0.15 and abs(noise.mean().item()) < 0.2
    # not the noise that sampling steps draw
    drawn = torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(2))
    assert (noise[1] - drawn).abs().max() > 0.1


# --- Filling in ---


@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("name", ["ddpm", "ddim", "dpmpp2m"])
def test_what_is_known_stays_to_the_bit(name, repeats):
    sampler = build_sampler(name, CONFIG, sample_steps=10)
    paint = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    paint[..., 2:6, 3:] = True
    change = FillIn(sampler, X0, paint, SEEDS, repeats)
    start = sampler.start(3, (8, 8), 1, seeds=SEEDS)
    calls = 0

    def network(x, t, labels=None):
        nonlocal calls
        calls += 1
        return exact(sampler)(x, t)

    result = finish(sampler, network, start, change)
    kept = ~paint.expand_as(X0)
    assert torch.equal(result[kept], X0[kept])
    assert (result - X0)[~kept].abs().max() > 0.1
    assert calls == (10 - 1) * repeats + 1  # the last step leads to the clean image: once


@pytest.mark.parametrize(("repeats", "least", "most"), [(1, 0.0, 0.9), (10, 0.93, 0.97)])
def test_repeats_make_the_parts_agree(repeats, least, most):
    """Two pixels that are nearly equal: the one that is known says what the other must be. The
    correlation of what is painted with what is known grows with the repeats.
    """
    sampler = build_sampler("ddpm", {**CONFIG}, sample_steps=40, clip_sample=False)
    correlation = 0.95
    covariance = STD**2 * torch.tensor([[1.0, correlation], [correlation, 1.0]])

    def network(x, t, labels=None):
        pair = x.flatten(1)
        signal, sigma = (
            f(t).to(x).view(-1, 1) for f in (sampler.levels.alpha, sampler.levels.sigma)
        )
        total = signal[0] ** 2 * covariance + sigma[0] ** 2 * torch.eye(2)
        innovation = torch.linalg.solve(total, pair.T).T
        x0 = signal * innovation @ covariance
        return (signal * sigma * innovation - sigma * x0).view_as(x)

    generator = torch.Generator().manual_seed(0)
    known = STD * torch.randn(400, 1, 1, 2, generator=generator)
    paint = torch.tensor([False, True]).view(1, 1, 1, 2)
    seeds = list(range(400))
    change = FillIn(sampler, known, paint, seeds, repeats)
    start = sampler.start(400, (1, 2), 1, seeds=seeds)
    result = finish(sampler, network, start, change)
    found = torch.corrcoef(result.view(400, 2).T)[0, 1].item()
    assert least < found < most, found


# --- Between two noises ---


def test_slerp_keeps_the_noise_as_noisy():
    a, b = (torch.randn(1, 32, 32, generator=torch.Generator().manual_seed(s)) for s in (1, 2))
    assert (slerp(a, b, 0.0) - a).abs().max() < 1e-5
    assert (slerp(a, b, 1.0) - b).abs().max() < 1e-5
    for share in (0.25, 0.5, 0.75):
        between = slerp(a, b, share)
        expected = (1 - share) * a.norm() + share * b.norm()
        assert abs(between.norm() - expected) / expected < 0.02
        angle = torch.arccos((a * between).sum() / (a.norm() * between.norm())).item()
        assert abs(angle - share * math.pi / 2) < 0.05
    assert (slerp(a, a, 0.3) - a).abs().max() < 1e-5


# --- Back to noise ---


def noise_of(sampler, network, x0, rounds=5):
    """The noise that becomes images, and what becomes of it."""
    inverting = InvertingDDIM.of(sampler, rounds)
    start = inverting.start(len(x0), x0.shape[-2:], 1, seeds=SEEDS, x_T=x0)
    for trajectory, _ in inverting.denoise(network, start):
        if trajectory.position[0] == inverting.backward_calls:
            noise = trajectory.x
    return noise, inverting.finished_images(trajectory)


@pytest.mark.parametrize("kind", [exact, wavy])
@pytest.mark.parametrize("steps", [10, 50])
def test_the_noise_of_an_image_makes_it_again(kind, steps):
    sampler = build_sampler("ddim", CONFIG, sample_steps=steps, clip_sample=False)
    network = kind(sampler)
    noise, redrawn = noise_of(sampler, network, X0)
    again = finish(sampler, network, sampler.start(3, (8, 8), 1, seeds=SEEDS, x_T=noise))
    assert (again - X0).abs().max() < 0.02
    assert (redrawn - again).abs().max() < 1e-6


def test_the_noise_of_gaussian_data_is_the_flow_s():
    """It keeps the standardised value of each pixel."""
    sampler = build_sampler("ddim", CONFIG, sample_steps=500, clip_sample=False)
    noise, _ = noise_of(sampler, exact(sampler), X0, rounds=3)
    assert (noise - (X0 - MEAN) / STD).abs().max() < 0.05


@pytest.mark.parametrize("sampler", ["ddpm", "dpmpp2m", "plms"])
def test_only_ddim_goes_back(sampler):
    with pytest.raises(ValueError, match="eta 0"):
        InvertingDDIM.of(build_sampler(sampler, CONFIG, sample_steps=4))
    with pytest.raises(ValueError, match="eta 0"):
        InvertingDDIM.of(build_sampler("ddim", CONFIG, sample_steps=4, eta=0.5))


def test_images_of_other_rounds_share_a_call():
    """Two inversions at other places of their plans, as one would be alone."""
    sampler = build_sampler("ddim", CONFIG, sample_steps=4, clip_sample=False)
    network = wavy(sampler)
    inverting = InvertingDDIM.of(sampler, 3)
    ahead = inverting.start(1, (8, 8), 1, seeds=[1], x_T=X0[:1])
    for _ in range(5):
        ahead, _ = inverting.update(ahead, network(*inverting.rows(ahead)))
    behind = inverting.start(1, (8, 8), 1, seeds=[2], x_T=X0[1:2])
    both = inverting.start(1, (8, 8), 1, seeds=[2], x_T=X0[1:2]).cat([ahead, behind])
    for _ in range(7):
        both, _ = inverting.update(both, network(*inverting.rows(both)))
        ahead, _ = inverting.update(ahead, network(*inverting.rows(ahead)))
        behind, _ = inverting.update(behind, network(*inverting.rows(behind)))
    assert (both.x - torch.cat([ahead.x, behind.x])).abs().max() < 1e-6
