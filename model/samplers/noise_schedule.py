"""How much noise a time step holds, and which time steps a sampler visits. Pure functions, float64."""

import math

import torch
from torch import Tensor


def _even(steps: int, start: float, end: float) -> Tensor:
    return torch.linspace(start, end, steps, dtype=torch.float64)


def _cosine(steps: int, start: float, end: float) -> Tensor:
    alphas_cumprod = torch.cos((_even(steps + 1, 0, 1) + 0.008) / 1.008 * math.pi / 2) ** 2
    return 1 - alphas_cumprod[1:] / alphas_cumprod[:-1]


NOISE_SCHEDULES = {
    "linear": _even,  # Ho et al. 2006.11239
    "cosine": _cosine,  # Nichol & Dhariwal 2102.09672, equation 17, s = 0.008; does not depend on start and end
    "sqrt_linear": lambda steps, start, end: (
        _even(steps, start**0.5, end**0.5) ** 2
    ),  # Rombach et al. 2112.10752
    "sqrt": lambda steps, start, end: (
        _even(steps, start, end) ** 0.5
    ),  # pure noise after a tenth of the steps
}


def betas(name: str, noise_steps: int, beta_start: float, beta_end: float) -> Tensor:
    """beta_t, (T,) float64, each at most 0.999.

    The endpoints are meant for T = 1000 and scaled by 1000/T, so that the last step is about as
    noisy for any T.
    """
    if name not in NOISE_SCHEDULES:
        raise ValueError(
            f"noise_schedule {name!r} is unknown; known are {', '.join(NOISE_SCHEDULES)}"
        )
    scale = 1 if name == "cosine" else 1000 / noise_steps
    return (scale * NOISE_SCHEDULES[name](noise_steps, beta_start, beta_end)).clamp(max=0.999)


# The grids of Lin et al. 2305.08891, table 2, from the noisiest step down; i counts from 0 to S-1.
TIMESTEP_SPACINGS = {
    "leading": lambda i, T, S: (S - 1 - i) * (T // S),
    "linspace": lambda i, T, S: round((S - 1 - i) * (T - 1) / (S - 1)) if S > 1 else 0,
    "trailing": lambda i, T, S: round(T - i * T / S) - 1,
}


def time_grid(spacing: str, noise_steps: int, sample_steps: int) -> list[int]:
    """The `sample_steps` time steps that are visited, descending, each in 0..noise_steps-1."""
    if spacing not in TIMESTEP_SPACINGS:
        raise ValueError(
            f"timestep_spacing {spacing!r} is unknown; known are {', '.join(TIMESTEP_SPACINGS)}"
        )
    return [TIMESTEP_SPACINGS[spacing](i, noise_steps, sample_steps) for i in range(sample_steps)]
