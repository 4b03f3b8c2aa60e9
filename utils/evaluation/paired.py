"""Pairs of images by file name: PSNR and SSIM, as for super-resolution or reconstruction."""

import math
from dataclasses import dataclass, field

import numpy as np
import torch

from model.metrics import psnr, ssim
from model.metrics.psnr_ssim import WINDOW_SIZE
from utils.console import Progress
from utils.data.reading import ahead, is_grey, why_unreadable
from utils.errors import UserError, name_list
from utils.evaluation.extract import Reader, threads_for
from utils.evaluation.image_folder import ImageFolder, relative_stem
from utils.image_facts import BRIGHTEST

COPIES = 100  # bytes that comparing two images takes for each of their bytes, in float64
SHOWN = 3  # names of missing partners


@dataclass(frozen=True)
class Pair:
    """Two images of one name, as places in their folders."""

    name: str
    real: int
    generated: int


@dataclass(frozen=True)
class Statistic:
    """Of one figure over the pairs that have it."""

    mean: float
    standard_error: float | None  # None for one pair
    worst: tuple[str, float]  # file and value
    best: tuple[str, float]

    def to_dict(self) -> dict:
        return {
            "mean": finite(self.mean),
            "se": self.standard_error,
            "worst": {"file": self.worst[0], "value": finite(self.worst[1])},
            "best": {"file": self.best[0], "value": finite(self.best[1])},
        }


@dataclass
class PairedReport:
    """What the pairs say. The PSNR of equal images is infinite: they are counted apart."""

    pairs: list[Pair]  # those that could be read
    psnr_values: np.ndarray  # (n,) dB
    ssim_values: np.ndarray  # (n,), NaN where an image is too small
    remarks: list[str] = field(default_factory=list)

    @property
    def identical(self) -> int:
        return int(np.isinf(self.psnr_values).sum())

    @property
    def psnr(self) -> Statistic | None:
        """Over the pairs that differ; None where none does."""
        return self._statistic(self.psnr_values, np.isfinite(self.psnr_values))

    @property
    def ssim(self) -> Statistic | None:
        return self._statistic(self.ssim_values, ~np.isnan(self.ssim_values))

    def worst_first(self) -> list[Pair]:
        """The pairs by PSNR."""
        return [self.pairs[place] for place in np.argsort(self.psnr_values, kind="stable")]

    def _statistic(self, values: np.ndarray, counted: np.ndarray) -> Statistic | None:
        places = np.flatnonzero(counted)
        if len(places) == 0:
            return None
        used = values[places]
        error = None
        if len(used) > 1:
            error = float(used.std(ddof=1) / math.sqrt(len(used)))
        worst = places[int(used.argmin())]
        best = places[int(used.argmax())]
        return Statistic(
            mean=float(used.mean()),
            standard_error=error,
            worst=(self.pairs[worst].name, float(values[worst])),
            best=(self.pairs[best].name, float(values[best])),
        )

    def lines(self) -> list[str]:
        """For people."""
        lines = [f"pairs       {len(self.pairs):,} by file name, 8 bits, all channels"]
        if self.identical == len(self.pairs):
            lines.append("            all of them are identical: their PSNR is infinite")
        elif self.identical:
            lines.append(
                f"            {self.identical:,} of them are identical: their PSNR is infinite, "
                f"and the mean is over the others"
            )
        for name, unit, found in (("PSNR", " dB", self.psnr), ("SSIM", "", self.ssim)):
            if found is None:
                continue
            error = ""
            if found.standard_error is not None:
                error = f" +- {found.standard_error:.4f}"
            lines.append(
                f"{name}        {found.mean:.4f}{error}{unit} (worst {found.worst[1]:.4f}: "
                f"{found.worst[0]}; best {found.best[1]:.4f}: {found.best[0]})"
            )
        return lines

    def to_dict(self) -> dict:
        """For JSON: the means under psnr and ssim, all else under paired."""
        details: dict = {"pairs": len(self.pairs), "identical": self.identical}
        statistics = {"psnr": self.psnr, "ssim": self.ssim}
        for name, found in statistics.items():
            details[name] = None if found is None else found.to_dict()
        means = {
            name: None if found is None else finite(found.mean)
            for name, found in statistics.items()
        }
        return {**means, "paired": details}


def finite(value: float) -> float | None:
    """JSON knows no infinity and no NaN."""
    return value if math.isfinite(value) else None


