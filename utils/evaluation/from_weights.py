"""Images of a network, written as files into class folders, to be compared like any folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.console import Progress
from utils.data.index import SYSTEM_FOLDERS
from utils.errors import UserError
from utils.evaluation.extract import Reader
from utils.evaluation.image_folder import ImageFolder
from utils.generation import ImageGenerator, Sampling, batch_advice, image_settings
from utils.image_facts import mode_of, shown_mode
from utils.pictures import save_image, to_picture
from utils.runs.checkpoint import Checkpoint
from utils.text import composed

LONGEST_NAME = 200  # bytes


def labels_like(
    real: ImageFolder, class_names: Sequence[str], count: int
) -> tuple[list[int] | None, str]:
    """The class of each image, in REAL's proportions; None for a network without classes.

    Where REAL has other class folders, the classes take turns, and a remark says so.
    """
    if not class_names:
        return None, ""
    known = {composed(name): number for number, name in enumerate(class_names)}
    counts = real.class_counts()
    if known.keys() != counts.keys():
        remark = (
            "the classes take turns, since the class folders of REAL are not the classes that the "
            "network knows"
        )
        return [place % len(class_names) for place in range(count)], remark
    shares = [0] * len(class_names)
    for name, number in known.items():
        shares[number] = counts[name]
    return in_proportion(shares, count), ""


def in_proportion(shares: Sequence[int], count: int) -> list[int]:
    """`count` labels, of which each part has the labels about in the proportions of `shares`."""
    exact = np.array(shares, np.float64) * count / sum(shares)
    numbers = np.floor(exact).astype(int)
    largest_rest_first = np.argsort(numbers - exact, kind="stable")
    numbers[largest_rest_first[: count - numbers.sum()]] += 1
    labels = np.repeat(np.arange(len(shares)), numbers)
    keys = np.concatenate([(np.arange(number) + 0.5) / max(number, 1) for number in numbers])
    return labels[np.argsort(keys, kind="stable")].tolist()


@dataclass
class ImageMaker:
    """Makes the images of a checkpoint: image i has the seed first_seed + i."""

    checkpoint: Checkpoint
    generator: ImageGenerator
    sampling: Sampling
    use_ema: bool
    count: int
    first_seed: int
    batch_size: int
    labels: list[int] | None

    @property
    def reader(self) -> Reader:
        """How REAL is read for the comparison: as in the network's training."""
        mode = shown_mode(mode_of(self.checkpoint.channels))
        return Reader(self.generator.image_size, mode)

    def write(self, folder: Path) -> None:
        """All images, as folder/<class>/<number>.png. UserError where the disk refuses it."""
        folders = self._make_folders(folder)
        settings = image_settings(
            self.sampling,
            self.generator.sampler,
            self.generator.network,
            self.checkpoint.source,
            self.use_ema,
        )
        starts = range(0, self.count, self.batch_size)
        total = len(starts) * self.generator.calls
        with Progress(total, title="sampling", unit="call", leave=False) as progress:
            for start in starts:
                places = range(start, min(start + self.batch_size, self.count))
                labels = None if self.labels is None else [self.labels[i] for i in places]
                seeds = [self.first_seed + i for i in places]
                with batch_advice(self.batch_size):
                    images = self.generator.images(
                        seeds, labels, progress.update, must_be_finite=True
                    )
                for i, pixels in zip(places, images, strict=True):
                    about: dict = {"seed": self.first_seed + i}
                    target = folder
                    if self.labels is not None:
                        about["class"] = self.checkpoint.class_names[self.labels[i]]
                        target = folders[self.labels[i]]
                    save_image(to_picture(pixels), target / f"{i:05d}.png", {**about, **settings})

    def _make_folders(self, folder: Path) -> list[Path]:
        """The folder of each class that has images; the others get one too, and stay empty."""
        names = class_folder_names(self.checkpoint.class_names)
        folders = [folder / name for name in names]
        try:
            for each in folders or [folder]:
                each.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make the folder {folder}: {error.strerror}") from None
        return folders


def class_folder_names(class_names: Sequence[str]) -> list[str]:
    """A folder for each class: its name, or "class 3" where that cannot name a folder of images. No
    two classes have one.
    """
    taken = {composed(name) for name in class_names}
    folders = []
    for number, name in enumerate(class_names):
        folder = composed(name)
        if not _names_a_folder(name):
            folder = f"class {number}"
            while folder in taken:
                folder += "_"
        folders.append(folder)
    return folders


def _names_a_folder(name: str) -> bool:
    raw = name.encode(errors="surrogateescape")
    is_odd = any(character in name for character in "/\\\0\n")
    is_hidden = name.startswith(".") or raw.lower() in SYSTEM_FOLDERS
    return bool(name.strip()) and len(raw) <= LONGEST_NAME and not is_odd and not is_hidden
