"""What every sampler shares: forward process, loss, guidance and the one sampling loop."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from model.samplers.noise_schedule import betas, time_grid

PREDICTIONS = ("eps", "x0", "v")
LOSSES = {"mse": F.mse_loss, "l1": F.l1_loss, "huber": F.huber_loss, "smooth_l1": F.smooth_l1_loss}

# One generator for a whole batch, or one per image: with one per image, what is drawn for an image
# does not depend on
# which batch, process or position it is in.
Generators = torch.Generator | Sequence[torch.Generator] | None


def draw(
    fn: Callable[..., Tensor], n: int, shape: tuple[int, ...], generator: Generators
) -> Tensor:
    """fn(shape, generator=...) for n images -> (n, *shape); fn is torch.randn or torch.rand. Drawn
    on the generator's device, the CPU by default, so that a seed means the same everywhere.
    """
    if generator is None or isinstance(generator, torch.Generator):
        device = "cpu" if generator is None else generator.device
        return fn((n, *shape), generator=generator, device=device)
    if len(generator) != n:
        raise ValueError(f"{len(generator)} generators were given for {n} images")
    return torch.stack([fn(shape, generator=g, device=g.device) for g in generator])


def guided(network: Callable, labels: Tensor | None, cfg_scale: float | Tensor) -> Callable:
    """The network under classifier-free guidance (Ho & Salimans 2207.12598), with the network's own
    signature.

    prediction = null + s * (label - null), so s = 1 is plain conditional and s = 0 unconditional:
    one call each. Any other s, a number or one per image (B,), is one network call on a batch of
    2B. (Ho & Salimans' w is s - 1.)
    """
    if labels is None or (not isinstance(cfg_scale, Tensor) and cfg_scale == 0):
        return lambda x, t, _=None: network(x, t, None)
    if not isinstance(cfg_scale, Tensor) and cfg_scale == 1:
        return lambda x, t, _=None: network(x, t, labels)

    def guided_network(x: Tensor, t: Tensor, _: Tensor | None = None) -> Tensor:
        both = torch.cat([labels, torch.full_like(labels, null_label(network))])
        label, null = network(torch.cat([x, x]), torch.cat([t, t]), both).chunk(2)
        scale = torch.as_tensor(cfg_scale, device=x.device, dtype=label.dtype).view(-1, 1, 1, 1)
        return null + scale * (label - null)

    return guided_network


def null_label(network: Callable) -> int:
    """The label that stands for "no label". DistributedDataParallel hides the attribute behind
    `module`.
    """
    return getattr(network, "module", network).num_classes


class BaseDiffusion:
    """A diffusion process and a way to sample from it. Subclasses give `step`, and no loop."""

    draws_noise = False  # whether `step` wants noise

    def __init__(
        self,
        # How the network was trained: these go into the checkpoint, as `config`.
        noise_steps: int = 1000,  # T; time steps are 0..T-1
        noise_schedule: str = "linear",  # or cosine, sqrt_linear, sqrt
        beta_start: float = 1e-4,  # this and beta_end: for T = 1000; the cosine schedule has none
        beta_end: float = 2e-2,
        prediction: str = "eps",  # what the network's output means; or x0, or v (Salimans & Ho 2202.00512)
        # How to sample: free to choose.
        sample_steps: int | None = None,  # S, 1..T; None is 50, or T where that is less
        timestep_spacing: str = "trailing",  # or leading, linspace (Lin et al. 2305.08891, table 2)
        clip_sample: bool = True,  # clip each estimate of x0 to [-1, 1]
        device: str | torch.device = "cpu",  # where `sample` works
    ):
        if not 1 <= noise_steps <= 1_000_000:
            raise ValueError(f"noise_steps must lie in 1..1000000, not {noise_steps}")
        sample_steps = min(50, noise_steps) if sample_steps is None else sample_steps
        if not 1 <= sample_steps <= noise_steps:
            raise ValueError(
                f"sample_steps must lie in 1..{noise_steps}, the steps of training, not {sample_steps}"
            )
        if not 0 < beta_start <= beta_end < 1:
            raise ValueError(
                f"0 < beta_start <= beta_end < 1 must hold, not {beta_start} and {beta_end}"
            )
        if prediction not in PREDICTIONS:
            raise ValueError(
                f"prediction {prediction!r} is unknown; known are {', '.join(PREDICTIONS)}"
            )
        self.config = {
            "noise_steps": noise_steps,
            "noise_schedule": noise_schedule,
            "prediction": prediction,
        }
        self.config |= {"beta_start": beta_start, "beta_end": beta_end}
        self.noise_steps, self.prediction, self.clip_sample = noise_steps, prediction, clip_sample
        self.alphas_cumprod = torch.cumprod(
            1 - betas(noise_schedule, noise_steps, beta_start, beta_end), dim=0
        )
        self.grid = time_grid(timestep_spacing, noise_steps, sample_steps)
        self.device = torch.device(device)

    def alpha_bar(self, t: Tensor) -> Tensor:
        """abar_t for t (B,) in -1..T-1 -> (B,1,1,1) float64 on the CPU; abar_-1 = 1, the clean
        image.
        """
        table = torch.cat([self.alphas_cumprod, torch.ones(1, dtype=torch.float64)])
        return table[t.cpu()].view(-1, 1, 1, 1)

    def noise_images(
        self, x0: Tensor, t: Tensor, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """x0 (B,C,H,W), t (B,) -> x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) noise, and the noise."""
        if noise is None:
            noise = torch.randn_like(x0)
        abar = self.alpha_bar(t)
        return abar.sqrt().to(x0) * x0 + (1 - abar).sqrt().to(x0) * noise, noise

    def sample_time_steps(self, n: int, generator: Generators = None) -> Tensor:
        """(n,) long, uniform over 0..T-1."""
        return (
            (draw(torch.rand, n, (), generator).double() * self.noise_steps)
            .long()
            .clamp(max=self.noise_steps - 1)
        )

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the network is to predict, (B,C,H,W)."""
        if self.prediction == "eps":
            return noise
        if self.prediction == "x0":
            return x0
        abar = self.alpha_bar(t)
        return abar.sqrt().to(x0) * noise - (1 - abar).sqrt().to(x0) * x0

    def losses(
        self,
        network: Callable,
        x0,
        labels=None,
        generator: Generators = None,
        kind: str = "mse",
        label_drop: float = 0.1,
    ) -> tuple[Tensor, Tensor]:
        """x0 (B,C,H,W) in [-1,1], labels (B,) or None -> the loss of each image (B,) and its time
        step (B,).

        Each image draws its time step, whether its label is dropped (replaced by the null label,
        with probability `label_drop`) and its noise from the generator, in this order.
        """
        n = len(x0)
        t = self.sample_time_steps(n, generator)
        if labels is not None:
            dropped = draw(torch.rand, n, (), generator) < label_drop
            labels = torch.where(dropped.to(labels.device), null_label(network), labels)
        noise = draw(torch.randn, n, tuple(x0.shape[1:]), generator).to(x0)
        x_t, noise = self.noise_images(x0, t, noise)
        prediction = network(x_t, t.to(x0.device), labels)
        target = self.target(x0, noise, t)
        return LOSSES[kind](prediction.to(x0), target, reduction="none").flatten(1).mean(1), t

    def loss(
        self, network: Callable, x0: Tensor, labels=None, generator: Generators = None, **options
    ) -> Tensor:
        """The mean of `losses` over the batch: a scalar."""
        return self.losses(network, x0, labels, generator, **options)[0].mean()

    def time_pairs(self) -> list[tuple[int, int]]:
        """(t, t_prev) of each step, from noise to image; t_prev is the next grid point, -1 the
        clean image.
        """
        return list(zip(self.grid, [*self.grid[1:], -1], strict=True))

    def calls(self) -> list[tuple[int, int, int]]:
        """(t, t_prev, stage) of each network call. The stage is for multistep samplers; here it is
        0.
        """
        return [(t, t_prev, 0) for t, t_prev in self.time_pairs()]

    def x0_and_eps(self, x_t: Tensor, t: Tensor, prediction: Tensor) -> tuple[Tensor, Tensor]:
        """The network's prediction as estimates of x0 and eps, each (B,C,H,W).

        Where x0 is clipped, eps is the one that belongs to the clipped x0.
        """
        abar = self.alpha_bar(t)
        signal, sigma = abar.sqrt().to(x_t), (1 - abar).sqrt().to(x_t)
        if self.prediction == "v":
            x0, eps = signal * x_t - sigma * prediction, sigma * x_t + signal * prediction
        elif self.prediction == "x0":
            x0, eps = prediction, (x_t - signal * prediction) / sigma
        else:
            # eps says nothing about x0 where abar = 0; the bound keeps it finite there
            x0, eps = (x_t - sigma * prediction) / signal.clamp(min=1e-12), prediction
        if self.clip_sample:
            x0 = x0.clamp(-1, 1)
            eps = (x_t - signal * x0) / sigma
        return x0, eps

    def new_history(self, x_T: Tensor) -> dict[str, Tensor]:
        """What `step` remembers of earlier steps: tensors with leading dimension B."""
        return {}

    def step(
        self, x_t, prediction, t, t_prev, stage, history, noise=None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """One step of the reverse process: x_t -> x at t_prev, and the new history.

        x_t, prediction and noise (standard normal, for samplers with `draws_noise`) are (B,C,H,W);
        t, t_prev and stage (B,) long; history as from `new_history`. All are per image, so images
        at different steps can share a call.
        """
        raise TypeError(f"{type(self).__name__} has no step: use DDPM, DDIM or PLMS")

    @torch.no_grad()
    def sample(
        self,
        network: Callable,  # as built by build_network; in evaluation mode while it samples
        n: int,
        image_size: tuple[int, int],  # (H, W)
        channels: int = 3,
        labels: Tensor
        | Sequence[int]
        | None = None,  # (n,) class numbers, or None for unconditional
        cfg_scale: float | Tensor = 1.0,  # see `guided`
        seeds: Sequence[int]
        | None = None,  # one per image; image and seed belong together whatever the batch
        x_T: Tensor
        | None = None,  # (n,C,H,W) to start from, instead of noise from the seeds; in its dtype
        callback: Callable[[int, Tensor, Tensor], None]
        | None = None,  # gets (calls done, x, estimate of x0)
    ) -> Tensor:
        """n images, (n,C,H,W) float32 in [-1,1]."""
        if seeds is None:
            seeds = torch.randint(2**31, (n,)).tolist()
        generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
        if labels is not None:
            labels = torch.as_tensor(labels, dtype=torch.long)
            if labels.shape != (n,):
                raise ValueError(
                    f"labels has shape {tuple(labels.shape)}, ({n},) is needed: one per image"
                )
            if labels.min() < 0 or labels.max() > null_label(network):
                raise ValueError(f"labels must lie in 0..{null_label(network) - 1}")
            labels = labels.to(self.device)
        shape = (channels, *image_size)
        x = (
            draw(torch.randn, n, shape, generators).to(self.device)
            if x_T is None
            else x_T.to(self.device)
        )
        predict = guided(network, labels, cfg_scale)
        history = self.new_history(x)
        was_training = getattr(network, "training", False)
        if was_training:
            network.eval()
        for done, call in enumerate(self.calls(), start=1):
            t, t_prev, stage = (torch.full((n,), number) for number in call)
            prediction = predict(x, t.to(self.device)).to(x)
            # on the way to the clean image nothing is added
            noise = (
                draw(torch.randn, n, shape, generators).to(x)
                if self.draws_noise and call[1] >= 0
                else None
            )
            x0 = callback and self.x0_and_eps(x, t, prediction)[0]
            x, history = self.step(x, prediction, t, t_prev, stage, history, noise)
            if callback:
                callback(done, x, x0)
        if was_training:
            network.train()
        return x.clamp(-1, 1).to(torch.float32 if x_T is None else x_T.dtype)
