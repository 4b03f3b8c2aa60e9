"""The forward process: how noise is added, what a network learns, and what its output says.

Training needs nothing else. `model/samplers` reverses the process.

    x_t = alpha_t x0 + sigma_t noise,   alpha_t = sqrt(abar_t),   sigma_t = sqrt(1 - abar_t)

Time steps run from 0 to T-1; t = -1 stands for the clean image, where abar = 1.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from model.guidance import null_label
from model.noise_schedule import betas
from model.randomness import Generators, draw_normal, draw_stratified, draw_uniform

PREDICTIONS = ("eps", "x0", "v")
LOSSES: dict[str, Callable[..., Tensor]] = {
    "mse": F.mse_loss,
    "l1": F.l1_loss,
    "huber": F.huber_loss,
    "smooth_l1": F.smooth_l1_loss,
}
LOSS_WEIGHTS = ("uniform", "min_snr")
MIN_SNR_GAMMA = 5.0
MOST_NOISE_STEPS = 1_000_000

# eps says nothing about x0 where alpha_t = 0; the bound keeps the estimate finite there.
SMALLEST_ALPHA = 1e-12


class NoiseLevels:
    """abar_t, alpha_t, sigma_t and the log-SNR of each time step, on any device.

    The tables are float64 (float32 on MPS, which has no float64), copied to a device at the first
    use there, and indexed on it: nothing waits for the device.
    """

    def __init__(self, alphas_cumprod: Tensor):
        self.alphas_cumprod = alphas_cumprod  # (T,) float64, on the CPU
        self._tables: dict[torch.device, Tensor] = {}

    def alpha_bar(self, t: Tensor) -> Tensor:
        """abar_t for t (B,) in -1..T-1 -> (B,1,1,1), on t's device."""
        return self._table(t.device)[t].view(-1, 1, 1, 1)

    def alpha(self, t: Tensor) -> Tensor:
        """The weight of the image in x_t: sqrt(abar_t), (B,1,1,1)."""
        return self.alpha_bar(t).sqrt()

    def sigma(self, t: Tensor) -> Tensor:
        """The standard deviation of the noise in x_t: sqrt(1 - abar_t), (B,1,1,1)."""
        return (1 - self.alpha_bar(t)).sqrt()

    def log_snr(self, t: Tensor) -> Tensor:
        """log(alpha_t^2 / sigma_t^2), (B,1,1,1); infinite for the clean image."""
        alpha_bar = self.alpha_bar(t)
        return alpha_bar.log() - (1 - alpha_bar).log()

    def _table(self, device: torch.device) -> Tensor:
        """abar with one entry more, so that index -1 is the clean image; (T+1,)."""
        if device not in self._tables:
            clean = torch.ones(1, dtype=torch.float64)
            dtype = torch.float32 if device.type == "mps" else torch.float64
            self._tables[device] = torch.cat([self.alphas_cumprod, clean]).to(device, dtype)
        return self._tables[device]


