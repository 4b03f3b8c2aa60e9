"""How far two sets of feature vectors are apart: real images and generated ones.

All in float64, in tiles, so that 50,000 features a side need no matrix of 50,000 x 50,000. Features
are (N,D) of real and (M,D) of generated images, on any device.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

TILE = 2048  # features a side of what is computed at once
JACKKNIFE_BLOCKS = 50
# Squared distances below this part of the squared norms are rounding: the features are equal.
ROUNDING = 1e-11


# --- Frechet distance ---


def frechet_distance(real: Tensor, generated: Tensor) -> float:
    """The distance between Gaussians fitted to both sets (Heusel et al. 1706.08500, FID):
    |mu_r - mu_g|^2 + tr(S_r + S_g - 2 (S_r S_g)^1/2), from 0 up.

    It is biased upwards where there are few features: at least several times D are needed. Raises
    ValueError for fewer than 2.
    """
    _check(real, generated, at_least=2)
    mean_real, covariance_real = _mean_and_covariance(real)
    mean_generated, covariance_generated = _mean_and_covariance(generated)
    # tr (S_r S_g)^1/2 is the sum of the roots of the eigenvalues of R S_g R', where R'R = S_r.
    values, vectors = torch.linalg.eigh(covariance_real)
    root = values.clamp(min=0).sqrt()[:, None] * vectors.T
    eigenvalues = torch.linalg.eigvalsh(root @ covariance_generated @ root.T)
    # The others are zero; the roots of their rounding errors would add up.
    rank = min(len(real) - 1, len(generated) - 1, real.shape[1])
    trace_of_root = eigenvalues[-rank:].clamp(min=0).sqrt().sum()
    distance = (mean_real - mean_generated).square().sum()
    distance = distance + covariance_real.trace() + covariance_generated.trace() - 2 * trace_of_root
    return max(0.0, float(distance))


def _mean_and_covariance(features: Tensor) -> tuple[Tensor, Tensor]:
    """(D,) and (D,D), with N - 1 as divisor."""
    n, dimension = features.shape
    total = torch.zeros(dimension, dtype=torch.float64, device=_device(features))
    for tile in _tiles(features):
        total += tile.sum(0)
    mean = total / n
    scatter = torch.zeros(dimension, dimension, dtype=torch.float64, device=mean.device)
    for tile in _tiles(features):
        centred = tile - mean
        scatter += centred.T @ centred
    return mean, scatter / (n - 1)


# --- Kernel distance ---


def kernel_distance(real: Tensor, generated: Tensor) -> tuple[float, float]:
    """The squared maximum mean discrepancy with the kernel (x.y / D + 1)^3 (Binkowski et al.
    1801.01401, KID), and its standard error.

    The unbiased U-statistic over all pairs: 0 is expected of two sets from one distribution, so it
    may be negative. The standard error is a block jackknife's, over 50 random blocks of both sets:
    what the value would vary by with other images. (The "std" of torch-fidelity and others, between
    random subsets of the same images, is not: it falls to 0 as the subsets grow.) Where both sets
    are from one distribution, it comes out larger than it is, by up to a half. Raises ValueError
    for fewer than 3 features.
    """
    _check(real, generated, at_least=3)
    blocks = min(JACKKNIFE_BLOCKS, len(real), len(generated))
    real_blocks = _random_blocks(real, blocks)
    generated_blocks = _random_blocks(generated, blocks)
    within_real = _kernel_sums_within(real_blocks)
    within_generated = _kernel_sums_within(generated_blocks)
    between = _kernel_sums_between(real_blocks, generated_blocks)
    n = torch.tensor([len(block) for block in real_blocks], dtype=torch.float64)
    m = torch.tensor([len(block) for block in generated_blocks], dtype=torch.float64)

    value = _u_statistic(within_real.sum(), within_generated.sum(), between.sum(), n.sum(), m.sum())
    without_each = _u_statistic(
        _sum_without_each(within_real),
        _sum_without_each(within_generated),
        _sum_without_each(between),
        n.sum() - n,
        m.sum() - m,
    )
    spread = (without_each - without_each.mean()).square().sum()
    return float(value), math.sqrt(float(spread) * (blocks - 1) / blocks)


def _u_statistic(
    within_real: Tensor, within_generated: Tensor, between: Tensor, n: Tensor, m: Tensor
) -> Tensor:
    """From sums of the kernel over pairs of different features, and over mixed pairs."""
    return within_real / (n * (n - 1)) + within_generated / (m * (m - 1)) - 2 * between / (n * m)


def _sum_without_each(sums: Tensor) -> Tensor:
    """Sums over pairs of blocks, (G,G) -> the sum of all that a block has no part in, (G,)."""
    return sums.sum() - sums.sum(0) - sums.sum(1) + sums.diagonal()


def _random_blocks(features: Tensor, count: int) -> list[Tensor]:
    """The features in blocks of about one size, at random: folders are sorted by class."""
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(0))
    return [features[part.to(features.device)] for part in order.tensor_split(count)]


def _kernel_sums_within(blocks: list[Tensor]) -> Tensor:
    """The sums of the kernel over pairs of different features, (G,G) on the CPU."""
    sums = torch.zeros(len(blocks), len(blocks), dtype=torch.float64)
    for i, block in enumerate(blocks):
        for j in range(i + 1):
            total = _kernel_sum(block, blocks[j])
            if i == j:
                total -= sum(float(_kernel_of_itself(tile).sum()) for tile in _tiles(block))
            sums[i, j] = sums[j, i] = total
    return sums


def _kernel_sums_between(real: list[Tensor], generated: list[Tensor]) -> Tensor:
    sums = [[_kernel_sum(a, b) for b in generated] for a in real]
    return torch.tensor(sums, dtype=torch.float64)


def _kernel_sum(a: Tensor, b: Tensor) -> float:
    total = 0.0
    for left in _tiles(a):
        for right in _tiles(b):
            total += float(((left @ right.T) / left.shape[1] + 1).pow(3).sum())
    return total


def _kernel_of_itself(tile: Tensor) -> Tensor:
    """The kernel of each feature with itself."""
    return (tile.square().sum(1) / tile.shape[1] + 1).pow(3)


# --- Nearest neighbours ---


def precision_recall(real: Tensor, generated: Tensor, k: int = 3) -> tuple[float, float]:
    """Improved precision and recall (Kynkaanniemi et al. 1904.06991), each in 0..1.

    Precision: the share of generated features within the distance of some real one to its k-th
    nearest real neighbour. Recall: the same with the roles exchanged. Raises ValueError for k or
    fewer features.
    """
    _check(real, generated, at_least=k + 1)
    origin = _origin(real)
    radii_of_real = _squared_radii(real, k, origin)
    radii_of_generated = _squared_radii(generated, k, origin)
    is_precise = torch.zeros(len(generated), dtype=torch.bool, device=origin.device)
    is_recalled = torch.zeros(len(real), dtype=torch.bool, device=origin.device)
    for rows, columns, squared in _squared_distances(real, generated, origin):
        is_precise[columns] |= (squared <= radii_of_real[rows, None]).any(0)
        is_recalled[rows] |= (squared <= radii_of_generated[columns]).any(1)
    return float(is_precise.double().mean()), float(is_recalled.double().mean())


def density_coverage(real: Tensor, generated: Tensor, k: int = 5) -> tuple[float, float]:
    """Density, from 0 up, and coverage, 0..1 (Naeem et al. 2002.09797).

    Density: how many real features have a generated one nearer than their k-th nearest real
    neighbour, as a mean over the generated ones and divided by k. Coverage: the share of real
    features that have any generated one so near. Raises ValueError for k or fewer features.
    """
    _check(real, generated, at_least=k + 1)
    origin = _origin(real)
    radii = _squared_radii(real, k, origin)
    pairs = 0.0
    is_covered = torch.zeros(len(real), dtype=torch.bool, device=origin.device)
    for rows, _, squared in _squared_distances(real, generated, origin):
        is_near = squared < radii[rows, None]
        pairs += float(is_near.sum())
        is_covered[rows] |= is_near.any(1)
    return pairs / (k * len(generated)), float(is_covered.double().mean())


def _squared_radii(features: Tensor, k: int, origin: Tensor) -> Tensor:
    """The squared distance of each feature to its k-th nearest neighbour, (N,)."""
    nearest = torch.full((len(features), k), math.inf, dtype=torch.float64, device=origin.device)
    for rows, columns, squared in _squared_distances(features, features, origin):
        if rows == columns:
            squared.fill_diagonal_(math.inf)  # nothing is its own neighbour
        candidates = torch.cat([nearest[rows], squared], dim=1)
        nearest[rows] = candidates.topk(k, dim=1, largest=False).values
    return nearest[:, -1]


def _squared_distances(
    a: Tensor, b: Tensor, origin: Tensor
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Tiles of the matrix of squared distances, with their rows in `a` and columns in `b`.

    Distances to features that are equal up to rounding in float32 are exactly zero. `origin` is
    subtracted first, since rounding here grows with the norms.
    """
    for rows in _slices(len(a)):
        left = _float64(a[rows])
        left_scale = left.square().sum(1)[:, None]
        left = left - origin
        left_norms = left.square().sum(1)[:, None]
        for columns in _slices(len(b)):
            right = _float64(b[columns])
            scale = left_scale + right.square().sum(1)
            right = right - origin
            squared = left_norms + right.square().sum(1) - 2 * (left @ right.T)
            yield rows, columns, torch.where(squared < ROUNDING * scale, 0.0, squared)


