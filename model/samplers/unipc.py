"""UniPC, Zhao et al. 2302.04867: a corrector of second order at no further network call."""

import torch
from torch import Tensor

from model.samplers.base import BaseDiffusion, per_image
from model.samplers.dpm_solver import (
    SECOND_ORDER,
    change_of_x0,
    finite,
    half_log_snr,
    linear_step,
    step_orders,
)
from model.samplers.trajectory import Call

NOT_CORRECTED = 0

# The stage of a call is a place here: the order of the corrector, which mends the step that led to
# this call, and that of the predictor, which makes the next step.
ORDERS = ((0, 1), (1, 1), (1, 2), (2, 1), (2, 2))


class UniPC(BaseDiffusion):
    """UniPC-2 with B(h) = e^h - 1 (their bh2), on the image estimate x0.

    The predictor is DPM-Solver++(2M). When the network is called at its result, the corrector takes
    the step once more, with the new estimate of x0 as well; the image goes on from there. The first
    and the last prediction are of first order.
    """

    usual_steps = 20
    usual_spacing = "logsnr"

    def calls(self, first_step: int = 0) -> list[Call]:
        pairs = self.time_pairs()[first_step:]
        predictors = step_orders(len(pairs))
        correctors = [NOT_CORRECTED, *predictors[:-1]]  # each as its predictor
        stages = [ORDERS.index(orders) for orders in zip(correctors, predictors, strict=True)]
        return [(t, t_prev, stage) for (t, t_prev), stage in zip(pairs, stages, strict=True)]

    def new_history(self, x: Tensor) -> dict[str, Tensor]:
        no_time = torch.zeros(len(x), dtype=torch.long, device=x.device)
        return {
            "x": torch.zeros_like(x),  # where the last step began
            "x_predicted": x,  # where it ended
            "x0": torch.zeros_like(x),  # the estimate there
            "t": no_time,
            "x0_before": torch.zeros_like(x),  # the estimate one step earlier
            "t_before": no_time,
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
        is_corrected = at_stages(stage, [corrector != NOT_CORRECTED for corrector, _ in ORDERS])
        corrects_twice = at_stages(stage, [corrector == SECOND_ORDER for corrector, _ in ORDERS])
        predicts_twice = at_stages(stage, [predictor == SECOND_ORDER for _, predictor in ORDERS])

        # What an edit has changed since the last step is kept beside the correction
        edited = x_t - history["x_predicted"]
        corrected = self._corrected(x0, t, corrects_twice, history) + edited
        x = torch.where(is_corrected, corrected, x_t)

        change = change_of_x0(self, x0, history["x0"], t, history["t"], t_prev)
        towards = torch.where(predicts_twice, x0 + change / 2, x0)
        predicted = linear_step(self, x, towards, t, t_prev)
        history = {
            "x": x,
            "x_predicted": predicted,
            "x0": x0,
            "t": t,
            "x0_before": history["x0"],
            "t_before": history["t"],
        }
        return predicted, x0, history

    def _corrected(
        self, x0: Tensor, t: Tensor, second_order: Tensor, history: dict[str, Tensor]
    ) -> Tensor:
        """The last step once more, now that x0 is known at its end: equation 3, with the
        coefficients of appendix B in closed form.
        """
        start, start_x0 = history["t"], history["x0"]
        there = half_log_snr(self, start)
        h = half_log_snr(self, t) - there
        r = (there - half_log_snr(self, history["t_before"])) / h
        phi1 = torch.expm1(-h)
        phi2 = phi1 / -h - 1
        phi3 = phi2 / -h - 1 / 2
        b1 = phi2 / phi1
        b2 = 2 * phi3 / phi1
        earlier = (b1 - b2) / (1 + r)  # weight of the slope before the step
        now = torch.where(second_order, b1 - earlier, torch.full_like(b1, 1 / 2))

        slope = finite(earlier / r).to(x0) * (start_x0 - history["x0_before"])
        slope = torch.where(second_order, slope, torch.zeros_like(slope))
        towards = start_x0 + slope + now.to(x0) * (x0 - start_x0)
        return linear_step(self, history["x"], towards, start, t)


def at_stages(stage: Tensor, wanted: list[bool]) -> Tensor:
    """Which images are at a wanted stage, (B,1,1,1) bool; `wanted` has a truth for each stage."""
    mask = torch.zeros_like(stage, dtype=torch.bool)
    for place, is_wanted in enumerate(wanted):
        if is_wanted:
            mask = mask | (stage == place)
    return per_image(mask)