class GaussianDiffusion:
    """The forward process, the training target and the loss (Ho et al. 2006.11239).

    `config` goes into the checkpoint: GaussianDiffusion(**config) is the same process again.
    Raises ValueError, naming the option, for values out of bounds.
    """

    def __init__(
        self,
        noise_steps: int = 1000,  # T
        noise_schedule: str = "linear",  # or cosine, sqrt_linear, sqrt
        beta_start: float = 1e-4,  # this and beta_end: for T = 1000; the cosine schedule has none
        beta_end: float = 2e-2,
        prediction: str = "eps",  # what the output means; or x0, or v (Salimans & Ho 2202.00512)
    ):
        if not 1 <= noise_steps <= MOST_NOISE_STEPS:
            raise ValueError(f"noise_steps must lie in 1..{MOST_NOISE_STEPS}, not {noise_steps}")
        if not 0 < beta_start <= beta_end < 1:
            raise ValueError(
                f"0 < beta_start <= beta_end < 1 must hold, not {beta_start} and {beta_end}"
            )
        if prediction not in PREDICTIONS:
            known = ", ".join(PREDICTIONS)
            raise ValueError(f"prediction {prediction!r} is unknown; known are {known}")
        self.config = {
            "noise_steps": noise_steps,
            "noise_schedule": noise_schedule,
            "prediction": prediction,
            "beta_start": beta_start,
            "beta_end": beta_end,
        }
        self.noise_steps = noise_steps
        self.prediction = prediction
        steps = betas(noise_schedule, noise_steps, beta_start, beta_end)
        self.alphas_cumprod = torch.cumprod(1 - steps, dim=0)  # (T,) float64, on the CPU
        self.levels = NoiseLevels(self.alphas_cumprod)

    # --- The forward process ---

    def alpha_bar(self, t: Tensor) -> Tensor:
        """abar_t for t (B,) in -1..T-1 -> (B,1,1,1), on t's device."""
        return self.levels.alpha_bar(t)

    def noise_images(
        self, x0: Tensor, t: Tensor, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """x0 (B,C,H,W), t (B,) -> x_t (B,C,H,W) and the noise in it (drawn where none is given)."""
        if noise is None:
            noise = torch.randn_like(x0)
        return self.renoise(x0, noise, t), noise

    def renoise(
        self,
        x0: Tensor,
        eps: Tensor,
        t: Tensor,
        spread: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """An image x0 with the noise eps, at noise level t: alpha_t x0 + sigma_t eps.

        With `spread` (B,1,1,1), so much of the noise is new: alpha_t x0 + sqrt(sigma_t^2 -
        spread^2) eps + spread noise. For t = -1, x0 itself.
        """
        alpha = self.levels.alpha(t)
        if spread is None or noise is None:
            return alpha.to(x0) * x0 + self.levels.sigma(t).to(x0) * eps
        kept = (1 - self.alpha_bar(t) - spread**2).clamp(min=0).sqrt()
        return alpha.to(x0) * x0 + kept.to(x0) * eps + spread.to(x0) * noise

    # --- What the network learns ---

    def sample_time_steps(self, n: int, generator: Generators = None) -> Tensor:
        """(n,) long, uniform over 0..T-1; in a training step spread evenly over them, so that the
        mean loss of a step varies less.
        """
        uniform = draw_stratified(n, generator)
        return (uniform * self.noise_steps).long().clamp(max=self.noise_steps - 1)

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the network is to predict, (B,C,H,W)."""
        if self.prediction == "eps":
            return noise
        if self.prediction == "x0":
            return x0
        return self.levels.alpha(t).to(x0) * noise - self.levels.sigma(t).to(x0) * x0

    def draw(
        self, shape: Sequence[int], with_labels: bool, generator: Generators, label_drop: float
    ) -> dict[str, Tensor]:
        """What the loss of a batch of this shape (B,C,H,W) needs at random, drawn on the CPU.

        Each image draws its time step "t" (B,), whether its label is dropped "dropped" (B,) bool,
        with probability `label_drop`, and its "noise" (B,C,H,W), in this order.
        """
        n = shape[0]
        draws = {"t": self.sample_time_steps(n, generator)}
        if with_labels:
            draws["dropped"] = draw_uniform(n, generator) < label_drop
        draws["noise"] = draw_normal(n, shape[1:], generator)
        return draws

    def losses_of(
        self,
        network: Callable[..., Tensor],
        x0: Tensor,
        labels: Tensor | None,
        draws: dict[str, Tensor],
        kind: str = "mse",
        weight: str = "uniform",
    ) -> Tensor:
        """x0 (B,C,H,W), labels (B,) or None, and what `draw` gave, all on one device -> (B,).

        Each image's loss is multiplied by `loss_weight` of its time step. A dropped label becomes
        the null label (classifier-free guidance, Ho & Salimans 2207.12598), image by image.
        """
        if labels is not None:
            if labels.shape != (len(x0),):
                raise ValueError(f"{len(x0)} images need as many labels, not {tuple(labels.shape)}")
            labels = torch.where(draws["dropped"], null_label(network), labels)
        t = draws["t"]
        noise = draws["noise"].to(x0)
        x_t, noise = self.noise_images(x0, t, noise)
        prediction = network(x_t, t, labels)
        target = self.target(x0, noise, t)
        losses = LOSSES[kind](prediction.to(x0), target, reduction="none").flatten(1).mean(1)
        if weight == "uniform":
            return losses
        return losses * self.loss_weight(t, weight).to(losses)

    def loss_weight(self, t: Tensor, weight: str) -> Tensor:
        """The weight of the loss at time steps t (B,) -> (B,): "uniform", or "min_snr" (Hang et al.
        2303.09556), which is min(SNR, 5) times the squared error of the image x0.

        That error is the one of v divided by SNR + 1, and the one of eps divided by SNR.
        """
        if weight == "uniform":
            return torch.ones(len(t), device=t.device)
        if weight != "min_snr":
            known = ", ".join(LOSS_WEIGHTS)
            raise ValueError(f"loss weight {weight!r} is unknown; known are {known}")
        snr = self.levels.log_snr(t).flatten().exp()
        clipped = snr.clamp(max=MIN_SNR_GAMMA)
        if self.prediction == "v":
            return clipped / (snr + 1)
        if self.prediction == "eps":
            return (MIN_SNR_GAMMA / snr).clamp(max=1)
        return clipped

    def losses(
        self,
        network: Callable[..., Tensor],
        x0: Tensor,
        labels: Tensor | None = None,
        generator: Generators = None,
        kind: str = "mse",
        label_drop: float = 0.1,
    ) -> tuple[Tensor, Tensor]:
        """x0 (B,C,H,W), labels (B,) or None -> each image's loss (B,) and its time step (B,)."""
        draws = self.draw(x0.shape, labels is not None, generator, label_drop)
        draws = {name: value.to(x0.device) for name, value in draws.items()}
        return self.losses_of(network, x0, labels, draws, kind), draws["t"]

    def loss(
        self,
        network: Callable[..., Tensor],
        x0: Tensor,
        labels: Tensor | None = None,
        generator: Generators = None,
        kind: str = "mse",
        label_drop: float = 0.1,
    ) -> Tensor:
        """The mean of `losses` over the batch: a scalar."""
        return self.losses(network, x0, labels, generator, kind, label_drop)[0].mean()

    # --- What the network's output says ---

    def x0_and_eps(
        self, x_t: Tensor, t: Tensor, prediction: Tensor, clip: bool = False
    ) -> tuple[Tensor, Tensor]:
        """The prediction as estimates of the image and of the noise in x_t, each (B,C,H,W).

        With `clip`, x0 is clipped to [-1, 1], and eps is the noise that belongs to the clipped x0.
        """
        alpha = self.levels.alpha(t).to(x_t)
        sigma = self.levels.sigma(t).to(x_t)
        if self.prediction == "v":
            x0 = alpha * x_t - sigma * prediction
            eps = sigma * x_t + alpha * prediction
        elif self.prediction == "x0":
            x0 = prediction
            eps = (x_t - alpha * x0) / sigma
        else:
            eps = prediction
            x0 = (x_t - sigma * eps) / alpha.clamp(min=SMALLEST_ALPHA)
        if clip:
            x0 = x0.clamp(-1, 1)
            eps = (x_t - alpha * x0) / sigma
        return x0, eps
