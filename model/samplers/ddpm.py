"""Denoising Diffusion Probabilistic Models, Ho et al. 2006.11239."""

import torch
from torch import Tensor

from model.samplers.base import BaseDiffusion


class DDPM(BaseDiffusion):
    """Ancestral sampling: the mean and variance of q(x_{t_prev} | x_t, x0), equations 6 and 7.

    On a grid with fewer than T steps, beta is that of the grid: 1 - abar_t / abar_{t_prev}
    (Nichol & Dhariwal 2102.09672, section 4).
    """

    draws_noise = True

    def step(
        self,
        x_t: Tensor,
        prediction: Tensor,
        t: Tensor,
        t_prev: Tensor,
        stage: Tensor,
        history: dict[str, Tensor],
        noise: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        x0, _ = self.x0_and_eps(x_t, t, prediction, self.clip_sample)
        abar = self.alpha_bar(t)
        abar_prev = self.alpha_bar(t_prev)
        kept = abar / abar_prev  # 1 - beta of this step
        x0_weight = abar_prev.sqrt() * (1 - kept) / (1 - abar)
        x_weight = kept.sqrt() * (1 - abar_prev) / (1 - abar)
        x_prev = x0_weight.to(x_t) * x0 + x_weight.to(x_t) * x_t
        if noise is not None:
            variance = (1 - kept) * (1 - abar_prev) / (1 - abar)  # 0 for the clean image
            x_prev = torch.addcmul(x_prev, variance.sqrt().to(x_t), noise)
        return x_prev, x0, history
