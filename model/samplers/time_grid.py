"""Which time steps a sampler visits: the grids of Lin et al. 2305.08891, table 2."""

from collections.abc import Callable

# Each from the noisiest time step down: i counts from 0 to S-1. "round" is Python's, to even.


def _leading(i: int, noise_steps: int, sample_steps: int) -> int:
    return (sample_steps - 1 - i) * (noise_steps // sample_steps)


def _linspace(i: int, noise_steps: int, sample_steps: int) -> int:
    if sample_steps == 1:
        return 0
    return round((sample_steps - 1 - i) * (noise_steps - 1) / (sample_steps - 1))


def _trailing(i: int, noise_steps: int, sample_steps: int) -> int:
    return round(noise_steps - i * noise_steps / sample_steps) - 1


TIMESTEP_SPACINGS: dict[str, Callable[[int, int, int], int]] = {
    "leading": _leading,
    "linspace": _linspace,
    "trailing": _trailing,
}


def time_grid(spacing: str, noise_steps: int, sample_steps: int) -> list[int]:
    """The `sample_steps` time steps that are visited, descending, each in 0..noise_steps-1.

    Raises ValueError for an unknown spacing.
    """
    if spacing not in TIMESTEP_SPACINGS:
        known = ", ".join(TIMESTEP_SPACINGS)
        raise ValueError(f"timestep_spacing {spacing!r} is unknown; known are {known}")
    place = TIMESTEP_SPACINGS[spacing]
    return [place(i, noise_steps, sample_steps) for i in range(sample_steps)]
