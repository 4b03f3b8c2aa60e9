"""Denoising Diffusion Probabilistic Models, Ho et al. 2006.11239."""

import torch
from torch import Tensor

from model.samplers.base import BaseDiffusion


class DDPM(BaseDiffusion):
    """Ancestral sampling: the mean and variance of q(x_{t_prev} | x_t, x0), equations 6 and 7.

    On a grid with fewer than T steps, the variances are those of the grid's own steps (Nichol &
    Dhariwal 2102.09672, section 4).
    """

    draws_noise = True
    usual_steps = None

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
        x0 = self.x0_of(x_t, t, prediction, self.clip_sample)
        kept, added = self.transition(t, t_prev)
        variance = self.levels.sigma_squared(t)
        x0_weight = self.levels.alpha(t_prev) * added / variance
        x_weight = kept.sqrt() * self.levels.sigma_squared(t_prev) / variance
        x_prev = x0_weight.to(x_t) * x0 + x_weight.to(x_t) * x_t
        if noise is not None:
            spread = self.posterior_variance(t, t_prev).sqrt()  # 0 for the clean image
            x_prev = torch.addcmul(x_prev, spread.to(x_t), noise)
        return x_prev, x0, history
