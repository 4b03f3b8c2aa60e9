"""PSNR and SSIM of pairs of images."""

import torch
import torch.nn.functional as F
from torch import Tensor

# Wang et al. 2004, "Image quality assessment: from error visibility to structural similarity".
WINDOW_SIGMA = 1.5  # pixels
WINDOW_RADIUS = 5  # pixels: 11 x 11 in all
K1, K2 = 0.01, 0.03


def psnr(a: Tensor, b: Tensor, data_range: float = 1.0) -> Tensor:
    """Peak signal-to-noise ratio in dB, (B,C,H,W) twice -> (B,) float64; infinite where equal.

    `data_range` is the distance between black and white: 1 for images in [0,1], 2 in [-1,1], 255
    for 8 bits. The error is the mean over pixels and channels. Raises ValueError where shapes or
    range do not fit.
    """
    a, b = _checked_pair(a, b, data_range)
    mean_squared_error = (a - b).square().flatten(1).mean(1)
    return 10 * torch.log10(data_range**2 / mean_squared_error)


def ssim(a: Tensor, b: Tensor, data_range: float = 1.0) -> Tensor:
    """Structural similarity (Wang et al. 2004), (B,C,H,W) twice -> (B,) float64, 1 where equal.

    As in the paper: a Gaussian window of sigma 1.5 in 11 x 11 pixels, population covariances, the
    mean over all places where the window lies inside the image; of several channels, the mean.
    That is scikit-image's `structural_similarity(gaussian_weights=True, sigma=1.5,
    use_sample_covariance=False, data_range=255)`. Other numbers come from scikit-image's defaults
    (a flat window of 7 x 7), from torchmetrics (which reflects the image at its border and counts
    the places there too), and from piq (which first makes large images smaller). Raises ValueError
    where shapes or range do not fit, or a side has less than 11 pixels.
    """
    a, b = _checked_pair(a, b, data_range)
    smallest = 2 * WINDOW_RADIUS + 1
    if min(a.shape[2:]) < smallest:
        height, width = a.shape[2:]
        raise ValueError(f"SSIM needs sides of {smallest} pixels or more, not {height}x{width}")
    stabilise_mean = (K1 * data_range) ** 2
    stabilise_variance = (K2 * data_range) ** 2
    mean_a = _window_mean(a)
    mean_b = _window_mean(b)
    variance_a = _window_mean(a * a) - mean_a * mean_a
    variance_b = _window_mean(b * b) - mean_b * mean_b
    covariance = _window_mean(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + stabilise_mean) / (mean_a**2 + mean_b**2 + stabilise_mean)
    structure = (2 * covariance + stabilise_variance) / (
        variance_a + variance_b + stabilise_variance
    )
    return (luminance * structure).flatten(1).mean(1)


def _checked_pair(a: Tensor, b: Tensor, data_range: float) -> tuple[Tensor, Tensor]:
    """Both as float64."""
    if a.shape != b.shape or a.dim() != 4:
        raise ValueError(
            f"two tensors (B,C,H,W) of one shape are needed, not {tuple(a.shape)} and "
            f"{tuple(b.shape)}"
        )
    if not data_range > 0:
        raise ValueError(f"data_range must be above 0, not {data_range}")
    if data_range == 1 and not (a.is_floating_point() and b.is_floating_point()):
        raise ValueError("whole numbers do not span [0,1]: for 8-bit images pass data_range=255")
    return _float64(a), _float64(b)


def _float64(images: Tensor) -> Tensor:
    if images.device.type == "mps":  # which has no float64
        images = images.cpu()
    return images.detach().double()


def _window_mean(images: Tensor) -> Tensor:
    """The weighted mean in the window around each pixel that has a whole one."""
    channels = images.shape[1]
    offsets = torch.arange(-WINDOW_RADIUS, WINDOW_RADIUS + 1, device=images.device).double()
    weights = torch.exp(-(offsets**2) / (2 * WINDOW_SIGMA**2))
    weights = (weights / weights.sum()).expand(channels, 1, -1)
    images = F.conv2d(images, weights[:, :, :, None], groups=channels)
    return F.conv2d(images, weights[:, :, None, :], groups=channels)
