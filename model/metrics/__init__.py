"""How good images are: pure functions, figures in float64.

psnr_ssim      pairs of images; SSIM also as a loss
luma           the brightness that pairs may be measured on
distribution   two sets of feature vectors
"""

from model.metrics.distribution import (
    density_coverage,
    frechet_distance,
    kernel_distance,
    precision_recall,
)
from model.metrics.luma import luma_601
from model.metrics.psnr_ssim import ms_ssim, psnr, ssim, structural_similarity

__all__ = [
    "density_coverage",
    "frechet_distance",
    "kernel_distance",
    "luma_601",
    "ms_ssim",
    "precision_recall",
    "psnr",
    "ssim",
    "structural_similarity",
]
