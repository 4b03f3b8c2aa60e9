"""DPM-Solver++(2M), Lu et al. 2211.01095: second order with one network call a step."""

import torch
from torch import Tensor

from model.diffusion import GaussianDiffusion
from model.samplers.base import BaseDiffusion, per_image
from model.samplers.trajectory import Call

FIRST_ORDER = 1
SECOND_ORDER = 2


class DPMSolver(BaseDiffusion):
    """Algorithm 2: the exact solution of the linear part, and the image estimate x0 taken as linear
    in the log-SNR between its last two values.

    The stage of a call is the order of its step. The first step and the last are of first order,
    which is a DDIM step; the last one ends at the clean image.
    """

    usual_steps = 20
    usual_spacing = "logsnr"

    def calls(self, first_step: int = 0) -> list[Call]:
        pairs = self.time_pairs()[first_step:]
        orders = step_orders(len(pairs))
        return [(t, t_prev, order) for (t, t_prev), order in zip(pairs, orders, strict=True)]

    def new_history(self, x: Tensor) -> dict[str, Tensor]:
        return {
            "x0": torch.zeros_like(x),  # the estimate of the call before
            "t": torch.zeros(len(x), dtype=torch.long, device=x.device),  # its time step
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
        x0 = self.x0_of(x_t, t, prediction, self.clip_sample)
        change = change_of_x0(self, x0, history["x0"], t, history["t"], t_prev)
        towards = torch.where(per_image(stage == SECOND_ORDER), x0 + change / 2, x0)
        return linear_step(self, x_t, towards, t, t_prev), x0, {"x0": x0, "t": t}


def step_orders(steps: int) -> list[int]:
    """The order of each of so many steps: the first has no step before it, and the last one's
    change of the log-SNR is infinite.
    """
    inner = max(0, steps - 2)
    return ([FIRST_ORDER] + [SECOND_ORDER] * inner + [FIRST_ORDER])[:steps]


def finite(coefficient: Tensor) -> Tensor:
    """The coefficient (B,1,1,1), 0 where it is not finite. Such ones belong to images at other
    stages: what is made with them is not taken, but its gradient would be NaN all the same.
    """
    return torch.where(coefficient.isfinite(), coefficient, torch.zeros_like(coefficient))


def half_log_snr(diffusion: GaussianDiffusion, t: Tensor) -> Tensor:
    """lambda_t = log(alpha_t / sigma_t) of t (B,), (B,1,1,1)."""
    return diffusion.levels.log_snr(t) / 2


def linear_step(
    diffusion: GaussianDiffusion, x: Tensor, x0: Tensor, t: Tensor, t_next: Tensor
) -> Tensor:
    """x at t -> x at t_next, if the image estimate were x0 all the way: equation 9 with k = 1."""
    levels = diffusion.levels
    h = half_log_snr(diffusion, t_next) - half_log_snr(diffusion, t)
    x_weight = finite(levels.sigma(t_next) / levels.sigma(t))
    x0_weight = finite(-levels.alpha(t_next) * torch.expm1(-h))
    return x_weight.to(x) * x + x0_weight.to(x) * x0


def change_of_x0(
    diffusion: GaussianDiffusion,
    x0: Tensor,
    x0_before: Tensor,
    t: Tensor,
    t_before: Tensor,
    t_next: Tensor,
) -> Tensor:
    """How much the estimate of x0 will change from t to t_next if it goes on as from t_before to t,
    (B,C,H,W). Without meaning where there is no earlier estimate.
    """
    here = half_log_snr(diffusion, t)
    ratio = (half_log_snr(diffusion, t_next) - here) / (here - half_log_snr(diffusion, t_before))
    return finite(ratio).to(x0) * (x0 - x0_before)
