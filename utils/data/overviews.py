"""What generate.py writes beside its images, and is no part of the set that these are."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

OVERVIEWS = ("grid", "denoising", "interpolation")  # files with these names, and some ending
MASKS = "masks"  # folder of the label maps that are made with images
FIRST_IMAGE = re.compile(rb"0*0\.\w+")
OVERVIEW = re.compile(rb"(%s)\.\w+" % "|".join(OVERVIEWS).encode())
MASK = re.compile(rb"%s/(\d+)\.png" % MASKS.encode())

# Entries of the text that each PNG of generate.py has.
OF_AN_IMAGE = ("seed", "sampler")


def overviews_among(names: Sequence[bytes], root: Path) -> list[int]:
    """The places of overviews and masks among the names of files below a folder; none where the
    images beside them are not generate.py's.
    """
    beside = {name.rpartition(b".")[0] for name in names if b"/" not in name}
    masks = filter(None, map(MASK.fullmatch, names))
    has_masks = any(mask[1] in beside for mask in masks)  # else the folder is one of images
    found = [place for place, name in enumerate(names) if _is_overview(name, has_masks)]
    if not found or len(found) == len(names):
        return []
    others = (name for name in names if not _is_overview(name, has_masks))
    first = next(others)
    if FIRST_IMAGE.fullmatch(first) or any(map(FIRST_IMAGE.fullmatch, others)):
        return found
    return found if _has_text_of_an_image(root, first) else []


def _is_overview(name: bytes, has_masks: bool) -> bool:
    """Whether it is called like an overview or, where there are masks, like one of these."""
    return bool(OVERVIEW.fullmatch(name) or (has_masks and MASK.fullmatch(name)))


def _has_text_of_an_image(root: Path, name: bytes) -> bool:
    """Whether the text of a PNG says that generate.py made it."""
    try:
        with Image.open(root / os.fsdecode(name)) as image:
            return all(key in image.info for key in OF_AN_IMAGE)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return False
