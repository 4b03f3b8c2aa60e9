"""From an image back to the noise that becomes it, and from there to the image again."""

import torch
from torch import Tensor

from model.samplers.base import per_image
from model.samplers.ddim import DDIM
from model.samplers.trajectory import Call

USUAL_ROUNDS = 5
USUAL_DEVIATION = 0.5  # of pixels in [-1, 1]


class InvertingDDIM(DDIM):
    """DDIM without noise of its own, first backwards: it starts at images (x_T of `start`), and
    after `backward_calls` network calls it is at the noise from which the other calls make them.

    A step back needs the network at the noisier image, which it looks for: x_t is put in, the step
    from it is made, and what it misses is added, `rounds` times (a fixed point; Pan et al.
    2309.04907 do so with acceleration). The stage of a call is how many rounds its step has left,
    0 on the way to the image.
    """

    rounds: int

    @classmethod
    def of(cls, sampler: DDIM, rounds: int = USUAL_ROUNDS) -> "InvertingDDIM":
        """With the process, steps and tables of a DDIM. Raises ValueError where that adds noise."""
        if type(sampler) is not DDIM or sampler.eta != 0:
            raise ValueError("only DDIM with eta 0 can be inverted")
        inverting = cls.__new__(cls)
        inverting.__dict__.update(sampler.__dict__)
        inverting.rounds = rounds
        return inverting

    @property
    def backward_calls(self) -> int:
        """The network calls of the way from an image to its noise."""
        return self.rounds * len(self.grid)

    def settings(self) -> dict:
        return {**super().settings(), "rounds": self.rounds}

    def calls(self, first_step: int = 0) -> list[Call]:
        back = [
            (t, t_prev, left)
            for t, t_prev in reversed(self.time_pairs())
            for left in range(self.rounds, 0, -1)
        ]
        return [*back, *super().calls()][first_step:]

    def new_history(self, x: Tensor) -> dict[str, Tensor]:
        """The less noisy image that the present step is to lead to."""
        return {"target": x}

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
        reached, x0, _ = super().step(x_t, prediction, t, t_prev, stage, {})
        target = history["target"]
        nearer = x_t + (target - reached) * self._slope(t, t_prev).to(x_t)
        x = torch.where(per_image(stage > 0), nearer, reached)
        target = torch.where(per_image(stage == 1), nearer, target)
        return x, x0, {"target": target}

    def _slope(self, t: Tensor, t_prev: Tensor) -> Tensor:
        """About how much x_t changes with x_t_prev along the flow, (B,1,1,1): exactly so for
        Gaussian data of a usual deviation.
        """
        here, there = (
            self.levels.alpha_squared(step) * USUAL_DEVIATION**2 + self.levels.sigma_squared(step)
            for step in (t, t_prev)
        )
        return (here / there).sqrt()
