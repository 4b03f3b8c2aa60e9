"""Denoising Diffusion Implicit Models, Song et al. 2010.02502."""

import torch
from torch import Tensor

from model.samplers.base import BaseDiffusion


class DDIM(BaseDiffusion):
    """Equation 12: the estimate of x0, noised again to t_prev with the noise that was found.

    eta = 0 is deterministic; eta = 1 replaces as much of the noise with new noise as DDPM does
    (equation 16). Raises ValueError for eta outside [0, 1].
    """

    def __init__(
        self,
        noise_steps: int = 1000,
        noise_schedule: str = "linear",
        beta_start: float = 1e-4,
        beta_end: float = 2e-2,
        prediction: str = "eps",
        sample_steps: int | None = None,
        timestep_spacing: str = "trailing",
        clip_sample: bool = True,
        eta: float = 0.0,
        device: str | torch.device = "cpu",
        noise_shift: float = 1.0,
        zero_terminal_snr: bool = False,
    ):
        super().__init__(
            noise_steps,
            noise_schedule,
            beta_start,
            beta_end,
            prediction,
            sample_steps,
            timestep_spacing,
            clip_sample,
            device,
            noise_shift,
            zero_terminal_snr,
        )
        if not 0 <= eta <= 1:
            raise ValueError(f"eta must lie in [0, 1], not {eta}")
        self.eta = eta
        self.draws_noise = eta > 0

    def settings(self) -> dict:
        return {**super().settings(), "eta": self.eta}

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
        x0, eps = self.x0_and_eps(x_t, t, prediction, self.clip_sample)
        if noise is None:
            return self.renoise(x0, eps, t_prev), x0, history
        posterior = self.posterior_variance(t, t_prev).sqrt()
        return self.renoise(x0, eps, t_prev, self.eta * posterior, noise), x0, history
