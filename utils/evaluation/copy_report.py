"""What was found about copies, in lines, numbers and a picture."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import Tensor

from model.metrics.copy_threshold import FALSE_ALARMS, Calibration, wilson_interval
from utils.errors import UserError
from utils.pictures import image_grid

PAIRS_PER_ROW = 3  # of the panel
LEAST_WIDTH = 128  # pixels of an image of the panel, so that names have room below it


@dataclass(frozen=True)
class FeatureColumn:
    """What the features say: a second opinion, calibrated like the first one."""

    name: str
    nearest: list[str]
    distance: Tensor  # (M,) float64, cosine distance
    copies: Tensor  # (M,) bool
    threshold: float


@dataclass(frozen=True)
class CopyReport:
    """The nearest training image of each generated one, and how many of these are copies."""

    names: list[str]  # of the generated images
    nearest: list[str]  # of the training images, relative to their folder
    distance: Tensor  # (M,) float64
    copies: Tensor  # (M,) bool
    calibration: Calibration
    closest: Tensor  # (2K,C,H,W) uint8: the closest pairs, generated and nearest in turn
    closest_places: list[int]  # (K,) which generated images these are
    features: FeatureColumn | None = None

    @property
    def flagged(self) -> int:
        return int(self.copies.sum())

    @property
    def of(self) -> int:
        return len(self.names)

    @property
    def share(self) -> float:
        return self.flagged / self.of

    @property
    def interval(self) -> tuple[float, float]:
        """The share's 95% interval."""
        return wilson_interval(self.flagged, self.of)

    def lines(self) -> list[str]:
        """For people."""
        lines = [
            f"copies      {share_line(self.flagged, self.of, self.calibration)}",
            f"            flagged up to a distance of {self.calibration.threshold:.4f} to the "
            f"nearest training image",
        ]
        remark = near_copy_remark(self.calibration)
        if remark:
            lines.append(f"            {remark}")
        if self.features is not None:
            flagged = int(self.features.copies.sum())
            low, high = wilson_interval(flagged, self.of)
            lines.append(
                f"            by features ({self.features.name}): {flagged:,} flagged, "
                f"{flagged / self.of:.1%} ({low:.1%} to {high:.1%}), up to a cosine distance of "
                f"{self.features.threshold:.4f}"
            )
        return lines

    def to_dict(self) -> dict:
        """For a file; interval is [low, high]."""
        features = self.features
        return {
            "flagged": self.flagged,
            "of": self.of,
            "share": self.share,
            "interval": list(self.interval),
            "expected": self.calibration.false_alarms,
            "threshold": self.calibration.threshold,
            "feature": features.name if features else None,
            "feature_threshold": features.threshold if features else None,
            "feature_flagged": int(features.copies.sum()) if features else None,
        }

    def rows(self) -> list[dict]:
        """One for each generated image: file, nearest, distance, copy; with features also
        feature_nearest, feature_distance, feature_copy.
        """
        rows = []
        for place, name in enumerate(self.names):
            row = {
                "file": name,
                "nearest": self.nearest[place],
                "distance": self.distance[place].item(),
                "copy": bool(self.copies[place]),
            }
            if self.features is not None:
                row["feature_nearest"] = self.features.nearest[place]
                row["feature_distance"] = self.features.distance[place].item()
                row["feature_copy"] = bool(self.features.copies[place])
            rows.append(row)
        return rows

    def panel(self) -> Image.Image:
        """A picture of the closest pairs, "generated | nearest", the closest first; below them
        the names, the distance, and whether it counts as a copy.
        """
        captions = []
        ends = []
        for place in self.closest_places:
            captions += [self.names[place], self.nearest[place]]
            mark = " copy" if self.copies[place] else ""
            ends += [f"{self.distance[place]:.3f}{mark}", ""]
        pixels = self.closest
        factor = math.ceil(LEAST_WIDTH / pixels.shape[-1])
        if factor > 1:
            pixels = pixels.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)
        columns = 2 * min(PAIRS_PER_ROW, len(self.closest_places))
        return image_grid(pixels, columns, captions=captions, caption_ends=ends)


def share_line(flagged: int, of: int, calibration: Calibration) -> str:
    """How many images are flagged, for people."""
    low, high = wilson_interval(flagged, of)
    expected = calibration.false_alarms
    return (
        f"{flagged:,} of {of:,} images flagged as copies of training images: {flagged / of:.1%} "
        f"(95% interval {low:.1%} to {high:.1%}); {expected:.0%} is expected of new images"
    )


def near_copy_remark(calibration: Calibration) -> str:
    """What near copies in the training set mean for new images; "" where there are hardly any."""
    share = calibration.with_near_copy / len(calibration.sample)
    if share <= FALSE_ALARMS:
        return ""
    return (
        f"{share:.1%} of the training images have a near copy among the others; if new images are "
        f"like that too, that share of them is flagged in addition"
    )


def write_table(rows: Sequence[dict], file: Path) -> None:
    """Rows with the same keys as a CSV file with a header. UserError where it cannot be written."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    try:
        file.write_text(buffer.getvalue(), encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {file}: {error.strerror}") from None