def _origin(features: Tensor) -> Tensor:
    """The mean, (D,)."""
    total = torch.zeros(features.shape[1], dtype=torch.float64, device=_device(features))
    for tile in _tiles(features):
        total += tile.sum(0)
    return total / len(features)


# --- Tiles ---


def _check(real: Tensor, generated: Tensor, at_least: int) -> None:
    if real.dim() != 2 or generated.dim() != 2 or real.shape[1] != generated.shape[1]:
        raise ValueError(
            f"features (N,D) and (M,D) are needed, not {tuple(real.shape)} and "
            f"{tuple(generated.shape)}"
        )
    fewest = min(len(real), len(generated))
    if fewest < at_least:
        raise ValueError(f"at least {at_least} features of each set are needed, not {fewest}")
    if not (real.isfinite().all() and generated.isfinite().all()):
        raise ValueError("some features are not finite")


def _device(features: Tensor) -> torch.device:
    """Where the features are computed on: MPS has no float64."""
    return torch.device("cpu") if features.device.type == "mps" else features.device


def _float64(features: Tensor) -> Tensor:
    return features.detach().to(_device(features)).double()


def _slices(count: int) -> list[slice]:
    return [slice(start, min(start + TILE, count)) for start in range(0, count, TILE)]


def _tiles(features: Tensor) -> Iterator[Tensor]:
    for rows in _slices(len(features)):
        yield _float64(features[rows])
