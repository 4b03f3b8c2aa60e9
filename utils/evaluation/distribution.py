"""How far generated images are from real ones as a set, beside the floor: real against real.

Two halves of real data do not have a distance of 0 and a precision of 1 either, so each figure
stands beside the same figure between two halves of REAL, of the same number of images.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from model.metrics import density_coverage, frechet_distance, kernel_distance, precision_recall
from utils.console import Progress
from utils.errors import UserError
from utils.evaluation.extract import FeatureSet
from utils.evaluation.image_folder import ImageFolder

PRECISION_K = 3
COVERAGE_K = 5
FEWEST = COVERAGE_K + 1  # images of a set that have a k-th neighbour each
FD_FACTOR = 5  # times its dimension: the images that a Frechet distance needs
ALL_IMAGES = 0  # as --num_compared
MEASURES = 4  # steps of `figures_of`, for its progress


@dataclass(frozen=True)
class Figures:
    """Generated against real, or real against real."""

    n: int  # generated images
    n_real: int
    fd: float | None
    kid: float
    kid_se: float  # standard error
    precision: float
    recall: float
    density: float
    coverage: float


@dataclass(frozen=True)
class Rows:
    """Some of a set's images."""

    found: FeatureSet
    rows: np.ndarray
    device: torch.device

    def __len__(self) -> int:
        return len(self.rows)

    def features(self) -> Tensor:
        """(n,D) on the device."""
        return self.found.features[torch.from_numpy(self.rows)].to(self.device)

    def of_class(self, labels: np.ndarray, label: int) -> "Rows":
        """Those of one class; labels by place in the folder."""
        mine = labels[self.found.places[self.rows]] == label
        return Rows(self.found, self.rows[mine], self.device)

    def first(self, count: int) -> "Rows":
        return Rows(self.found, self.rows[:count], self.device)


@dataclass(frozen=True)
class ClassFigures:
    """Of one class. None where it has too few images."""

    images: int  # of the class that are compared, from each folder
    figures: Figures | None
    floor: Figures | None

    @classmethod
    def of(
        cls, chosen: "Chosen", fd_needs: int, report: Callable[[], None] = lambda: None
    ) -> "ClassFigures":
        """As many images of both folders, and as many for the floor where REAL has them."""
        n = min(len(chosen.real), len(chosen.generated))
        real, generated = chosen.real.first(n), chosen.generated.first(n)
        figures = _figures_if_enough(real, generated, fd_needs, report)
        m = min(n, len(chosen.first), len(chosen.second))
        first, second = chosen.first.first(m), chosen.second.first(m)
        floor = _figures_if_enough(first, second, fd_needs, report)
        return cls(n, figures, floor)


@dataclass
class Comparison:
    """All that two sets of features say."""

    figures: Figures
    floor: Figures | None  # None: REAL is too small for two halves
    per_class: dict[str, ClassFigures] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """Which images are compared."""

    real: np.ndarray  # places of REAL's images: those compared first, then those for the floor
    generated: np.ndarray
    wanted: int  # of each; ALL_IMAGES: all
    is_default: bool


class TooFewImages(UserError):
    """There are not enough images for figures of distributions."""


