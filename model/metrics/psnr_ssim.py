"""PSNR and SSIM of pairs of images."""

import torch
import torch.nn.functional as F
from torch import Tensor

from model.autocast import without_autocast

# Wang et al. 2004, "Image quality assessment: from error visibility to structural similarity".
WINDOW_SIGMA = 1.5  # pixels
WINDOW_RADIUS = 5  # pixels: 11 x 11 in all
WINDOW_SIZE = 2 * WINDOW_RADIUS + 1
K1, K2 = 0.01, 0.03

# Wang, Simoncelli & Bovik 2003, "Multiscale structural similarity for image quality assessment":
# the weight of each scale, the finest first.
SCALE_EXPONENTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
SMALLEST_SIMILARITY = 1e-3


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
    return structural_similarity(a, b, data_range)


def structural_similarity(a: Tensor, b: Tensor, data_range: float = 1.0) -> Tensor:
    """`ssim` as a part of a loss: (B,C,H,W) twice -> (B,), with gradients.

    In float32, or in float64 where the images are; 16 bits, also those of autocast, do not hold
    the differences that it is made of.
    """
    _check_pair(a, b, data_range)
    _check_sides(a)
    luminance, structure = _similarity_maps(_wide(a), _wide(b), data_range)
    return (luminance * structure).flatten(1).mean(1)


def ms_ssim(a: Tensor, b: Tensor, data_range: float = 1.0) -> Tensor:
    """Multi-scale structural similarity (Wang, Simoncelli & Bovik 2003), (B,C,H,W) twice -> (B,),
    with gradients, in the numbers of `structural_similarity`.

    Contrast and structure are compared on every scale, luminance on the last alone; each scale has
    half the pixels of the one before, by means of 2 x 2 (an odd last row or column is left out).
    Five scales need sides of 176 pixels; a smaller image has as many as its windows fit into, and
    the published exponents of these, divided by their sum. Means over the places and channels are
    multiplied; one below 0.001 counts as 0.001, since negative numbers have no such powers, and
    near zero the gradient grows without bound. Raises ValueError as `ssim` does.
    """
    _check_pair(a, b, data_range)
    _check_sides(a)
    a, b = _wide(a), _wide(b)
    exponents = _exponents(min(a.shape[2:]))
    product = a.new_ones(len(a))
    for scale, exponent in enumerate(exponents):
        if scale > 0:
            a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
        luminance, structure = _similarity_maps(a, b, data_range)
        is_last = scale == len(exponents) - 1
        similarity = luminance * structure if is_last else structure
        mean = similarity.flatten(1).mean(1).clamp(min=SMALLEST_SIMILARITY)
        product = product * mean**exponent
    return product


def _exponents(side: int) -> list[float]:
    """Those of the scales on which an image whose smaller side this is holds a whole window."""
    scales = 1
    while scales < len(SCALE_EXPONENTS) and side >> scales >= WINDOW_SIZE:
        scales += 1
    chosen = SCALE_EXPONENTS[:scales]
    return [exponent / sum(chosen) for exponent in chosen]


def _similarity_maps(a: Tensor, b: Tensor, data_range: float) -> tuple[Tensor, Tensor]:
    """Luminance, and contrast times structure, around each pixel that has a whole window."""
    stabilise_mean = (K1 * data_range) ** 2
    stabilise_variance = (K2 * data_range) ** 2
    means = _window_means(torch.cat([a, b, a * a, b * b, a * b], dim=1))
    mean_a, mean_b, mean_aa, mean_bb, mean_ab = means.chunk(5, dim=1)
    variance_a = mean_aa - mean_a * mean_a
    variance_b = mean_bb - mean_b * mean_b
    covariance = mean_ab - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + stabilise_mean) / (mean_a**2 + mean_b**2 + stabilise_mean)
    structure = (2 * covariance + stabilise_variance) / (
        variance_a + variance_b + stabilise_variance
    )
    return luminance, structure


def _window_means(images: Tensor) -> Tensor:
    """(B,C,H,W) -> (B,C,H-10,W-10): the weighted mean in the window around each pixel that has a
    whole one.
    """
    channels = images.shape[1]
    # Depthwise and contiguous: for that, GPUs have a kernel in full float32. In TF32 the variances,
    # small differences of large numbers, would be lost.
    images = images.contiguous()
    offsets = torch.arange(
        -WINDOW_RADIUS, WINDOW_RADIUS + 1, device=images.device, dtype=images.dtype
    )
    weights = torch.exp(-(offsets**2) / (2 * WINDOW_SIGMA**2))
    weights = (weights / weights.sum()).expand(channels, 1, -1)
    with without_autocast(images.device):
        images = F.conv2d(images, weights[:, :, :, None], groups=channels)
        return F.conv2d(images, weights[:, :, None, :], groups=channels)


def _check_pair(a: Tensor, b: Tensor, data_range: float) -> None:
    if a.shape != b.shape or a.dim() != 4:
        raise ValueError(
            f"two tensors (B,C,H,W) of one shape are needed, not {tuple(a.shape)} and "
            f"{tuple(b.shape)}"
        )
    if not data_range > 0:
        raise ValueError(f"data_range must be above 0, not {data_range}")
    if data_range == 1 and not (a.is_floating_point() and b.is_floating_point()):
        raise ValueError("whole numbers do not span [0,1]: for 8-bit images pass data_range=255")


def _check_sides(images: Tensor) -> None:
    height, width = images.shape[2:]
    if min(height, width) < WINDOW_SIZE:
        raise ValueError(f"SSIM needs sides of {WINDOW_SIZE} pixels or more, not {height}x{width}")


def _checked_pair(a: Tensor, b: Tensor, data_range: float) -> tuple[Tensor, Tensor]:
    """Both as float64."""
    _check_pair(a, b, data_range)
    return _float64(a), _float64(b)


def _float64(images: Tensor) -> Tensor:
    if images.device.type == "mps":  # which has no float64
        images = images.cpu()
    return images.detach().double()


def _wide(images: Tensor) -> Tensor:
    """In 32 bits or more, with their gradient."""
    return images if images.dtype == torch.float64 else images.float()