def compare_pairs(real: ImageFolder, generated: ImageFolder, reader: Reader) -> PairedReport:
    """PSNR and SSIM of every pair that can be read. UserError where there are no pairs, or the
    sizes of one differ.
    """
    pairs, remarks = find_pairs(real, generated)
    kept = []
    values = []
    broken = []

    def measure(pair: Pair) -> tuple[float, float, bool] | str:
        return _measure(pair, real, generated, reader)

    first = np.array([pair.real for pair in pairs])
    threads = threads_for(real, first, reader, COPIES)
    with Progress(len(pairs), title="pairs", unit="pair", leave=False) as progress:
        for pair, found in zip(pairs, ahead(measure, pairs, threads), strict=True):
            progress.update()
            if isinstance(found, str):
                broken.append(found)
                continue
            kept.append(pair)
            values.append(found)
    if broken:
        remarks.append(f"{len(broken):,} pairs left out, unreadable: {name_list(broken, SHOWN)}")
    if not kept:
        raise UserError(f"none of the {len(pairs):,} pairs can be read: {broken[0]}")
    table = np.array(values, np.float64)
    too_small = int(np.isnan(table[:, 1]).sum())
    if too_small:
        remarks.append(
            f"no SSIM for {too_small:,} pairs: it needs sides of {WINDOW_SIZE} pixels or more"
        )
    mixed = [pair.name for pair, is_mixed in zip(kept, table[:, 2], strict=True) if is_mixed]
    if mixed:
        remarks.append(
            f"{len(mixed):,} pairs of a grey and a coloured image: {name_list(mixed, SHOWN)}"
        )
    return PairedReport(kept, table[:, 0], table[:, 1], remarks)


def find_pairs(real: ImageFolder, generated: ImageFolder) -> tuple[list[Pair], list[str]]:
    """Images of one name (below the folder, without the ending), and remarks on those alone."""
    ours = _by_stem(real)
    theirs = _by_stem(generated)
    pairs = [
        Pair(generated.shown(theirs[stem]), ours[stem], theirs[stem])
        for stem in ours
        if stem in theirs
    ]
    if not pairs:
        raise UserError(
            f"--paired: no image of GENERATED has the name of one of REAL; the first are "
            f"{generated.shown(0)} and {real.shown(0)}"
        )
    remarks = []
    for folder, mine, others in ((real, ours, theirs), (generated, theirs, ours)):
        alone = [folder.shown(place) for stem, place in mine.items() if stem not in others]
        if alone:
            remarks.append(
                f"{folder.role}: {len(alone):,} without a partner of their name: "
                f"{name_list(alone, SHOWN)}"
            )
    return pairs, remarks


def _by_stem(folder: ImageFolder) -> dict[str, int]:
    found: dict[str, int] = {}
    for place in range(len(folder)):
        stem = relative_stem(folder.names[place])
        if stem in found:
            raise UserError(
                f"--paired: {folder.role} has two images of one name, "
                f"{folder.shown(found[stem])} and {folder.shown(place)}: rename one of them"
            )
        found[stem] = place
    return found


def _measure(
    pair: Pair, real: ImageFolder, generated: ImageFolder, reader: Reader
) -> tuple[float, float, bool] | str:
    """PSNR, SSIM (NaN where the images are too small) and whether one image is grey and the other
    is not; or why the pair cannot be read.
    """
    tensors = []
    are_grey = []
    for folder, place in ((real, pair.real), (generated, pair.generated)):
        image = reader.read(folder.path(place))
        if isinstance(image, Exception):
            why = why_unreadable(image, folder.names[place])
            return f"{folder.role} {folder.shown(place)} ({why})"
        tensors.append(torch.tensor(image.pixels).permute(2, 0, 1)[None])
        are_grey.append(is_grey(image.pixels))
    one, two = tensors
    if one.shape != two.shape:
        sizes = [f"{image.shape[2]}x{image.shape[3]}" for image in tensors]
        raise UserError(
            f"--paired: {real.shown(pair.real)} of REAL has {sizes[0]} pixels and "
            f"{generated.shown(pair.generated)} of GENERATED {sizes[1]}; both need one size "
            f"(--image_size fits them to one)"
        )
    similarity = math.nan
    if min(one.shape[2:]) >= WINDOW_SIZE:
        similarity = float(ssim(one, two, data_range=BRIGHTEST))
    is_mixed = are_grey[0] != are_grey[1]
    return float(psnr(one, two, data_range=BRIGHTEST)), similarity, is_mixed