def plan_comparison(real: ImageFolder, generated: ImageFolder, asked: int | None) -> Plan:
    """Choose the images. `asked` is --num_compared: None for as many as allow a floor of the same
    size, ALL_IMAGES for all. UserError where there are not enough.
    """
    check_numbers(len(real), len(generated), asked)
    real_order, generated_order = real.order(), generated.order()
    if asked == ALL_IMAGES:
        return Plan(real_order, generated_order, ALL_IMAGES, is_default=False)
    wanted = asked or min(len(generated), len(real) // 2)
    return Plan(real_order[: 2 * wanted], generated_order[:wanted], wanted, asked is None)


def check_numbers(real: int, generated: int, asked: int | None) -> None:
    """Raise UserError where so many images are too few for what is asked."""
    if asked is None or asked == ALL_IMAGES:
        available = real // 2 if asked is None else real
        if min(available, generated) < FEWEST:
            raise TooFewImages(
                f"too few images: REAL has {real:,} and GENERATED {generated:,}; features are "
                f"compared from {2 * FEWEST} and {FEWEST} on, --paired and --copies take fewer"
            )
        return
    if asked < FEWEST:
        raise UserError(
            f"--num_compared {asked} is too few: {FEWEST} images are needed, or 0 for all"
        )
    for role, count in (("REAL", real), ("GENERATED", generated)):
        if count < asked:
            raise UserError(
                f"--num_compared {asked:,}, but {role} has {count:,} images; choose at most that, "
                f"or leave it out"
            )


@dataclass(frozen=True)
class Chosen:
    """The images behind the figures, and behind the floor."""

    real: Rows
    generated: Rows
    first: Rows  # one half of REAL
    second: Rows  # the other

    def of_class(self, classes: "Classes", label: int) -> "Chosen":
        return Chosen(
            self.real.of_class(classes.real, label),
            self.generated.of_class(classes.generated, label),
            self.first.of_class(classes.real, label),
            self.second.of_class(classes.real, label),
        )


def compare(chosen: Chosen, classes: "Classes | None", fd_needs: int) -> Comparison:
    """The figures and their floors.

    `fd_needs`: images from which on a Frechet distance is computed for a class.
    """
    has_floor = len(chosen.first) >= FEWEST
    pairs = 1 + has_floor + (2 * len(classes.names) if classes is not None else 0)
    with Progress(MEASURES * pairs, title="figures", unit="figure", leave=False) as progress:
        report = progress.update
        figures = figures_of(chosen.real.features(), chosen.generated.features(), report=report)
        floor = None
        if has_floor:
            floor = figures_of(chosen.first.features(), chosen.second.features(), report=report)
        found = Comparison(figures, floor)
        if classes is None:
            return found
        for label, name in enumerate(classes.names):
            of_class = chosen.of_class(classes, label)
            found.per_class[name] = ClassFigures.of(of_class, fd_needs, report)
    return found


def choose_rows(
    real: FeatureSet, generated: FeatureSet, plan: Plan, device: torch.device
) -> Chosen:
    """What the plan says, of the images that could be read. UserError where these are too few."""
    real_count, generated_count = len(real.places), len(generated.places)
    half = real_count // 2
    if plan.wanted != ALL_IMAGES:
        most = min(plan.wanted, half) if plan.is_default else plan.wanted
        real_count = min(most, real_count, generated_count)
        generated_count = real_count
        half = min(half, real_count)
    if min(real_count, generated_count) < FEWEST:
        raise TooFewImages(
            f"too few images could be read: {len(real.places):,} of REAL and "
            f"{len(generated.places):,} of GENERATED; features are compared from {2 * FEWEST} and "
            f"{FEWEST} on"
        )
    return Chosen(
        real=Rows(real, np.arange(real_count), device),
        generated=Rows(generated, np.arange(generated_count), device),
        first=Rows(real, np.arange(half), device),
        second=Rows(real, np.arange(half, 2 * half), device),
    )


def figures_of(
    real: Tensor,
    generated: Tensor,
    with_fd: bool = True,
    report: Callable[[], None] = lambda: None,
) -> Figures:
    """All figures of two sets of features, (N,D) and (M,D). `report` is called MEASURES times."""
    kid, kid_se = kernel_distance(real, generated)
    report()
    precision, recall = precision_recall(real, generated, k=PRECISION_K)
    report()
    density, coverage = density_coverage(real, generated, k=COVERAGE_K)
    report()
    fd = frechet_distance(real, generated) if with_fd else None
    report()
    return Figures(
        n=len(generated),
        n_real=len(real),
        fd=fd,
        kid=kid,
        kid_se=kid_se,
        precision=precision,
        recall=recall,
        density=density,
        coverage=coverage,
    )


def _figures_if_enough(
    a: Rows, b: Rows, fd_needs: int, report: Callable[[], None]
) -> Figures | None:
    if len(a) < FEWEST:
        return None
    return figures_of(a.features(), b.features(), len(a) >= fd_needs, report)


# --- Per class ---


@dataclass(frozen=True)
class Classes:
    """The classes that both folders have."""

    names: list[str]
    real: np.ndarray  # (N,) the class of each of REAL's images, by place
    generated: np.ndarray


def common_classes(real: ImageFolder, generated: ImageFolder) -> tuple[Classes | None, str]:
    """The classes, where both folders have the same ones; else None and, if need be, a remark."""
    if not real.class_names or not generated.class_names:
        return None, ""
    if real.class_names == generated.class_names:
        return Classes(real.class_names, real.labels, generated.labels), ""
    only_real = sorted(set(real.class_names) - set(generated.class_names))
    only_generated = sorted(set(generated.class_names) - set(real.class_names))
    parts = []
    for role, names in (("REAL", only_real), ("GENERATED", only_generated)):
        if names:
            shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            parts.append(f"{role} alone has {shown}")
    return None, f"no figures per class, since the class folders differ: {'; '.join(parts)}"
