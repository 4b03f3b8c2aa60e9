"""The folders of images that trainings may use: those directly in one folder of the server."""

import argparse
import math
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from utils.errors import UserError
from utils.options.types import file_name
from utils.serving.refusal import Refusal, not_found
from utils.serving.safe_files import is_folder, is_text, names_in, without_paths

LOOKED_AT_FOR_SIZE = 16  # images
KEPT_SECONDS = 60.0  # until a folder is looked through again, though its own listing is the same


@dataclass(frozen=True)
class DataClass:
    name: str
    images: int


@dataclass(frozen=True)
class DataFolder:
    """A folder of images. `error` says why it cannot be used."""

    name: str
    images: int = 0
    classes: list[DataClass] = field(default_factory=list)
    size_hint: tuple[int, int] | None = None  # (H, W) that most images have
    error: str | None = None


class DataFolders:
    """Clients name a folder, and never a path. Threads may use it."""

    def __init__(self, root: Path):
        self.root = root.resolve()
        self._lock = threading.Lock()
        self._looked_at: dict[str, tuple[float, int, DataFolder]] = {}  # when, state, what

    def names(self) -> list[str]:
        """No links: they may lead elsewhere."""
        names = [name for name in names_in(self.root) if _is_shown(name)]
        return [name for name in names if is_folder(self.root / name)]

    def all(self) -> list[DataFolder]:
        """By name."""
        with self._lock:
            return [self._look_at(name) for name in self.names()]

    def path(self, name: str) -> Path:
        """The folder of this name. Raises Refusal where there is none."""
        try:
            is_name = _is_shown(name) and file_name(name) == name
        except argparse.ArgumentTypeError:
            is_name = False
        if not is_name or not is_folder(self.root / name):
            raise not_found(f"there is no data folder {name[:80]!a}", "dataset", "no_such_dataset")
        return self.root / name

    def name_of(self, path: object) -> str | None:
        """The name of the folder at a path that a run has recorded; None where it is not here."""
        if not isinstance(path, str) or "\0" in path:
            return None
        folder = Path(path)
        is_here = folder.parent == self.root or folder.parent.resolve() == self.root
        return folder.name if is_here and folder.name in self.names() else None

    def samples(self, name: str, count: int) -> bytes:
        """Some of its images as a PNG, spread over the whole of it. Raises Refusal where there are
        none.
        """
        from utils.serving.data_samples import grid_of  # it reads images, and so imports torch

        folder = self.path(name)
        try:
            return grid_of(folder, count)
        except UserError as error:
            sentence = without_paths(str(error), [self.root])
            raise Refusal(409, sentence, code="no_images") from None

    def _look_at(self, name: str) -> DataFolder:
        """What is in a folder, as it was found a short while ago."""
        folder = self.root / name
        try:
            state = folder.stat().st_mtime_ns
        except OSError:
            state = 0
        now = time.monotonic()
        known = self._looked_at.get(name)
        if known is not None and known[1] == state and now - known[0] < KEPT_SECONDS:
            return known[2]
        found = self._read(name)
        self._looked_at[name] = (now, state, found)
        return found

    def _read(self, name: str) -> DataFolder:
        from utils.data.index import scan_folder

        try:
            index = scan_folder(self.root / name, conditional=False)
        except UserError as error:
            return DataFolder(name, error=without_paths(str(error), [self.root]))
        if len(index) == 0:
            return DataFolder(name, error=f"no images: {index.account.why_empty()}")
        places = range(0, len(index), math.ceil(len(index) / LOOKED_AT_FOR_SIZE))
        return DataFolder(
            name=name,
            images=len(index),
            classes=_classes([index.names.raw(place) for place in range(len(index))]),
            size_hint=_usual_size([self.root / name / index.names[place] for place in places]),
        )


def _is_shown(name: str) -> bool:
    """Neither hidden nor of bytes that are no text."""
    return is_text(name) and not name.startswith(".")


def _classes(names: list[bytes]) -> list[DataClass]:
    """The folders directly in a folder of images, with the number of images below each."""
    from utils.data.flat import readable
    from utils.text import composed

    counts = Counter(name.partition(b"/")[0] for name in names if b"/" in name)
    classes = [DataClass(composed(readable(name)), count) for name, count in counts.items()]
    return sorted(classes, key=lambda each: each.name)


def _usual_size(files: list[Path]) -> tuple[int, int] | None:
    """The (H, W) of most of these images, as far as they can be read."""
    from PIL import Image

    from utils.data.formats import readable_formats

    sizes: Counter[tuple[int, int]] = Counter()
    for file in files:
        try:
            with Image.open(file, formats=readable_formats()) as picture:
                sizes[picture.height, picture.width] += 1
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            continue
    return sizes.most_common(1)[0][0] if sizes else None
