"""Which time steps a sampler visits."""

import bisect
import math
from collections.abc import Callable, Sequence

# --- Even in the time step: Lin et al. 2305.08891, table 2 ---

# Each from the noisiest time step down: i counts from 0 to S-1. "round" is Python's, to even.


def _leading(i: int, noise_steps: int, sample_steps: int) -> int:
    return (sample_steps - 1 - i) * (noise_steps // sample_steps)


def _linspace(i: int, noise_steps: int, sample_steps: int) -> int:
    if sample_steps == 1:
        return 0
    return round((sample_steps - 1 - i) * (noise_steps - 1) / (sample_steps - 1))


def _trailing(i: int, noise_steps: int, sample_steps: int) -> int:
    return round(noise_steps - i * noise_steps / sample_steps) - 1


EVEN_SPACINGS: dict[str, Callable[[int, int, int], int]] = {
    "leading": _leading,
    "linspace": _linspace,
    "trailing": _trailing,
}

# --- Along a curve of the noise-to-signal ratio sigma_t / alpha_t ---

# The curve's ends; the clean image, where the ratio is 0, follows its last point.
LARGEST_RATIO = 80.0  # Karras et al. 2206.00364, table 1
SMALLEST_RATIO = 0.02
KARRAS_EXPONENT = 7.0  # rho in their equation 5


def _logsnr(share: float, first: float, last: float) -> float:
    """Even in the log-SNR: Lu et al. 2211.01095, section 3.3."""
    return math.exp(math.log(first) + share * (math.log(last) - math.log(first)))


def _karras(share: float, first: float, last: float) -> float:
    """Karras et al. 2206.00364, equation 5: denser towards the image."""
    start, end = first ** (1 / KARRAS_EXPONENT), last ** (1 / KARRAS_EXPONENT)
    return (start + share * (end - start)) ** KARRAS_EXPONENT


CURVES: dict[str, Callable[[float, float, float], float]] = {
    "logsnr": _logsnr,
    "karras": _karras,
}

TIMESTEP_SPACINGS = (*EVEN_SPACINGS, *CURVES)


def time_grid(
    spacing: str, noise_steps: int, sample_steps: int, log_ratios: Sequence[float] = ()
) -> list[int]:
    """The `sample_steps` time steps that are visited, descending, each in 0..noise_steps-1.

    `log_ratios` (T,) is log(sigma_t / alpha_t), ascending, which the curves need. Raises ValueError
    for an unknown spacing.
    """
    if spacing in EVEN_SPACINGS:
        place = EVEN_SPACINGS[spacing]
        return [place(i, noise_steps, sample_steps) for i in range(sample_steps)]
    if spacing in CURVES:
        return _grid_along(CURVES[spacing], sample_steps, log_ratios)
    known = ", ".join(TIMESTEP_SPACINGS)
    raise ValueError(f"timestep_spacing {spacing!r} is unknown; known are {known}")


def _grid_along(
    curve: Callable[[float, float, float], float], sample_steps: int, log_ratios: Sequence[float]
) -> list[int]:
    """The last time step, then those nearest to the curve, each earlier than the one before.

    A network knows whole time steps only, so the curve is followed where they are: each step is
    calculated with the noise level that the network is told.
    """
    last = len(log_ratios) - 1
    first_ratio = math.exp(min(log_ratios[last], math.log(LARGEST_RATIO)))
    last_ratio = min(SMALLEST_RATIO, first_ratio)
    grid = [last]
    for i in range(1, sample_steps):
        wanted = math.log(curve(i / (sample_steps - 1), first_ratio, last_ratio))
        nearest = _nearest(log_ratios, wanted)
        still_to_come = sample_steps - 1 - i
        grid.append(max(min(nearest, grid[-1] - 1), still_to_come))
    return grid


def _nearest(log_ratios: Sequence[float], wanted: float) -> int:
    """The place of the value nearest to the wanted one, among ascending ones; of two as near, the
    first.
    """
    above = bisect.bisect_left(log_ratios, wanted)
    around = range(max(0, above - 1), min(above + 1, len(log_ratios)))
    return min(around, key=lambda t: abs(log_ratios[t] - wanted))
