"""Random numbers from one generator for a whole batch, or from one per image.

With a generator per image, what is drawn for it does not depend on the batch, process or position
that it is in. Everything is drawn on the generator's device, the CPU by default, so that a seed
means the same everywhere.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

Generators = torch.Generator | Sequence[torch.Generator] | None


class BatchGenerators(list[torch.Generator]):
    """One generator per image of a training step, and the images' places in its global batch."""

    def __init__(
        self, generators: Iterable[torch.Generator], places: Sequence[int], global_batch: int
    ):
        super().__init__(generators)
        self.places = places
        self.global_batch = global_batch


LARGEST_SEED = 2**32 - 1  # torch's CPU generator takes no more: s and s + 2^32 draw the same

_64_BITS = 2**64 - 1
_63_BITS = 2**63 - 1  # of which torch's CPU generator uses the low 32


def mix(*numbers: int) -> int:
    """Whole numbers -> a well-scattered seed: the finaliser of splitmix64, once per number."""
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & _64_BITS
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _64_BITS
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _64_BITS
        state ^= state >> 31
    return state & _63_BITS


def draw_normal(n: int, shape: Sequence[int], generator: Generators) -> Tensor:
    """(n, *shape) standard normal numbers."""
    return _draw(torch.randn, n, shape, generator)


def draw_uniform(n: int, generator: Generators) -> Tensor:
    """(n,) numbers, uniform in [0, 1)."""
    return _draw(torch.rand, n, (), generator)


def draw_uniforms(n: int, count: int, generator: Generators) -> Tensor:
    """(n, count) numbers, uniform in [0, 1)."""
    return _draw(torch.rand, n, (count,), generator)


def draw_stratified(n: int, generator: Generators) -> Tensor:
    """(n,) float64 numbers, uniform in [0, 1), spread evenly over a training step.

    Where the generators know their places, [0, 1) is cut into as many parts as the global batch has
    images, and the image at place i draws from part i; otherwise each number is drawn from all of
    it. Either way each image's number is a function of its own generator and place.
    """
    uniform = draw_uniform(n, generator).double()
    if not isinstance(generator, BatchGenerators):
        return uniform
    places = torch.tensor(generator.places, dtype=torch.float64, device=uniform.device)
    return (places + uniform) / generator.global_batch


def image_generator(seed: int) -> torch.Generator:
    """The generator of the image with this seed. Raises ValueError outside 0..2^32-1."""
    if not 0 <= seed <= LARGEST_SEED:
        raise ValueError(f"a seed must lie in 0..{LARGEST_SEED}, not {seed}")
    return torch.Generator().manual_seed(seed)


def _draw(
    function: Callable[..., Tensor], n: int, shape: Sequence[int], generator: Generators
) -> Tensor:
    if generator is None:
        return function((n, *shape))
    if isinstance(generator, torch.Generator):
        return function((n, *shape), generator=generator, device=generator.device)
    if len(generator) != n:
        raise ValueError(f"{len(generator)} generators were given for {n} images")
    return torch.stack([function(tuple(shape), generator=g, device=g.device) for g in generator])
