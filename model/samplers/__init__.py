"""Diffusion processes and their samplers."""

from model.samplers.base import BaseDiffusion
from model.samplers.ddim import DDIM
from model.samplers.ddpm import DDPM
from model.samplers.plms import PLMS

__all__ = ["SAMPLERS", "BaseDiffusion", "DDIM", "DDPM", "PLMS", "build_sampler"]

SAMPLERS = {"ddpm": DDPM, "ddim": DDIM, "plms": PLMS}


def build_sampler(name: str, config: dict, eta: float = 0.0, **options) -> BaseDiffusion:
    """A sampler by name for a network trained under `config` (a diffusion's `config`).

    `options` are the sampling half: sample_steps, timestep_spacing, clip_sample, device. eta is
    DDIM's alone.
    """
    if name not in SAMPLERS:
        raise ValueError(f"sampler {name!r} is unknown; known are {', '.join(SAMPLERS)}")
    if name == "ddim":
        return DDIM(**config, eta=eta, **options)
    return SAMPLERS[name](**config, **options)
