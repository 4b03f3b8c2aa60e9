"""Denoising Diffusion Implicit Models, Song et al. 2010.02502."""

from torch import Tensor

from model.samplers.base import BaseDiffusion


class DDIM(BaseDiffusion):
    """Equation 12; eta = 0 is deterministic, eta = 1 adds as much noise as DDPM."""

    def __init__(self, *args, eta: float = 0.0, **kwargs):
        super().__init__(*args, **kwargs)
        if not 0 <= eta <= 1:
            raise ValueError(f"eta must lie in [0, 1], not {eta}")
        self.eta = eta
        self.draws_noise = eta > 0

    def step(self, x_t, prediction, t, t_prev, stage, history, noise=None):
        x0, eps = self.x0_and_eps(x_t, t, prediction)
        abar, abar_prev = self.alpha_bar(t), self.alpha_bar(t_prev)
        sigma = self.eta * ((1 - abar_prev) / (1 - abar) * (1 - abar / abar_prev)).sqrt()
        direction = (1 - abar_prev - sigma**2).clamp(min=0).sqrt()
        x_prev: Tensor = abar_prev.sqrt().to(x_t) * x0 + direction.to(x_t) * eps
        if noise is not None:
            x_prev = x_prev + sigma.to(x_t) * noise
        return x_prev, history
