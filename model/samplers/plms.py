"""Pseudo Linear Multi-Step sampling, Liu et al. 2202.09778."""

import functools

import torch
from torch import Tensor

from model.samplers.base import BaseDiffusion, per_image
from model.samplers.trajectory import Call

# Weights of the slope eps now and of the three before it. Stage 0: Euler. Stage 1: improved Euler,
# from the starting point again, with the mean of both slopes. Stages 2, 3, 4: Adams-Bashforth of
# order 2, 3, 4.
ADAMS_BASHFORTH = (
    (1, 0, 0, 0),
    (1 / 2, 1 / 2, 0, 0),
    (3 / 2, -1 / 2, 0, 0),
    (23 / 12, -16 / 12, 5 / 12, 0),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)
EULER = 0
IMPROVED_EULER = 1
HIGHEST_ORDER = 4

# Below this alpha^2 (the first steps of the sqrt schedule, or of one that ends in pure noise) the
# paper's transfer divides by almost nothing.
SMALLEST_ALPHA_SQUARED = 1e-6


class PLMS(BaseDiffusion):
    """Equations 9, 11 and 12. The first step asks the network twice; alone it is a DDIM step.

    Where alpha^2 < 1e-6, a DDIM step, which does not divide by it, takes the transfer's place.
    """

    def calls(self, first_step: int = 0) -> list[Call]:
        first, *rest = self.time_pairs()[first_step:]
        t, t_prev = first
        if not rest:
            return [(t, t_prev, EULER)]
        plan = [(t, t_prev, EULER), (t_prev, t_prev, IMPROVED_EULER)]
        for order, (t, t_prev) in enumerate(rest, start=2):
            plan.append((t, t_prev, min(order, HIGHEST_ORDER)))
        return plan

    def step_of_call(self, call: int) -> int:
        # Call 1 is at the noise level where step 1 begins.
        return call if call <= 1 else call - 1

    def new_history(self, x: Tensor) -> dict[str, Tensor]:
        n = len(x)
        return {
            "slopes": x.new_zeros(n, 3, *x.shape[1:]),  # eps of earlier calls, newest first
            "x_start": x,  # where the first step began
            "t_start": torch.zeros(n, dtype=torch.long, device=x.device),
        }

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
        euler = stage == EULER
        again = stage == IMPROVED_EULER
        x0, eps = self.x0_and_eps(x_t, t, prediction, self.clip_sample)

        # The slope of this step, from those of the last four calls.
        past = history["slopes"]
        slopes = torch.cat([eps[:, None], past], dim=1)  # (B,4,C,H,W)
        weights = weights_of_slopes(x_t.device, x_t.dtype)[stage].view(-1, 4, 1, 1, 1)
        slope = (weights * slopes).sum(1)

        # Improved Euler begins where Euler did.
        x = torch.where(per_image(again), history["x_start"], x_t)
        t_from = torch.where(again, history["t_start"], t)
        multistep = self._transfer(x, slope, t_from, t_prev)

        # Euler is a DDIM step. Where no transfer is possible the first step stays as Euler made it.
        ddim = torch.where(per_image(again), x_t, self.renoise(x0, eps, t_prev))
        too_noisy = self.levels.alpha_squared(t_from).view(-1) < SMALLEST_ALPHA_SQUARED
        x_prev = torch.where(per_image(euler | too_noisy), ddim, multistep)

        history = {
            "slopes": torch.where(per_image(again)[:, None], past, slopes[:, :3]),
            "x_start": torch.where(per_image(euler), x_t, history["x_start"]),
            "t_start": torch.where(euler, t, history["t_start"]),
        }
        return x_prev, x0, history

    def _transfer(self, x: Tensor, slope: Tensor, t: Tensor, t_prev: Tensor) -> Tensor:
        """x at t -> x at t_prev along a slope: equation 11, as a re-noised estimate of x0."""
        alpha = self.levels.alpha(t).clamp(min=SMALLEST_ALPHA_SQUARED**0.5).to(x)
        sigma = self.levels.sigma(t).to(x)
        x0 = (x - sigma * slope) / alpha
        if self.clip_sample:
            x0 = x0.clamp(-1, 1)
            slope = (x - alpha * x0) / sigma
        return self.renoise(x0, slope, t_prev)


@functools.lru_cache
def weights_of_slopes(device: torch.device, dtype: torch.dtype) -> Tensor:
    """ADAMS_BASHFORTH as a tensor (5,4), moved to each device once."""
    return torch.tensor(ADAMS_BASHFORTH, dtype=torch.float64).to(device, dtype)
