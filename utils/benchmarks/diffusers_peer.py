"""diffusers as a contender: its UNet2DModel with the layers and weights of our U-Net, trained as in
its example train_unconditional.py, sampled as in its DDIMPipeline.
"""

import copy
import functools
from collections.abc import Callable
from typing import Any, cast

import torch
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from model.networks import build_network as build_unet
from utils.benchmarks.case import NOISE_STEPS, Case
from utils.benchmarks.contenders import Contender
from utils.devices import Precision
from utils.errors import UserError
from utils.exchange.diffusers_names import diffusers_state
from utils.exchange.to_diffusers import model_options

# The defaults of train_unconditional.py.
LEARNING_RATE = 1e-4
BETAS = (0.95, 0.999)
WEIGHT_DECAY = 1e-6
EPSILON = 1e-8
GRAD_CLIP = 1.0
EMA_DECAY = 0.9999
EMA_POWER = 3 / 4

TOLERANCE = 1e-4  # between the outputs of both networks, in fp32


def build(case: Case, precision: Precision, weights: dict[str, Tensor] | None) -> Contender:
    """The network in torch's default layout."""
    network = build_network(case, weights).to(precision.device)
    scheduler: Any = DDIMScheduler(num_train_timesteps=NOISE_STEPS)
    x, t = case.noisy(precision.device)

    @functools.cache
    def frozen() -> nn.Module:
        """As `from_pretrained(..., torch_dtype=...)` gives it. By torch's own `to`, since that of
        diffusers warns of layers that must stay in fp32, of which this network has none.
        """
        return nn.Module.to(copy.deepcopy(network), precision.dtype).eval()

    def predict(x: Tensor, t: Tensor) -> Tensor:
        return frozen()(x.to(precision.dtype), t).sample.float()

    @torch.no_grad()
    def call() -> None:
        predict(x, t)

    @torch.no_grad()
    def sample() -> Tensor:
        image = torch.randn(case.shape, device=precision.device)
        scheduler.set_timesteps(case.sample_steps)
        for t in scheduler.timesteps:
            image = scheduler.step(predict(image, t), t, image, eta=0.0).prev_sample
        return (image / 2 + 0.5).clamp(0, 1)

    return Contender(
        network=network,
        frozen=frozen,
        operations=case.operations(),  # the same layers
        train=_training_step(case, precision, network),
        call=call,
        sample=sample,
    )


def build_network(case: Case, weights: dict[str, Tensor] | None = None) -> nn.Module:
    """The UNet2DModel with the layers of our network, on the CPU; with its weights where given."""
    with torch.device("meta"):
        config = build_unet(case.network_config()).config
    network: Any = UNet2DModel(sample_size=case.side, **model_options(cast(dict, config)))
    if weights is not None:
        network.load_state_dict(diffusers_state(case.build_network(weights)))
    return network


@torch.no_grad()
def largest_difference(ours: nn.Module, theirs: nn.Module, case: Case) -> float:
    """Between the outputs of our network and of diffusers' on one batch, both on the CPU in fp32.

    Raises UserError where they are not the same network.
    """
    x, t = case.noisy(torch.device("cpu"))
    expected = ours.eval()(x, t)
    found = theirs.eval()(x, t).sample
    difference = (found - expected).abs().max().item()
    scale = max(1.0, expected.abs().max().item())
    if not difference <= TOLERANCE * scale:
        raise UserError(
            f"the outputs of our network and of diffusers' differ by {difference:.2g} at "
            f"{case.name}, with the same weights: {TOLERANCE * scale:.2g} is the most that "
            "rounding explains, so these are not the same network and no comparison"
        )
    return difference


def _training_step(case: Case, precision: Precision, network: nn.Module) -> Callable[[], None]:
    """A step of train_unconditional.py, on a fixed batch."""
    device = precision.device
    scheduler: Any = DDPMScheduler(num_train_timesteps=NOISE_STEPS)
    parameters = list(network.parameters())
    optimizer = torch.optim.AdamW(
        parameters, lr=LEARNING_RATE, betas=BETAS, weight_decay=WEIGHT_DECAY, eps=EPSILON
    )
    ema = EMAModel(parameters, decay=EMA_DECAY, use_ema_warmup=True, power=EMA_POWER)
    images = (case.pixels() / 127.5 - 1).to(precision.dtype).to(device)

    def step() -> None:
        noise = torch.randn(images.shape, dtype=images.dtype, device=device)
        t = torch.randint(0, NOISE_STEPS, (len(images),), device=device)
        noisy = scheduler.add_noise(images, noise, t)
        with precision.autocast():
            output = network(noisy, t).sample
        loss = nn.functional.mse_loss(output.float(), noise.float())
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, GRAD_CLIP)
        optimizer.step()
        optimizer.zero_grad()
        ema.step(parameters)
        loss.item()  # which is logged

    return step
