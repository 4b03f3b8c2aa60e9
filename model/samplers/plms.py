"""Pseudo Linear Multi-Step sampling, Liu et al. 2202.09778."""

import torch

from model.samplers.base import BaseDiffusion

# Weights of eps now and of the three before it. Stage 0: Euler. Stage 1: improved Euler, from the
# starting point again,
# with the mean of both slopes. Stages 2, 3, 4: Adams-Bashforth of order 2, 3, 4.
ORDERS = torch.tensor(
    [
        [1, 0, 0, 0],
        [1 / 2, 1 / 2, 0, 0],
        [3 / 2, -1 / 2, 0, 0],
        [23 / 12, -16 / 12, 5 / 12, 0],
        [55 / 24, -59 / 24, 37 / 24, -9 / 24],
    ],
    dtype=torch.float64,
)


class PLMS(BaseDiffusion):
    """Equations 9, 11 and 12. The first step asks the network twice; with a single step it is a
    DDIM step.

    Where abar < 1e-6 (the first steps of the sqrt schedule, or of one that ends in pure noise), the
    paper's transfer divides by almost nothing; a DDIM step, which does not, stands in for it.
    """

    def calls(self):
        (first, *rest) = self.time_pairs()
        if not rest:
            return [(*first, 0)]
        return [(*first, 0), (first[1], first[1], 1)] + [
            (*pair, min(i, 4)) for i, pair in enumerate(rest, start=2)
        ]

    def new_history(self, x_T):
        n = len(x_T)
        return {
            "eps": x_T.new_zeros(n, 3, *x_T.shape[1:]),  # newest first
            "x_start": x_T,  # where the first step began
            "t_start": torch.zeros(n, dtype=torch.long),
        }

    def step(self, x_t, prediction, t, t_prev, stage, history, noise=None):
        def per_image(mask):
            return mask.to(x_t.device).view(-1, 1, 1, 1)

        stage, t, t_prev = stage.cpu(), t.cpu(), t_prev.cpu()
        first, again = stage == 0, stage == 1
        x0, eps = self.x0_and_eps(x_t, t, prediction)
        past = history["eps"]
        slopes = torch.cat([eps[:, None], past], dim=1)  # (B,4,C,H,W)
        slope = (ORDERS[stage].to(x_t).view(-1, 4, 1, 1, 1) * slopes).sum(1)

        x = torch.where(per_image(again), history["x_start"], x_t)
        t_from = torch.where(again, history["t_start"], t)
        abar, abar_prev = self.alpha_bar(t_from), self.alpha_bar(t_prev)
        signal, sigma = abar.sqrt().clamp(min=1e-3).to(x_t), (1 - abar).sqrt().to(x_t)
        estimate = (x - sigma * slope) / signal
        if self.clip_sample:
            estimate = estimate.clamp(-1, 1)
            slope = (x - signal * estimate) / sigma
        multistep = abar_prev.sqrt().to(x_t) * estimate + (1 - abar_prev).sqrt().to(x_t) * slope
        ddim = abar_prev.sqrt().to(x_t) * x0 + (1 - abar_prev).sqrt().to(x_t) * eps
        ddim = torch.where(per_image(again), x_t, ddim)  # the first step stays as it was
        one_step = per_image(first) | per_image(abar.view(-1) < 1e-6)

        return torch.where(one_step, ddim, multistep), {
            "eps": torch.where(per_image(again)[:, None], past, slopes[:, :3]),
            "x_start": torch.where(per_image(first), x_t, history["x_start"]),
            "t_start": torch.where(first, t, history["t_start"]),
        }
