"""The samplers: ways to reverse the diffusion process."""

from typing import Any

from model.samplers.base import BaseDiffusion
from model.samplers.ddim import DDIM
from model.samplers.ddpm import DDPM
from model.samplers.dpm_solver import DPMSolver
from model.samplers.plms import PLMS
from model.samplers.trajectory import Trajectory
from model.samplers.unipc import UniPC

__all__ = [
    "DDIM",
    "DDPM",
    "PLMS",
    "SAMPLERS",
    "BaseDiffusion",
    "DPMSolver",
    "Trajectory",
    "UniPC",
    "build_sampler",
    "sampler_class",
]

SAMPLERS: dict[str, type[BaseDiffusion]] = {
    "ddpm": DDPM,
    "ddim": DDIM,
    "plms": PLMS,
    "dpmpp2m": DPMSolver,
    "unipc": UniPC,
}


def build_sampler(name: str, config: dict, eta: float = 0.0, **options: Any) -> BaseDiffusion:
    """A sampler by name for a network trained under `config` (a diffusion's `config`).

    `options` are the sampling half: sample_steps, timestep_spacing, clip_sample, device. eta is
    DDIM's alone. Raises ValueError for an unknown name.
    """
    chosen = sampler_class(name)
    if chosen is DDIM:
        return DDIM(**config, eta=eta, **options)
    return chosen(**config, **options)


def sampler_class(name: str) -> type[BaseDiffusion]:
    """Raises ValueError for an unknown name."""
    if name not in SAMPLERS:
        raise ValueError(f"sampler {name!r} is unknown; known are {', '.join(SAMPLERS)}")
    return SAMPLERS[name]
