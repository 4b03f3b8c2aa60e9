"""The forward process: how noise is added, what a network learns, and what its output says.

Training needs nothing else. `model/samplers` reverses the process.

    x_t = alpha_t x0 + sigma_t noise

Variance-preserving schedules have alpha_t = sqrt(abar_t) and sigma_t = sqrt(1 - abar_t); rectified
flow has alpha = 1 - time and sigma = time. Time steps run from 0 to T-1; t = -1 stands for the
clean image, where alpha = 1 and sigma = 0.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from model.condition import without_condition
from model.guidance import without_labels
from model.noise_schedule import FLOW, signal_and_noise
from model.randomness import Generators, draw_normal, draw_stratified, draw_uniform

PREDICTIONS = ("eps", "x0", "v")
# The last two are one function (delta = beta = 1), by the two names that people know.
LOSSES: dict[str, Callable[..., Tensor]] = {
    "mse": F.mse_loss,
    "l1": F.l1_loss,
    "huber": F.huber_loss,
    "smooth_l1": F.smooth_l1_loss,
}
UNIFORM = "uniform"
MIN_SNR = "min_snr"
LOGNORMAL = "lognormal"
LOSS_WEIGHTS = (UNIFORM, MIN_SNR, LOGNORMAL)
MIN_SNR_GAMMA = 5.0
LOGNORMAL_MEAN = -0.8  # of log(sigma / alpha), for images in [-1, 1]
LOGNORMAL_DEVIATION = 1.2

# Where time steps are drawn by their weight: what is drawn evenly nonetheless.
EVEN_SHARE = 0.15
MOST_NOISE_STEPS = 1_000_000

# What a process is where its config does not say: these are only there where they are set, so that
# files from before they existed say the same.
UNLESS_SET = {"noise_shift": 1.0, "zero_terminal_snr": False}

# eps says nothing about x0 where alpha_t = 0; the bound keeps the estimate finite there.
SMALLEST_ALPHA = 1e-12


class NoiseLevels:
    """alpha_t, sigma_t and the log-SNR of each time step, on any device.

    The tables are float64 (float32 on MPS, which has no float64), copied to a device at the first
    use there, and indexed on it: nothing waits for the device.
    """

    def __init__(self, alphas_squared: Tensor, sigmas_squared: Tensor):
        self.alphas_squared = alphas_squared  # (T,) float64, on the CPU
        self.sigmas_squared = sigmas_squared
        self._tables: dict[torch.device, dict[str, Tensor]] = {}

    def alpha_squared(self, t: Tensor) -> Tensor:
        """alpha_t^2 for t (B,) in -1..T-1 -> (B,1,1,1), on t's device; 1 for the clean image."""
        return self._at(t, "alpha_squared")

    def sigma_squared(self, t: Tensor) -> Tensor:
        """sigma_t^2 for t (B,) in -1..T-1 -> (B,1,1,1), on t's device; 0 for the clean image."""
        return self._at(t, "sigma_squared")

    def alpha(self, t: Tensor) -> Tensor:
        """The weight of the image in x_t, (B,1,1,1)."""
        return self._at(t, "alpha")

    def sigma(self, t: Tensor) -> Tensor:
        """The standard deviation of the noise in x_t, (B,1,1,1)."""
        return self._at(t, "sigma")

    def log_snr(self, t: Tensor) -> Tensor:
        """log(alpha_t^2 / sigma_t^2), (B,1,1,1); infinite for the clean image, minus infinity for
        pure noise.
        """
        return self._at(t, "log_snr")

    def lognormal_density(self, t: Tensor) -> Tensor:
        """How often time step t would be drawn if log(sigma / alpha) were normal, 1 on average,
        (B,1,1,1): see `lognormal_density` below.
        """
        return self._at(t, "lognormal_density")

    def _at(self, t: Tensor, name: str) -> Tensor:
        if t.device not in self._tables:
            self._tables[t.device] = self._tables_for(t.device)
        return self._tables[t.device][name][t].view(-1, 1, 1, 1)

    def _tables_for(self, device: torch.device) -> dict[str, Tensor]:
        """All tables (T+1,), with one entry more, so that index -1 is the clean image."""
        clean = torch.ones(1, dtype=torch.float64)
        alphas = torch.cat([self.alphas_squared, clean])
        sigmas = torch.cat([self.sigmas_squared, 1 - clean])
        tables = {
            "alpha_squared": alphas,
            "sigma_squared": sigmas,
            "alpha": alphas.sqrt(),
            "sigma": sigmas.sqrt(),
            "log_snr": alphas.log() - sigmas.log(),
            "lognormal_density": torch.cat(
                [lognormal_density(self.alphas_squared, self.sigmas_squared), 0 * clean]
            ),
        }
        dtype = torch.float32 if device.type == "mps" else torch.float64
        return {name: table.to(device, dtype) for name, table in tables.items()}


