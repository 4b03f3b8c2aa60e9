"""A folder of images as a data set."""

import hashlib
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from utils.data.account import Account
from utils.data.cache import CacheRequest, ReadSet, read_set
from utils.data.cache_file import MappedPixels
from utils.data.cache_folder import default_cache_folder
from utils.data.decode import decode
from utils.data.flat import FlatNames, FlatNumbers, readable
from utils.data.index import FolderIndex, scan_folder
from utils.data.labels_file import (
    LABELS_FILE,
    Conditions,
    LabelRow,
    LabelTable,
    build_conditions,
    match_rows,
    read_labels,
)
from utils.data.reading import ReadFacts, checksum, in_mode
from utils.errors import ReadError, UserError, name_list
from utils.image_facts import CHANNELS, USUAL_MODES

MODES = ("auto", *CHANNELS)
BROKEN = "damaged or unreadable"
DARK = 0.25  # of the range: 16-bit images below it are likely to hold 10 or 12 bits


@dataclass
class ImageSet(Dataset):
    """A folder of images at one size. Item i is (pixels (C,H,W) uint8, label, i).

    With `conditions`, `labels` are the combinations of labels, and a label is a row of them.

    Where a file that was read at first cannot be read any more, or has changed, the item is a
    `ReadError` instead: as a value, so that it crosses from a data-loading worker without a
    traceback.
    """

    root: Path
    image_size: tuple[int, int]  # height, width
    mode: str  # one of CHANNELS, which says how many planes
    files: FlatNames  # relative to root
    labels: FlatNumbers
    class_names: list[str]  # empty for an unconditional set
    checksums: np.ndarray  # (N,) uint32, of the pixels of each image
    left_out: dict[str, str] = field(default_factory=dict)  # broken image or empty class: why
    account: Account = field(default_factory=Account)  # of all files: used, left out and why
    remarks: list[str] = field(default_factory=list)  # for the plan
    pixels: np.ndarray | MappedPixels | None = None  # (R,C,H,W) uint8; None: decode at each use
    rows: np.ndarray | None = None  # (N,) int64: where image i lies in `pixels`; None: in row i
    conditions: Conditions | None = None  # of labels.csv, in place of one label an image
    retry_pauses: Sequence[float] = (0.5, 1.0, 2.0, 4.0)  # seconds before reading once more

    def __post_init__(self) -> None:
        self._is_verified = np.zeros(len(self.files), bool)

    @property
    def channels(self) -> int:
        return CHANNELS[self.mode]

    @property
    def is_decoded(self) -> bool:
        """Whether the pixels lie in memory or in a mapped file."""
        return self.pixels is not None

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> tuple[Tensor, int | Tensor, int] | ReadError:
        try:
            image = self._kept(i)
            if image is None:
                image = self._read_again(i)
        except ReadError as error:
            return error
        return torch.from_numpy(image), self.label(i), i

    def label(self, i: int) -> int | Tensor:
        """The class of image i; or where labels.csv says more, its numbers and labels (W,)."""
        if self.conditions is None:
            return self.labels[i]
        return torch.from_numpy(self.conditions.rows[i])

    def label_table(self) -> np.ndarray:
        """(N,K) int64: the labels of each image, -1 where it has fewer than K."""
        if self.conditions is None:
            return self.labels.array[:, None]
        return self.conditions.label_table()

    def name(self, i: int) -> str:
        """The file of image i, relative to the root."""
        return self.files[i]

    def _kept(self, i: int) -> np.ndarray | None:
        """A copy of image i from memory or the cache; None where it is not there or damaged."""
        if self.pixels is None:
            return None
        row = i if self.rows is None else int(self.rows[i])
        image = np.array(self.pixels[row])
        if not self._is_verified[i]:
            rows = image.transpose(1, 2, 0)
            if self.mode in USUAL_MODES:  # grey ones were three equal channels when they were read
                rows = np.broadcast_to(image, (3, *self.image_size)).transpose(1, 2, 0)
            if checksum(rows) != self.checksums[i]:
                return None
            self._is_verified[i] = True
        return image

    def _read_again(self, i: int) -> np.ndarray:
        """Image i from its file, (C,H,W); tried several times. ReadError where that fails."""
        path = self.root / self.files[i]
        name = readable(os.fsencode(path))
        for pause in (*self.retry_pauses, None):
            try:
                pixels = in_mode(decode(path, self.image_size, self.mode).pixels, self.mode)
                break
            except OSError as error:
                if pause is None:
                    raise ReadError(
                        f"{name} could be read when the run began and can no longer be read: "
                        f"{error.strerror or error}; bring the file back and resume"
                    ) from None
                time.sleep(pause)
            except MemoryError:  # not the image's fault
                raise
            except Exception as error:
                raise ReadError(
                    f"{name} has changed since the run began and can no longer be decoded: "
                    f"{error}; bring the file back and resume"
                ) from None
        if checksum(pixels) != self.checksums[i]:
            raise ReadError(
                f"{name} has changed since the run began; bring the former file back and resume, "
                f"or start a new run"
            )
        return np.ascontiguousarray(pixels[..., : self.channels].transpose(2, 0, 1))

    def subset(self, places: np.ndarray) -> "ImageSet":
        """The images at these places, in their order; all classes stay. Decoded pixels are shared,
        not copied.
        """
        rows = np.arange(len(self)) if self.rows is None else self.rows
        return replace(
            self,
            files=self.files.take(places),
            labels=FlatNumbers(self.labels.array[places]),
            checksums=self.checksums[places],
            rows=rows[places],
            conditions=None if self.conditions is None else self.conditions.take(places),
        )

    def with_used_classes(self) -> "ImageSet":
        """The same images without the classes that none of them has."""
        if not self.class_names:
            return self
        used = np.flatnonzero(self.label_counts())
        if len(used) == len(self.class_names):
            return self
        names = [self.class_names[label] for label in used]
        if self.conditions is not None:
            return replace(self, class_names=names, conditions=self.conditions.renumbered(used))
        labels = np.searchsorted(used, self.labels.array).astype(np.int32)
        return replace(self, class_names=names, labels=FlatNumbers(labels))

    def metadata(self) -> dict:
        """What a checkpoint keeps of the set."""
        kept = {
            "image_size": list(self.image_size),
            "mode": self.mode,
            "class_names": self.class_names,
            "images": len(self),
            "fingerprint": self.fingerprint(),
        }
        if self.conditions is not None:
            kept["numbers"] = [column.to_dict() for column in self.conditions.numbers]
        return kept

    @property
    def numbers(self) -> int:
        """How many numbers describe an image."""
        return 0 if self.conditions is None else len(self.conditions.numbers)

    @property
    def is_labelled(self) -> bool:
        """Whether there is anything to learn beside the pixels."""
        return bool(self.class_names) or self.numbers > 0

    def label_counts(self) -> np.ndarray:
        """Images that have each label, (classes,)."""
        classes = len(self.class_names)
        if self.conditions is not None:
            return self.conditions.label_counts(classes)
        return np.bincount(self.labels.array, minlength=classes)

    def fingerprint(self) -> str:
        """A digest of labels and pixels: tells whether a resumed run sees the same data.

        A set that is forced into a mode has the digest of a set whose files hold these pixels.
        """
        everything: tuple = (
            self.class_names,
            self.image_size,
            self.mode,
            self.labels.tolist(),
            self.checksums.tolist(),
        )
        if self.conditions is not None:
            everything = (*everything, self.conditions.rows.tobytes(), self.conditions.numbers)
        return hashlib.sha256(repr(everything).encode(errors="surrogateescape")).hexdigest()[:16]


