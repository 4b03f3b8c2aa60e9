"""How good images are: pure functions in float64.

psnr_ssim      pairs of images
distribution   two sets of feature vectors
"""

from model.metrics.distribution import (
    density_coverage,
    frechet_distance,
    kernel_distance,
    precision_recall,
)
from model.metrics.psnr_ssim import psnr, ssim

__all__ = [
    "density_coverage",
    "frechet_distance",
    "kernel_distance",
    "precision_recall",
    "psnr",
    "ssim",
]
