"""How much of the image and how much noise is in each time step. Pure functions, float64."""

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


# Those that keep the variance of the data: alpha_t^2 + sigma_t^2 = 1. beta_t defines them.
NOISE_SCHEDULES: dict[str, Callable[[int, float, float], Tensor]] = {
    "linear": _linear,
    "cosine": _cosine,
    "sqrt_linear": _sqrt_linear,
    "sqrt": _sqrt,
}


FLOW = "flow"  # rectified flow, Liu et al. 2209.03003: alpha = 1 - t, sigma = t

KNOWN_SCHEDULES = (*NOISE_SCHEDULES, FLOW)


REFERENCE_SIDE = 64  # pixels: larger images get a shift


def usual_shift(name: str, size: tuple[int, int]) -> float:
    """The `noise_shift` for images of that height and width where nobody gives one.

    Neighbouring pixels of a large image say the same, so that it takes more noise to hide it: in
    proportion to its side (Esser et al. 2403.03206, section 5.3.2). 1 for schedules that were
    published without.
    """
    if name != FLOW:
        return 1.0
    return max(1.0, math.sqrt(size[0] * size[1]) / REFERENCE_SIDE)


def signal_and_noise(
    name: str,
    noise_steps: int,
    beta_start: float,
    beta_end: float,
    noise_shift: float = 1.0,
    zero_terminal_snr: bool = False,
) -> tuple[Tensor, Tensor]:
    """alpha_t^2 and sigma_t^2 of each time step, each (T,) float64.

    With `noise_shift` s the same image has s times as much noise in it: alpha_t / sigma_t is
    divided by s, as larger images need (Hoogeboom et al. 2301.11093; for the flow, Esser et al.
    2403.03206, equation 23). With `zero_terminal_snr` the last time step is pure noise (Lin et al.
    2305.08891, algorithm 1); that of the flow always is. Raises ValueError for an unknown schedule.
    """
    if name == FLOW:
        return _flow(noise_steps, noise_shift)
    steps = betas(name, noise_steps, beta_start, beta_end)
    alphas_cumprod = torch.cumprod(1 - steps, dim=0)
    if zero_terminal_snr:
        alphas_cumprod = _without_terminal_signal(alphas_cumprod)
    if noise_shift == 1:
        return alphas_cumprod, 1 - alphas_cumprod
    noise = (1 - alphas_cumprod) * noise_shift**2
    whole = alphas_cumprod + noise
    return alphas_cumprod / whole, noise / whole


def _flow(noise_steps: int, noise_shift: float) -> tuple[Tensor, Tensor]:
    """Step k of T is the time (k + 1) / T, so that the last one is pure noise."""
    time = _even(noise_steps, 1 / noise_steps, 1) if noise_steps > 1 else torch.ones(1).double()
    sigma = noise_shift * time / (1 + (noise_shift - 1) * time)
    return (1 - sigma) ** 2, sigma**2


def _without_terminal_signal(alphas_cumprod: Tensor) -> Tensor:
    """sqrt(abar) shifted and scaled, so that it is 0 at the last step and as it was at the first.

    Raises ValueError for a single time step.
    """
    if len(alphas_cumprod) == 1:
        raise ValueError("zero_terminal_snr needs at least 2 noise_steps")
    signal = alphas_cumprod.sqrt()
    first, last = signal[0], signal[-1]
    return ((signal - last) * first / (first - last)) ** 2


def betas(name: str, noise_steps: int, beta_start: float, beta_end: float) -> Tensor:
    """beta_t, (T,) float64, each at most 0.999. Raises ValueError for an unknown schedule.

    The endpoints are meant for T = 1000 and scaled by 1000/T, so that the last time step is about
    as noisy for any T. (A single time step has the first beta alone: with "linear" a tenth of its
    variance is noise.)
    """
    if name not in NOISE_SCHEDULES:
        known = ", ".join(KNOWN_SCHEDULES)
        raise ValueError(f"noise_schedule {name!r} is unknown; known are {known}")
    return NOISE_SCHEDULES[name](noise_steps, beta_start, beta_end).clamp(max=LARGEST_BETA)
