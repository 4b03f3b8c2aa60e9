"""denoising_diffusion_pytorch as a contender: its Unet of the same widths, trained as its Trainer
does, sampled by its ddim_sample.

Its layers are others than ours (two blocks a level, linear attention on every level), so it has
other weights.
"""

import contextlib
import io
from collections.abc import Callable

import torch
from denoising_diffusion_pytorch import GaussianDiffusion, Unet
from ema_pytorch import EMA
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from utils.benchmarks.case import NOISE_STEPS, Case
from utils.benchmarks.contenders import Contender
from utils.devices import Precision

# The defaults of its Trainer.
LEARNING_RATE = 1e-4
BETAS = (0.9, 0.99)
GRAD_CLIP = 1.0
EMA_DECAY = 0.995
EMA_EVERY = 10  # steps


def build(case: Case, precision: Precision, _weights: dict[str, Tensor] | None) -> Contender:
    """Our weights do not fit, and are not used."""
    network = build_network(case)
    diffusion = GaussianDiffusion(
        network,
        image_size=case.image_size,
        timesteps=NOISE_STEPS,
        sampling_timesteps=case.sample_steps,
    ).to(precision.device)
    x, t = case.noisy(precision.device)

    @torch.no_grad()
    def call() -> None:
        with precision.autocast():
            network(x, t)

    def sample() -> Tensor:
        silence = contextlib.redirect_stderr(io.StringIO())  # of its progress bar
        with silence, precision.autocast():
            return diffusion.ddim_sample(case.shape)

    return Contender(
        network=network,
        frozen=lambda: network,
        operations=_operations(case),
        train=_training_step(case, precision, diffusion),
        call=call,
        sample=sample,
    )


def build_network(case: Case) -> nn.Module:
    config = case.network_config()
    return Unet(config["channels"], dim_mults=config["channel_mult"], channels=case.channels)


def _operations(case: Case) -> float:
    """Floating-point operations of a forward pass on one image, counted without computing."""
    with torch.device("meta"):
        network = build_network(case)
        x, t = torch.empty(1, *case.shape[1:]), torch.zeros(1, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(x, t)
    return counter.get_total_flops()


def _training_step(case: Case, precision: Precision, diffusion: nn.Module) -> Callable[[], None]:
    """A step of its Trainer, on a fixed batch."""
    parameters = list(diffusion.parameters())
    optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE, betas=BETAS)
    ema = EMA(diffusion, beta=EMA_DECAY, update_every=EMA_EVERY)
    images = (case.pixels() / 255).to(precision.device)

    def step() -> None:
        with precision.autocast():
            loss = diffusion(images)
        loss.item()  # which is shown
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, GRAD_CLIP)
        optimizer.step()
        optimizer.zero_grad()
        ema.update()

    return step