def stacked_pixels(images: ImageSet, places: Iterable[int]) -> Tensor:
    """The pixels (B,C,H,W) uint8 of the images at these places. Raises ReadError where one cannot
    be read.
    """
    pixels = []
    for place in places:
        item = images[int(place)]
        if isinstance(item, ReadError):
            raise item
        pixels.append(item[0])
    return torch.stack(pixels)


def load_image_set(
    root: Path,
    image_size: tuple[int, int],
    conditional: bool | None,
    mode: str = "auto",
    cache: str = "auto",
    quiet: bool = False,
    cache_folder: Path | None = None,
) -> ImageSet:
    """Index and read every image below `root`; name and leave out the broken ones.

    Conditional: the folders in root are the classes, labels follow their sorted names; a labels.csv
    in root takes their place. Otherwise everything below root is one set. None: as `scan_folder`
    finds it. `mode` is "auto" (one channel if all images are grey), "L" (colours become luma),
    "RGB", or as `decode` knows it. `cache` is one of `CACHE_CHOICES`, see `cache.read_set`; its
    files lie in `cache_folder`, by default this user's. UserError without any readable image.
    """
    if mode not in MODES:
        raise UserError(f"--mode {mode} is unknown; choose one of {', '.join(MODES)}")
    image_size = (int(image_size[0]), int(image_size[1]))
    table = None
    if conditional is not False and os.path.isfile(Path(root) / LABELS_FILE):
        table = read_labels(Path(root) / LABELS_FILE)
    index = scan_folder(Path(root), False if table is not None else conditional)
    rows = match_rows(index, table) if table is not None and len(index) > 0 else None
    if len(index) == 0:
        raise UserError(_nothing_found(index))
    folder = cache_folder or default_cache_folder()
    found = read_set(CacheRequest(index, image_size, mode, quiet, Path(folder)), cache)
    assembled = _assemble(index, found, image_size)
    if conditional is None and len(assembled.class_names) == 1:
        one_set = load_image_set(root, image_size, False, mode, cache, quiet, cache_folder)
        one_set.remarks.append(
            f"of the folders {name_list(index.class_names)} only {assembled.class_names[0]} holds "
            "images that can be read: all are one set, without classes"
        )
        return one_set
    if table is None or rows is None:
        return _with_remark_on_classes(assembled)
    return _with_conditions(assembled, [rows[place] for place in found.facts.places], table)


