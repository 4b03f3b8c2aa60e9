"""A folder of images that is to be compared: which files, of which class, in which order."""

import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from utils.data.account import Account
from utils.data.flat import FlatNames, readable
from utils.data.index import scan_folder
from utils.data.layout import SPLIT_NAMES
from utils.errors import UserError, name_list
from utils.text import composed

NO_CLASS = -1


@dataclass
class ImageFolder:
    """The candidates for reading below a folder, sorted by path."""

    role: str  # "REAL" or "GENERATED": what lines call it
    root: Path
    names: FlatNames  # relative to root
    labels: np.ndarray  # (N,) int64, into class_names; NO_CLASS for all where there are none
    class_names: list[str]  # the folders in root, where they are two or more and hold all images
    account: Account
    remarks: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.names)

    def path(self, place: int) -> Path:
        return self.root / self.names[place]

    def shown(self, place: int) -> str:
        """The name of an image in messages."""
        return readable(self.names.raw(place))

    def order(self) -> np.ndarray:
        """(N,) int64: all places in a fixed random order, of which each part has the classes in
        the proportions of the whole.
        """
        chance = np.random.RandomState(0)  # its stream is the same in every version of numpy
        keys = np.empty(len(self))
        for label in np.unique(self.labels):
            places = chance.permutation(np.flatnonzero(self.labels == label))
            keys[places] = (np.arange(len(places)) + chance.random_sample()) / len(places)
        return np.argsort(keys, kind="stable")

    def class_counts(self) -> dict[str, int]:
        """Candidates of each class."""
        counts = np.bincount(self.labels[self.labels >= 0], minlength=len(self.class_names))
        return dict(zip(self.class_names, counts.tolist(), strict=True))


def open_folder(path: Path, role: str) -> ImageFolder:
    """List the images below a folder. UserError where there are none."""
    if not os.path.exists(path):  # False too for a name that no file can have
        raise UserError(f"{role} {path} does not exist; name a folder of images")
    if not path.is_dir():
        raise UserError(f"{role} {path} is a file; name a folder of images")
    index = scan_folder(path, conditional=False)
    names = index.names
    if len(names) == 0:
        raise UserError(f"{role} {path} holds no images: {index.account.why_empty()}")
    labels, class_names, remarks = _classes(names, role)
    return ImageFolder(role, path, names, labels, class_names, index.account, remarks)


def _classes(names: FlatNames, role: str) -> tuple[np.ndarray, list[str], list[str]]:
    """The label of each image, the class names, and remarks."""
    tops = []
    for place in range(len(names)):
        top, slash, _ = names.raw(place).partition(b"/")
        tops.append(composed(readable(top)) if slash else None)
    found = sorted({top for top in tops if top is not None})
    beside = tops.count(None)
    no_classes = np.full(len(names), NO_CLASS, np.int64)
    if len(found) < 2:
        return no_classes, [], []
    if beside > 0:
        remark = (
            f"{role}: {beside:,} images lie beside the folders {name_list(found, 3)}: no figures "
            f"per class"
        )
        return no_classes, [], [remark]
    remarks = []
    if all(name.lower() in SPLIT_NAMES for name in found):
        remarks.append(
            f"{role}: the folders {name_list(found)} look like parts of a data set; all of them "
            f"are used together: name one of them to use it alone"
        )
    number = {name: label for label, name in enumerate(found)}
    labels = np.array([number[top] for top in tops if top is not None], np.int64)
    return labels, found, remarks


def relative_stem(name: str) -> str:
    """A path without its ending, in one form: what pairs go by."""
    return composed(readable(os.path.splitext(name)[0]))