def lognormal_density(alphas_squared: Tensor, sigmas_squared: Tensor) -> Tensor:
    """How often each time step is the nearest one to a level whose log(sigma / alpha) is drawn from
    a normal distribution, as Karras et al. 2206.00364 (section 5) draw it: (T,), 1 on average.
    """
    log_ratios = (sigmas_squared.log() - alphas_squared.log()) / 2  # ascending
    borders = (log_ratios[1:] + log_ratios[:-1]) / 2
    below = torch.special.ndtr((borders - LOGNORMAL_MEAN) / LOGNORMAL_DEVIATION)
    nothing, everything = below.new_zeros(1), below.new_ones(1)
    shares = torch.diff(below, prepend=nothing, append=everything)
    return shares * len(shares)


class GaussianDiffusion:
    """The forward process, the training target and the loss (Ho et al. 2006.11239).

    `config` goes into the checkpoint: GaussianDiffusion(**config) is the same process again.
    Raises ValueError, naming the option, for values out of bounds.
    """

    def __init__(
        self,
        noise_steps: int = 1000,  # T
        noise_schedule: str = "linear",  # or cosine, sqrt_linear, sqrt, flow
        beta_start: float = 1e-4,  # this and beta_end: for T = 1000; cosine and flow have none
        beta_end: float = 2e-2,
        prediction: str = "eps",  # what the output means; or x0, or v (see `velocity_weights`)
        noise_shift: float = 1.0,  # so many times as much noise at each time step
        zero_terminal_snr: bool = False,  # pure noise at the last time step
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
        if not 0 < noise_shift < math.inf:
            raise ValueError(f"noise_shift must be greater than 0, not {noise_shift}")
        self.config = {
            "noise_steps": noise_steps,
            "noise_schedule": noise_schedule,
            "prediction": prediction,
            "beta_start": beta_start,
            "beta_end": beta_end,
        }
        younger = {"noise_shift": noise_shift, "zero_terminal_snr": zero_terminal_snr}
        self.config |= {name: value for name, value in younger.items() if value != UNLESS_SET[name]}
        self.noise_steps = noise_steps
        self.prediction = prediction
        self.is_flow = noise_schedule == FLOW
        alphas_squared, sigmas_squared = signal_and_noise(
            noise_schedule, noise_steps, beta_start, beta_end, noise_shift, zero_terminal_snr
        )
        if (alphas_squared[:-1] == 0).any() or (sigmas_squared == 0).any():
            raise ValueError(
                "some time steps before the last one are pure noise, or some have no noise, as far "
                "as 64 bits can tell: beta_start, beta_end or noise_shift is too extreme"
            )
        if prediction == "eps" and alphas_squared[-1] == 0:
            raise ValueError(
                "prediction eps says nothing about the image at the last time step, which is pure "
                "noise here; v and x0 do"
            )
        # (T,) float64, on the CPU; for the flow, of the variance-preserving process of equal SNR
        self.alphas_cumprod = alphas_squared
        if self.is_flow:
            self.alphas_cumprod = alphas_squared / (alphas_squared + sigmas_squared)
        self.levels = NoiseLevels(alphas_squared, sigmas_squared)
        self._densities: dict[str, Tensor] = {}  # of time steps, by the weight of the loss

    # --- The forward process ---

    def transition(self, t: Tensor, t_prev: Tensor) -> tuple[Tensor, Tensor]:
        """q(x_t | x_t_prev) is normal about k x_t_prev: k^2 and its variance, each (B,1,1,1)."""
        before = self.levels.alpha_squared(t_prev)
        # In the 32 bits of MPS more than the last time step may have no signal.
        kept = self.levels.alpha_squared(t) / before.clamp(min=torch.finfo(before.dtype).tiny)
        added = self.levels.sigma_squared(t) - kept * self.levels.sigma_squared(t_prev)
        return kept, added.clamp(min=0)

    def posterior_variance(self, t: Tensor, t_prev: Tensor) -> Tensor:
        """Of q(x_t_prev | x_t, x0), (B,1,1,1): Ho et al. 2006.11239, equation 7."""
        _, added = self.transition(t, t_prev)
        return added * self.levels.sigma_squared(t_prev) / self.levels.sigma_squared(t)

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
            return (alpha.to(x0) * x0).add_(self.levels.sigma(t).to(x0) * eps)
        kept = (self.levels.sigma_squared(t) - spread**2).clamp(min=0).sqrt()
        return (alpha.to(x0) * x0).add_(kept.to(x0) * eps).add_(spread.to(x0) * noise)

    # --- What the network learns ---

    def sample_time_steps(
        self, n: int, generator: Generators = None, weight: str = UNIFORM
    ) -> Tensor:
        """(n,) long in 0..T-1, as often as `time_density` says; in a training step spread evenly
        over their distribution, so that the mean loss of a step varies less.
        """
        uniform = draw_stratified(n, generator)
        if weight == UNIFORM:
            t = (uniform * self.noise_steps).long()
        else:
            shares = self.time_density(weight).cumsum(0) / self.noise_steps
            t = torch.searchsorted(shares.to(uniform.device), uniform, right=True)
        return t.clamp(max=self.noise_steps - 1)

    def time_density(self, weight: str) -> Tensor:
        """How often each time step is drawn where time steps are drawn by the weight of their loss:
        (T,) float64 on the CPU, 1 on average. ValueError for an unknown weight.

        A loss is divided by its density (`losses_of`), so that its mean stays what it is, but it
        varies less: uniform draws spend two fifths of a batch on time steps that hardly count. The
        weight here is the one of the error of v, which is about as large at all time steps.
        """
        if weight == UNIFORM:
            return torch.ones(self.noise_steps, dtype=torch.float64)
        if weight not in self._densities:
            t = torch.arange(self.noise_steps)
            of_v = self._weight_of_image(t, weight) * self.levels.sigma_squared(t).flatten()
            self._densities[weight] = (1 - EVEN_SHARE) * of_v / of_v.mean() + EVEN_SHARE
        return self._densities[weight]

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the network is to predict, (B,C,H,W)."""
        if self.prediction == "eps":
            return noise
        if self.prediction == "x0":
            return x0
        alpha, sigma = self.levels.alpha(t).to(x0), self.levels.sigma(t).to(x0)
        noise_weight, image_weight = self.velocity_weights(alpha, sigma)
        return noise_weight * noise - image_weight * x0

    def velocity_weights(
        self, alpha: Tensor, sigma: Tensor
    ) -> tuple[Tensor, Tensor] | tuple[float, float]:
        """What v is made of at this noise level: v = a noise - b x0; a and b.

        alpha noise - sigma x0 where the variance is preserved (Salimans & Ho 2202.00512), and
        noise - x0 in rectified flow (Liu et al. 2209.03003). In both a alpha + b sigma = 1, so that
        x0 = a x_t - sigma v, and noise = b x_t + alpha v.
        """
        return (1.0, 1.0) if self.is_flow else (alpha, sigma)

    def draw(
        self,
        shape: Sequence[int],
        with_labels: bool,
        generator: Generators,
        label_drop: float,
        weight: str = UNIFORM,
    ) -> dict[str, Tensor]:
        """What the loss of a batch of this shape (B,C,H,W) needs at random, drawn on the CPU.

        Each image draws its time step "t" (B,), whether its label is dropped "dropped" (B,) bool,
        with probability `label_drop`, and its "noise" (B,C,H,W), in this order. Where time steps
        are drawn by a `weight` of the loss, their "density" (B,) is there too.
        """
        n = shape[0]
        draws = {"t": self.sample_time_steps(n, generator, weight)}
        if weight != UNIFORM:
            density = self.time_density(weight).to(draws["t"].device)
            draws["density"] = density[draws["t"]].float()
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
        condition: Tensor | None = None,
    ) -> Tensor:
        """x0 (B,C,H,W), labels (B,), rows of them (B,W) or None, and what `draw` gave, all on one
        device -> (B,).

        Each image's loss is multiplied by `loss_weight` of its time step, and divided by the
        density of that where `draws` have one. A dropped label becomes the null label
        (classifier-free guidance, Ho & Salimans 2207.12598), image by image. Where x0 are
        augmented, `draws` say how ("augmentation"), and the network is told. A `condition`
        (B,K,H,W), see model/condition.py, goes in behind x_t, but for the images where it is
        dropped ("condition_dropped").
        """
        if labels is not None:
            if len(labels) != len(x0) or labels.dim() > 2:
                raise ValueError(f"{len(x0)} images need as many labels, not {tuple(labels.shape)}")
            labels = without_labels(labels, network, draws["dropped"])
        t = draws["t"]
        noise = draws["noise"].to(x0)
        x_t, noise = self.noise_images(x0, t, noise)
        if condition is not None:
            kept = without_condition(condition, draws["condition_dropped"])
            x_t = torch.cat([x_t, kept.to(x_t)], dim=1)
        augmentation = {key: draws[key] for key in ("augmentation",) if key in draws}
        prediction = network(x_t, t, labels, **augmentation)
        target = self.target(x0, noise, t)
        losses = LOSSES[kind](prediction.to(x0), target, reduction="none").flatten(1).mean(1)
        if weight != UNIFORM:
            losses = losses * self.loss_weight(t, weight).to(losses)
        if "density" in draws:
            losses = losses / draws["density"].to(losses)
        return losses

    def loss_weight(self, t: Tensor, weight: str) -> Tensor:
        """The weight of the loss at time steps t (B,) -> (B,), with which the network learns the
        same whatever it predicts. ValueError for an unknown weight.

        - "uniform": 1.
        - "min_snr": min(SNR, 5) times the squared error of the image x0 (Hang et al. 2303.09556).
        - "lognormal": the squared error of v, times how often the time step would be drawn if
          log(sigma / alpha) were normal (`lognormal_density`). Where the schedule preserves the
          variance, that is the loss of Karras et al. 2206.00364, with sigma_data = 1 and a somewhat
          noisier mean; with the flow, whose v is another, its weight on the error of x0 is once to
          twice theirs.

        The error of x0 is the one of v times sigma_t, and the one of eps divided by the root of the
        SNR.
        """
        if weight == UNIFORM:
            return torch.ones(len(t), device=t.device)
        of_image = self._weight_of_image(t, weight)
        if self.prediction == "eps":
            return of_image / self._snr(t)
        if self.prediction == "x0":
            return of_image
        return of_image * self.levels.sigma_squared(t).flatten()

    def _weight_of_image(self, t: Tensor, weight: str) -> Tensor:
        """The weight of the squared error of the image x0, (B,)."""
        if weight == MIN_SNR:
            return self._snr(t).clamp(max=MIN_SNR_GAMMA)
        if weight == LOGNORMAL:
            return (self.levels.lognormal_density(t) / self.levels.sigma_squared(t)).flatten()
        known = ", ".join(LOSS_WEIGHTS)
        raise ValueError(f"loss weight {weight!r} is unknown; known are {known}")

    def _snr(self, t: Tensor) -> Tensor:
        return self.levels.log_snr(t).flatten().exp()

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

    def x0_of(self, x_t: Tensor, t: Tensor, prediction: Tensor, clip: bool = False) -> Tensor:
        """The prediction as an estimate of the image, (B,C,H,W); with `clip`, within [-1, 1]."""
        alpha = self.levels.alpha(t).to(x_t)
        sigma = self.levels.sigma(t).to(x_t)
        return self._x0(x_t, prediction, alpha, sigma, clip)

    def x0_and_eps(
        self, x_t: Tensor, t: Tensor, prediction: Tensor, clip: bool = False
    ) -> tuple[Tensor, Tensor]:
        """The prediction as estimates of the image and of the noise in x_t, each (B,C,H,W).

        With `clip`, x0 is clipped to [-1, 1], and eps is the noise that belongs to the clipped x0.
        """
        alpha = self.levels.alpha(t).to(x_t)
        sigma = self.levels.sigma(t).to(x_t)
        x0 = self._x0(x_t, prediction, alpha, sigma, clip)
        if clip or self.prediction == "x0":
            return x0, (alpha * x0).sub_(x_t).div_(-sigma)
        if self.prediction == "eps":
            return x0, prediction
        _, image_weight = self.velocity_weights(alpha, sigma)
        return x0, (image_weight * x_t).add_(alpha * prediction)

    def _x0(
        self, x_t: Tensor, prediction: Tensor, alpha: Tensor, sigma: Tensor, clip: bool
    ) -> Tensor:
        if self.prediction == "x0":
            return prediction.clamp(-1, 1) if clip else prediction
        if self.prediction == "eps":
            x0 = (x_t - sigma * prediction).div_(alpha.clamp(min=SMALLEST_ALPHA))
        else:
            noise_weight, _ = self.velocity_weights(alpha, sigma)
            x0 = (noise_weight * x_t).sub_(sigma * prediction)
        return x0.clamp_(-1, 1) if clip else x0
