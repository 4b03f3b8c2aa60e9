"""Images are compared with the training images while they are generated."""

from pathlib import Path

from torch import Tensor

from model.metrics.copy_threshold import Calibration
from utils.console import say
from utils.data import ImageSet, load_image_set
from utils.errors import name_list
from utils.evaluation.copies import TrainingImages
from utils.evaluation.copy_report import near_copy_remark, share_line, write_table
from utils.image_facts import COLOURS, mode_of, shown_mode
from utils.pixel_planes import shown_pixels
from utils.ranks import Ranks


class CopyCheck:
    """Finds the training image that is nearest to each image, and tells which are copies.

    Every process looks at its own images; the main one says what there is to say.
    """

    def __init__(self, folder: Path, image_size: tuple[int, int], channels: int, ranks: Ranks):
        """Reads the training images in `folder` at the size (height, width) and with the channels
        of the generated ones. Raises UserError where there are none.
        """
        self.ranks = ranks
        image_set = self._load(folder, image_size, shown_mode(mode_of(channels)))
        ranks.wait_for_all()
        self.images = TrainingImages(image_set, quiet=not ranks.is_main)
        calibration = self._calibrate() if ranks.is_main else None
        self.calibration = ranks.gather(calibration)[ranks.main_rank]
        self.found: dict[int, dict] = {}  # by the image's place among all

    def look_at(self, place: int, name: str, pixels: Tensor) -> dict:
        """(C,H,W) uint8 -> nearest (a file name), distance and copy, kept for the image `name`,
        which is at this place among all.
        """
        (match,) = self.images.matches(shown_pixels(pixels[None]), self.calibration.threshold)
        found = {
            "nearest": match.nearest,
            "distance": f"{match.distance:.4f}",
            "copy": match.is_copy,
        }
        self.found[place] = {"file": name, **found}
        return found

    def everyones(self) -> list[dict]:
        """What all processes have found, in the order of the images. All of them call it."""
        found = {
            place: row for part in self.ranks.gather(self.found) for place, row in part.items()
        }
        return [found[place] for place in sorted(found)]

    def write(self, rows: list[dict], folder: Path) -> str:
        """Write nearest.csv, a row for each image; returns a line that says how many are copies."""
        file = folder / "nearest.csv"
        write_table(rows, file)
        flagged = sum(row["copy"] for row in rows)
        share = share_line(flagged, len(rows), self.calibration)
        return f"{share}; the nearest training images are in {file}"

    def _load(self, folder: Path, image_size: tuple[int, int], mode: str) -> ImageSet:
        """The training images as the network draws its own, in grey or in colour."""
        quiet = not self.ranks.is_main
        found = load_image_set(folder, image_size, conditional=False, quiet=quiet)
        if found.mode != mode:
            self._say(
                f"warning: {folder} holds {COLOURS[found.mode]} images, but the network draws "
                f"{COLOURS[mode]} ones: they are compared in {COLOURS[mode]}"
            )
            found = load_image_set(folder, image_size, conditional=False, mode=mode, quiet=quiet)
        if found.left_out:
            self._say(f"warning: left out of {folder}: {name_list(found.left_out)}")
        return found

    def _calibrate(self) -> Calibration:
        """The distance up to which an image counts as a copy."""
        calibration = self.images.calibrate()
        remark = near_copy_remark(calibration)
        if remark:
            self._say(f"--nearest: {remark}")
        return calibration

    def _say(self, text: str) -> None:
        if self.ranks.is_main:
            say(text)
