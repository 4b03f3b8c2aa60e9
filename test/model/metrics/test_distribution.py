"""Distances between sets of features: against closed forms, naive float64 and other libraries."""

import math
import warnings

import pytest
import torch
from helpers import DEMO
from PIL import Image
from prdc import compute_prdc
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur, pil_to_tensor

from model.metrics import (
    density_coverage,
    distribution,
    frechet_distance,
    kernel_distance,
    precision_recall,
)

MEASURES = (frechet_distance, kernel_distance, precision_recall, density_coverage)


def normal(n: int, dimension: int, seed: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return shift + scale * torch.randn(n, dimension, generator=generator, dtype=torch.float64)


def correlated(n: int, dimension: int, seed: int) -> Tensor:
    """As features are: positive, of unequal scales, correlated."""
    generator = torch.Generator().manual_seed(100 + seed)
    mixing = torch.rand(dimension, dimension, generator=generator, dtype=torch.float64)
    return (normal(n, dimension, seed, shift=0.3) @ mixing).relu() / dimension**0.5


def demo_images() -> Tensor:
    """(200,1,28,28) in [0,1]."""
    files = sorted(DEMO.glob("*/*.png"))[::10]
    return torch.stack([pil_to_tensor(Image.open(file)) for file in files]) / 255


def in_all_shapes() -> list[tuple[Tensor, Tensor]]:
    """More and fewer features than dimensions, equal and unequal sets."""
    shapes = ((120, 120, 16), (60, 60, 100), (70, 50, 64), (50, 90, 8))
    return [(correlated(n, d, 1), correlated(m, d, 2)) for n, m, d in shapes]


# --- Frechet distance ---


def test_frechet_distance_between_gaussians():
    """Features whose sample mean and covariance are exactly those asked for."""
    dimension = 6
    whitened = normal(500, dimension, 0)
    whitened = whitened - whitened.mean(0)
    whitened = whitened @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(whitened.T))).T
    scales = torch.arange(1, dimension + 1, dtype=torch.float64)
    shift = torch.linspace(-1, 1, dimension, dtype=torch.float64)
    expected = float((shift**2).sum() + ((scales - 1) ** 2).sum())  # for covariances that commute
    assert abs(frechet_distance(whitened, whitened * scales + shift) - expected) < 1e-9
    assert frechet_distance(whitened, whitened) < 1e-9

    # Covariances that do not commute: tr (A B)^1/2 from the eigenvalues of the 2x2 product.
    a = torch.tensor([[2.0, 1.0], [1.0, 3.0]], dtype=torch.float64)
    b = torch.tensor([[1.0, -0.5], [-0.5, 0.8]], dtype=torch.float64)
    plane = whitened[:, :2]
    of_a, of_b = (plane @ torch.linalg.cholesky(matrix).T for matrix in (a, b))
    product = a @ b
    trace_of_root = math.sqrt(
        float(product.trace()) + 2 * math.sqrt(float(torch.linalg.det(product)))
    )
    expected = float(a.trace() + b.trace()) - 2 * trace_of_root
    assert abs(frechet_distance(of_a, of_b) - expected) < 1e-9


# --- Kernel distance ---


def naive_kernel_distance(real: Tensor, generated: Tensor) -> float:
    def kernel(a, b):
        return (a @ b.T / a.shape[1] + 1) ** 3

    n, m = len(real), len(generated)
    within_real, within_generated = kernel(real, real), kernel(generated, generated)
    return float(
        (within_real.sum() - within_real.trace()) / (n * (n - 1))
        + (within_generated.sum() - within_generated.trace()) / (m * (m - 1))
        - 2 * kernel(real, generated).mean()
    )


def test_kernel_distance_is_the_u_statistic(monkeypatch):
    for real, generated in in_all_shapes():
        expected = naive_kernel_distance(real, generated)
        assert abs(kernel_distance(real, generated)[0] - expected) < 1e-9 * max(1, abs(expected))


@pytest.mark.fault
def test_standard_error_of_the_kernel_distance():
    """Over many pairs of sets it is the standard deviation of the value, and the value is 0 on
    average for sets from one distribution.
    """
    pairs = 40
    for scale, shift, low, high in ((1.0, 0.0, 0.9, 1.8), (1.2, 0.3, 0.75, 1.3)):
        found = [
            kernel_distance(normal(100, 8, seed), normal(100, 8, 1000 + seed, scale, shift))
            for seed in range(pairs)
        ]
        values = torch.tensor([value for value, _ in found])
        errors = torch.tensor([error for _, error in found])
        assert low < float(errors.mean() / values.std()) < high
        if shift == 0:
            assert abs(float(values.mean())) < 3 * float(values.std()) / pairs**0.5


# --- Nearest neighbours ---


