"""How near restored images (enlarged, or decoded from latents) are to their originals."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from model.metrics import luma_601, psnr, ssim
from model.metrics.psnr_ssim import WINDOW_SIZE
from utils.image_facts import BRIGHTEST

PSNR_OF_EQUAL = 100.0  # dB, instead of infinity, so that a mean exists


@dataclass(frozen=True)
class Convention:
    """What PSNR and SSIM are measured on."""

    border: int = 0  # pixels left out at each side
    luma: bool = False  # Y of BT.601 instead of all channels
    mode: str = "RGB"
    degraded: bool = False  # whether what is restored was made worse on purpose

    def __str__(self) -> str:
        what = "Y of BT.601" if self.luma else {"L": "grey"}.get(self.mode, self.mode)
        parts = [what, "8 bits"]
        if self.border:
            plural = "" if self.border == 1 else "s"
            parts.append(f"without a border of {self.border} pixel{plural}")
        if self.degraded:
            parts.append("degraded small images")
        return ", ".join(parts)


def restoration_scores(
    restored: Tensor, originals: Tensor, convention: Convention
) -> tuple[Tensor, Tensor]:
    """8-bit images (B,C,H,W) twice -> PSNR in dB and SSIM of each, (B,) float64.

    Equal images count as 100 dB. SSIM is NaN where a side has less than 11 pixels.
    """
    pair = [images.double() for images in (restored, originals)]
    if convention.luma:
        pair = [luma_601(images) for images in pair]
    if convention.border:
        inner = slice(convention.border, -convention.border)
        pair = [images[..., inner, inner] for images in pair]
    values = psnr(pair[0], pair[1], BRIGHTEST).clamp(max=PSNR_OF_EQUAL)
    if min(pair[0].shape[2:]) < WINDOW_SIZE:
        return values, torch.full_like(values, float("nan"))
    return values, ssim(pair[0], pair[1], BRIGHTEST)


def restoration_in_words(scores: Mapping[str, float]) -> str:
    """The figures that are there, such as "PSNR 24.83 dB (bicubic 21.80 dB), SSIM 0.9123"."""
    baseline = _figures(scores, "bicubic_")
    parts = []
    for name, text in _figures(scores, "").items():
        part = f"{name} {text}"
        if name in baseline:
            part += f" (bicubic {baseline[name]})"
        parts.append(part)
    return ", ".join(parts)


def baseline_in_words(scores: Mapping[str, float]) -> str:
    """ "bicubic interpolation has PSNR 21.80 dB, SSIM 0.8310"."""
    figures = _figures(scores, "bicubic_").items()
    return "bicubic interpolation has " + ", ".join(f"{name} {text}" for name, text in figures)


def _figures(scores: Mapping[str, float], prefix: str) -> dict[str, str]:
    """PSNR and SSIM, as far as they are there."""
    found = {}
    if f"{prefix}psnr" in scores:
        found["PSNR"] = f"{scores[f'{prefix}psnr']:.2f} dB"
    if f"{prefix}ssim" in scores:
        found["SSIM"] = f"{scores[f'{prefix}ssim']:.4f}"
    return found