def _nothing_found(index: FolderIndex) -> str:
    text = f"{index.root} holds no images"
    reasons = index.account.reasons.items()
    if not reasons:
        return f"{text}: no files were found in it; name a folder with images below it"
    parts = [f"{files.per_ending()} ({reason})" for reason, files in reasons]
    return f"{text}: {index.account.seen:,} files were seen, {'; '.join(parts)}"


def _assemble(index: FolderIndex, found: ReadSet, image_size: tuple[int, int]) -> ImageSet:
    """The set of the readable images; the others go into the account."""
    facts = found.facts
    left_out = {f"{name}/": "no images in it" for name in _empty_classes(index)}
    for place, why in facts.broken.items():
        name = index.names[place]
        left_out[readable(name)] = why
        index.account.leave_out(name, BROKEN)
    if len(facts.places) == 0:
        place, why = next(iter(facts.broken.items()))
        raise UserError(
            f"none of the {len(index):,} images in {index.root} can be read; the first is "
            f"{readable(index.names[place])}: {why}"
        )
    labels = index.labels[facts.places]
    class_names: list[str] = []
    if index.class_names:
        used = np.unique(labels)  # classes whose images are all broken are none
        class_names = [index.class_names[label] for label in used]
        for name in index.class_names:
            if name not in class_names:
                left_out.setdefault(f"{name}/", "no readable image in it")
        labels = np.searchsorted(used, labels).astype(np.int32)
    is_complete = len(facts.places) == len(index)
    return ImageSet(
        root=index.root,
        image_size=image_size,
        mode=facts.mode,
        files=index.names if is_complete else index.names.take(facts.places),
        labels=FlatNumbers(labels),
        class_names=class_names,
        checksums=facts.checksums,
        left_out=left_out,
        account=index.account,
        remarks=[*index.remarks, *_remarks_on_range(facts), *found.remarks],
        pixels=found.pixels,
    )


def _with_remark_on_classes(images: ImageSet) -> ImageSet:
    """The set, which says so where most classes have a single image."""
    counts = images.label_counts() if images.class_names else np.zeros(0, int)
    single = int((counts == 1).sum())
    if single > 1 and single > len(counts) / 2:
        images.remarks.append(
            f"{single:,} of the {len(counts):,} classes have a single image, which the network can "
            "only repeat: --conditional False makes them one set"
        )
    return images


def _with_conditions(images: ImageSet, rows: list[LabelRow], table: LabelTable) -> ImageSet:
    """The set with what labels.csv says of its readable images."""
    names, combinations, conditions = build_conditions(rows, table.number_names)
    if not names and not conditions.numbers:
        raise UserError(
            f"{images.root / LABELS_FILE} gives no image a label; pass --conditional False to "
            "learn the images as one set"
        )
    return replace(
        images, labels=FlatNumbers(combinations), class_names=names, conditions=conditions
    )


def _empty_classes(index: FolderIndex) -> list[str]:
    filled = set(np.unique(index.labels).tolist())
    return [name for label, name in enumerate(index.class_names) if label not in filled]


def _remarks_on_range(facts: ReadFacts) -> list[str]:
    if facts.images_16_bits == 0 or facts.brightest_16_bits >= DARK:
        return []
    return [
        f"the {facts.images_16_bits:,} images with 16 bits are dark: their brightest pixel is at "
        f"{facts.brightest_16_bits:.1%} of the range; data of 10 or 12 bits must be scaled to 16 "
        f"bits first"
    ]