def naive_distances(a: Tensor, b: Tensor) -> Tensor:
    return (a[:, None] - b[None]).square().sum(2).sqrt()


def naive_radii(features: Tensor, k: int) -> Tensor:
    return naive_distances(features, features).sort(dim=1).values[:, k]


def test_precision_and_recall_by_definition():
    for real, generated in in_all_shapes():
        distances = naive_distances(real, generated)
        for k in (1, 3):
            precision = (distances <= naive_radii(real, k)[:, None]).any(0).double().mean()
            recall = (distances <= naive_radii(generated, k)[None]).any(1).double().mean()
            assert precision_recall(real, generated, k) == (float(precision), float(recall))


def test_density_and_coverage_equal_prdc(capsys):
    for real, generated in in_all_shapes():
        expected = compute_prdc(real.numpy(), generated.numpy(), 5)
        density, coverage = density_coverage(real, generated, 5)
        assert abs(density - expected["density"]) < 1e-12
        assert abs(coverage - expected["coverage"]) < 1e-12


def test_equal_features_have_no_distance():
    """A copy of a real feature that lies far from all others is precise: it is at distance 0, also
    where rounding would make more of it.
    """
    real = correlated(60, 32, 0) + 1e3
    doubled = torch.cat([real, real])
    assert precision_recall(doubled, real, k=1) == (1.0, 1.0)
    assert precision_recall(doubled, real + 1e-2, k=1) == (0.0, 1.0)
    assert density_coverage(real, real, k=1)[1] == 1.0


# --- All of them ---


def test_in_tiles_as_at_once(monkeypatch):
    real, generated = correlated(130, 24, 1), correlated(90, 24, 2)
    at_once = [measure(real, generated) for measure in MEASURES]
    for tile in (1, 7, 64):
        monkeypatch.setattr(distribution, "TILE", tile)
        for measure, expected in zip(MEASURES, at_once, strict=True):
            found = torch.tensor(measure(real, generated))
            assert (found - torch.tensor(expected)).abs().max() < 1e-9


def test_worse_with_noise_and_blur():
    """On features of few dimensions, as the Frechet distance needs: random projections."""
    images = demo_images()
    real, other = images[::2], images[1::2]
    projection = normal(images[0].numel(), 12, 0).float() / images[0].numel() ** 0.5

    def noisy(strength: float) -> Tensor:
        noise = torch.randn(other.shape, generator=torch.Generator().manual_seed(0))
        return (other + strength * noise).clamp(0, 1)

    series = [
        [noisy(strength) for strength in (0.0, 0.1, 0.3)],
        [other, *(gaussian_blur(other, [9, 9], [sigma, sigma]) for sigma in (1.0, 3.0))],
    ]
    for images_of_series in series:
        features = [images.flatten(1) @ projection for images in images_of_series]
        for distance in (frechet_distance, lambda a, b: kernel_distance(a, b)[0]):
            values = [distance(real.flatten(1) @ projection, each) for each in features]
            assert values[0] < values[1] < values[2]


def test_float32_features_are_measured_in_float64():
    real, generated = correlated(80, 16, 1).float(), correlated(80, 16, 2).float()
    for measure in MEASURES:
        assert measure(real, generated) == measure(real.double(), generated.double())


def test_what_does_not_fit_is_named():
    features = normal(10, 4, 0)
    for measure in MEASURES:
        with pytest.raises(ValueError, match=r"\(10, 4\) and \(10, 5\)"):
            measure(features, normal(10, 5, 0))
        with pytest.raises(ValueError, match="features of each set are needed, not 1"):
            measure(features, features[:1])
        with pytest.raises(ValueError, match="not finite"):
            measure(features, torch.full_like(features, math.nan))


@pytest.mark.metrics
def test_equal_to_torch_fidelity():
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    for real, generated in in_all_shapes():
        statistics = [fid_features_to_statistics(each) for each in (real, generated)]
        fid = fid_statistics_to_metric(*statistics, False)["frechet_inception_distance"]
        assert abs(frechet_distance(real, generated) - fid) < 1e-5 * fid
        settings = {"prc_neighborhood": 3, "prc_batch_size": 64, "save_cpu_ram": False}
        prc = prc_features_to_metric(generated, real, verbose=False, **settings)
        expected = torch.tensor([prc["precision"], prc["recall"]])
        assert (torch.tensor(precision_recall(real, generated)) - expected).abs().max() < 1e-5
        if len(real) == len(generated):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                kid = kid_features_to_metric(
                    real,
                    generated,
                    kid_subsets=1,
                    kid_subset_size=len(real),
                    rng_seed=0,
                    verbose=False,
                )["kernel_inception_distance_mean"]
            assert abs(kernel_distance(real, generated)[0] - kid) < 1e-5 * abs(kid)
