"""How much noise each time step adds. Pure functions, float64."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

LARGEST_BETA = 0.999  # Nichol & Dhariwal 2102.09672
COSINE_OFFSET = 0.008  # s in their equation 17
REFERENCE_STEPS = 1000  # the T that beta_start and beta_end are meant for


def _even(steps: int, start: float, end: float) -> Tensor:
    return torch.linspace(start, end, steps, dtype=torch.float64)


def _linear(steps: int, start: float, end: float) -> Tensor:
    """Linear in beta: Ho et al. 2006.11239."""
    return _even(steps, start, end) * (REFERENCE_STEPS / steps)


def _cosine(steps: int, start: float, end: float) -> Tensor:
    """Nichol & Dhariwal 2102.09672, equation 17; it does not depend on start and end."""
    progress = (_even(steps + 1, 0, 1) + COSINE_OFFSET) / (1 + COSINE_OFFSET)
    alphas_cumprod = torch.cos(progress * math.pi / 2) ** 2
    return 1 - alphas_cumprod[1:] / alphas_cumprod[:-1]


def _sqrt_linear(steps: int, start: float, end: float) -> Tensor:
    """Linear in the square root of beta: Rombach et al. 2112.10752."""
    return _even(steps, start**0.5, end**0.5) ** 2 * (REFERENCE_STEPS / steps)


def _sqrt(steps: int, start: float, end: float) -> Tensor:
    """The square root of the linear schedule: pure noise after a tenth of the steps."""
    return _even(steps, start, end) ** 0.5 * (REFERENCE_STEPS / steps)


NOISE_SCHEDULES: dict[str, Callable[[int, float, float], Tensor]] = {
    "linear": _linear,
    "cosine": _cosine,
    "sqrt_linear": _sqrt_linear,
    "sqrt": _sqrt,
}


def betas(name: str, noise_steps: int, beta_start: float, beta_end: float) -> Tensor:
    """beta_t, (T,) float64, each at most 0.999. Raises ValueError for an unknown schedule.

    The endpoints are meant for T = 1000 and scaled by 1000/T, so that the last time step is about
    as noisy for any T.
    """
    if name not in NOISE_SCHEDULES:
        known = ", ".join(NOISE_SCHEDULES)
        raise ValueError(f"noise_schedule {name!r} is unknown; known are {known}")
    return NOISE_SCHEDULES[name](noise_steps, beta_start, beta_end).clamp(max=LARGEST_BETA)
