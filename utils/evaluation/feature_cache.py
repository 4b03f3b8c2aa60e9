"""Features of sets that were seen before, by the contents of their files.

A file per set below the user's cache folder. Nothing depends on it: what is damaged or cannot be
written is computed again.
"""

import contextlib
import os
import secrets
import shutil
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from utils.data.cache_folder import LEFT_FREE, STALE_SECONDS, default_cache_folder, make_private
from utils.errors import UserError
from utils.runs.files import open_regular, read_contents, write_contents

LARGEST_CACHE = 4 * 2**30  # bytes of all sets together
LAYOUT = 1  # raise where the contents of a file change their meaning
HEAD_ROOM = 2**20  # bytes of a file beside its features

# Features (n,D), which images could be read (N,), sizes with their counts, grey images, and why
# each of the others could not be read.
Contents = tuple[Tensor, np.ndarray, list[tuple[tuple[int, int], int]], int, list[str]]


class FeatureCache:
    """The folder of cached features. `remark` says why it could not be used, if so."""

    def __init__(self, folder: Path | None = None, largest: int = LARGEST_CACHE):
        self.folder = folder or default_cache_folder() / "features"
        self.largest = largest
        self.remark = ""

    def load(self, key: str, images: int, dimension: int) -> Contents | None:
        """What was kept under a key; None where it is not there, damaged or something else."""
        path = self._path(key)
        try:
            with open_regular(path) as file:
                kept = read_contents(file, path)
            contents = _checked(kept, images, dimension)
        except (OSError, UserError):
            return None
        if contents is not None:
            with contextlib.suppress(OSError):
                os.utime(path)  # says when it was last used
        return contents

    def save(self, key: str, contents: Contents) -> None:
        """Keep it, by a temporary file that is renamed. Sets not used for long make room."""
        features, is_readable, sizes, grey, reasons = contents
        needed = features.numel() * features.element_size() + HEAD_ROOM
        if needed > self.largest:
            self.remark = (
                f"the features of REAL are not kept: they need {needed / 2**30:.1f} GiB, and all "
                f"sets together have {self.largest / 2**30:.0f} GiB"
            )
            return
        kept = {
            "layout": LAYOUT,
            "features": features.contiguous(),
            "is_readable": torch.from_numpy(is_readable),
            "sizes": [[height, width, count] for (height, width), count in sizes],
            "grey": grey,
            "reasons": reasons,
        }
        part = self.folder / f"{key}.{secrets.token_hex(4)}.part"
        try:
            make_private(self.folder)
            self._make_room(needed)
            try:
                with open(part, "wb") as file:
                    write_contents(kept, file)
                os.replace(part, self._path(key))
            finally:
                part.unlink(missing_ok=True)
        except OSError as error:
            reason = error.strerror or str(error)
            self.remark = f"the features of REAL are not kept in {self.folder}: {reason}"

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.features"

    def _make_room(self, needed: int) -> None:
        """Remove what was not used for the longest time, and what killed processes left behind.

        OSError where the disk stays too full; then nothing that is kept is removed in vain.
        """
        for part in self.folder.glob("*.part"):
            with contextlib.suppress(OSError):
                if time.time() - part.stat().st_mtime > STALE_SECONDS:
                    part.unlink()
        kept = []
        for path in self.folder.glob("*.features"):
            with contextlib.suppress(OSError):
                about = path.stat()
                kept.append((about.st_mtime_ns, about.st_size, path))
        total = sum(size for _, size, _ in kept)
        if shutil.disk_usage(self.folder).free + total < needed + LEFT_FREE:
            raise OSError("the disk is nearly full")
        for _, size, path in sorted(kept):
            has_room = shutil.disk_usage(self.folder).free >= needed + LEFT_FREE
            if has_room and total + needed <= self.largest:
                return
            with contextlib.suppress(OSError):
                path.unlink()
                total -= size
        if shutil.disk_usage(self.folder).free < needed + LEFT_FREE:
            raise OSError("the disk is nearly full")


def _checked(kept: object, images: int, dimension: int) -> Contents | None:
    """The contents of a cache file, if they are what `save` writes for so many images."""
    if not isinstance(kept, dict) or kept.get("layout") != LAYOUT:
        return None
    try:
        features = kept["features"]
        is_readable = kept["is_readable"].numpy()
        sizes = [((height, width), count) for height, width, count in kept["sizes"]]
        grey = int(kept["grey"])
        reasons = [str(reason) for reason in kept["reasons"]]
        readable = int(is_readable.sum())
        fits = features.shape == (readable, dimension) and features.dtype == torch.float32
        fits = fits and is_readable.shape == (images,) and is_readable.dtype == bool
        fits = fits and len(reasons) == images - readable and bool(features.isfinite().all())
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
    return (features, is_readable, sizes, grey, reasons) if fits else None
