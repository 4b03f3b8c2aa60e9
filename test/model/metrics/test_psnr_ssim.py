"""PSNR and SSIM against scikit-image, on real images; MS-SSIM against its definition."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import DEMO
from PIL import Image
from scipy.ndimage import correlate1d
from skimage import metrics as scikit

from model.metrics import ms_ssim, psnr, ssim, structural_similarity


def grey_images() -> torch.Tensor:
    """(12,1,28,28) uint8."""
    files = sorted(DEMO.glob("*/*.png"))[::170]
    return torch.stack([torch.from_numpy(np.array(Image.open(file)))[None] for file in files])


def colour_images() -> torch.Tensor:
    """(4,3,28,56) uint8: three pictures as the channels, two beside each other."""
    tall = grey_images().reshape(4, 3, 28, 28)
    return torch.cat([tall, tall.flip(0)], dim=3)


def noisy(images: torch.Tensor, strength: float) -> torch.Tensor:
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images + strength * noise).round().clamp(0, 255).to(torch.uint8)


def scikit_ssim(a: np.ndarray, b: np.ndarray) -> float:
    return scikit.structural_similarity(
        a,
        b,
        channel_axis=0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=255,
    )


@pytest.mark.parametrize("images", [grey_images(), colour_images()], ids=["grey", "colour"])
def test_equal_to_scikit_image(images):
    changed = noisy(images, 12.0)
    pairs = list(zip(images.numpy(), changed.numpy(), strict=True))
    expected_psnr = [scikit.peak_signal_noise_ratio(a, b, data_range=255) for a, b in pairs]
    expected_ssim = [scikit_ssim(a, b) for a, b in pairs]
    assert np.abs(psnr(images, changed, data_range=255).numpy() - expected_psnr).max() < 1e-6
    assert np.abs(ssim(images, changed, data_range=255).numpy() - expected_ssim).max() < 1e-6


def test_the_range_is_a_unit():
    images = colour_images().double()
    changed = noisy(colour_images(), 12.0).double()
    for measure in (psnr, ssim):
        expected = measure(images, changed, data_range=255)
        assert (measure(images / 255, changed / 255) - expected).abs().max() < 1e-9
        signed = measure(images / 127.5 - 1, changed / 127.5 - 1, data_range=2)
        if measure is psnr:  # SSIM compares means, which are shifted
            assert (signed - expected).abs().max() < 1e-9


def test_known_values():
    images = grey_images()
    assert psnr(images, images, data_range=255).isinf().all()
    assert (ssim(images, images, data_range=255) - 1).abs().max() < 1e-12
    black = torch.zeros(1, 1, 16, 16)
    assert (psnr(black, black + 0.1) - 20).abs().max() < 1e-6  # 10 log10(1 / 0.01)


def test_independent_of_the_batch():
    images, changed = colour_images(), noisy(colour_images(), 30.0)
    for measure in (psnr, ssim):
        together = measure(images, changed, data_range=255)
        alone = torch.cat(
            [
                measure(a[None], b[None], data_range=255)
                for a, b in zip(images, changed, strict=True)
            ]
        )
        assert (together - alone).abs().max() < 1e-12


def test_more_noise_or_blur_is_worse():
    images = grey_images()

    def blurred(passes: int) -> torch.Tensor:
        result = images.float()
        for _ in range(passes):
            result = F.avg_pool2d(F.pad(result, (1, 1, 1, 1), "replicate"), 3, stride=1)
        return result.round().to(torch.uint8)

    for measure in (psnr, ssim):
        by_noise = [measure(images, noisy(images, s), data_range=255).mean() for s in (3, 10, 30)]
        by_blur = [measure(images, blurred(passes), data_range=255).mean() for passes in (1, 2, 4)]
        assert by_noise[0] > by_noise[1] > by_noise[2]
        assert by_blur[0] > by_blur[1] > by_blur[2]


def test_what_does_not_fit_is_named():
    images = grey_images()
    for measure in (psnr, ssim):
        with pytest.raises(ValueError, match="one shape"):
            measure(images, images[:, :, 1:], data_range=255)
        with pytest.raises(ValueError, match="pass data_range=255"):
            measure(images, images)
        with pytest.raises(ValueError, match="above 0"):
            measure(images, images, data_range=0)
    with pytest.raises(ValueError, match="11 pixels or more, not 28x10"):
        ssim(images[..., :10], images[..., :10], data_range=255)


# --- As a loss ---


def test_the_loss_is_the_figure():
    images, changed = colour_images(), noisy(colour_images(), 12.0)
    expected = ssim(images, changed, data_range=255)
    in_float64 = structural_similarity(images.double(), changed.double(), 255)
    assert torch.equal(in_float64, expected)
    in_float32 = structural_similarity(images / 255, changed / 255)
    assert in_float32.dtype == torch.float32
    assert (in_float32 - expected).abs().max() < 1e-5


def test_the_loss_is_not_rounded_to_16_bits():
    images = colour_images() / 255
    changed = noisy(colour_images(), 3.0) / 255
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = structural_similarity(images, changed)
    assert (under_autocast - ssim(images, changed)).abs().max() < 1e-5


@pytest.mark.parametrize("similarity", [structural_similarity, ms_ssim])
def test_gradients_of_the_loss(similarity):
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(1, 2, 22, 23, generator=generator, dtype=torch.float64, requires_grad=True)
    b = (a.detach() + 0.2 * torch.rand(a.shape, generator=generator)).requires_grad_()
    torch.autograd.gradcheck(lambda a, b: similarity(a, b), (a, b), fast_mode=True)


@pytest.mark.parametrize("similarity", [structural_similarity, ms_ssim])
def test_gradients_are_finite_on_flat_opposite_and_equal_images(similarity):
    flat = torch.full((1, 3, 32, 32), 0.5)
    varied = torch.rand(1, 3, 32, 32)
    pairs = [(flat, flat), (flat, varied), (varied, flat), (varied, varied), (varied, 1 - varied)]
    pairs += [(0 * flat, 0 * flat), (0 * flat, 2 * flat), (1e4 * varied, varied)]
    for a, b in pairs:
        a = a.clone().requires_grad_()
        value = similarity(a, b)
        value.sum().backward()
        assert value.isfinite().all() and a.grad.isfinite().all()


# --- MS-SSIM ---


def window_mean(image: np.ndarray) -> np.ndarray:
    weights = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    filtered = correlate1d(correlate1d(image, weights, axis=0), weights, axis=1)
    return filtered[5:-5, 5:-5]


def halved(image: np.ndarray) -> np.ndarray:
    height, width = (side // 2 * 2 for side in image.shape)
    image = image[:height, :width]
    return (image[::2, ::2] + image[1::2, ::2] + image[::2, 1::2] + image[1::2, 1::2]) / 4


def reference_ms_ssim(a: np.ndarray, b: np.ndarray, exponents: list[float]) -> float:
    """Equation 7 of the paper on one channel of 8 bits, with the means that its authors take."""
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    result = 1.0
    for scale, exponent in enumerate(exponents):
        if scale:
            a, b = halved(a), halved(b)
        mu_a, mu_b = window_mean(a), window_mean(b)
        var_a, var_b = window_mean(a * a) - mu_a**2, window_mean(b * b) - mu_b**2
        cov = window_mean(a * b) - mu_a * mu_b
        term = (2 * cov + c2) / (var_a + var_b + c2)
        if scale == len(exponents) - 1:
            term = term * (2 * mu_a * mu_b + c1) / (mu_a**2 + mu_b**2 + c1)
        result *= term.mean() ** exponent
    return result


FIVE = [0.0448, 0.2856, 0.3001, 0.2363, 0.1333]


@pytest.mark.parametrize("size, scales", [((176, 201), 5), ((175, 300), 4), ((45, 44), 3)])
def test_ms_ssim_equals_its_definition(size, scales):
    images = grey_images()[:2].double()
    images = F.interpolate(images, size, mode="bilinear")
    changed = noisy(images, 25.0).double()
    exponents = [exponent / sum(FIVE[:scales]) for exponent in FIVE[:scales]]
    pairs = zip(images[:, 0].numpy(), changed[:, 0].numpy(), strict=True)
    expected = [reference_ms_ssim(a, b, exponents) for a, b in pairs]
    found = ms_ssim(images, changed, data_range=255)
    assert np.abs(found.numpy() - expected).max() < 1e-9
    assert found.max() < 0.99


def test_ms_ssim_of_small_images():
    images, changed = colour_images(), noisy(colour_images(), 30.0)
    assert ms_ssim(images, images, 255).sub(1).abs().max() < 1e-6
    small = images[..., :21].double(), changed[..., :21].double()  # one scale: SSIM itself
    assert (ms_ssim(*small, 255) - ssim(*small, 255)).abs().max() < 1e-12
    with pytest.raises(ValueError, match="11 pixels or more, not 28x10"):
        ms_ssim(images[..., :10], images[..., :10], 255)
    with pytest.raises(ValueError, match="pass data_range=255"):
        ms_ssim(images, changed)
