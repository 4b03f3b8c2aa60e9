"""PSNR and SSIM against scikit-image, on real images."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import DEMO
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from model.metrics import psnr, ssim


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
    return structural_similarity(
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
    expected_psnr = [peak_signal_noise_ratio(a, b, data_range=255) for a, b in pairs]
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
