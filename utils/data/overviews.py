"""What generate.py writes beside its images, and is no part of the set that these are."""

import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from PIL import ExifTags, Image

from utils.data.silence import quiet_pillow

OVERVIEWS = ("grid", "denoising", "interpolation")  # files with these names, and some ending
MASKS = "masks"  # folder of the label maps that are made with images
FIRST_IMAGE = re.compile(rb"0*0\.\w+")
OVERVIEW = re.compile(rb"(%s)\.\w+" % "|".join(OVERVIEWS).encode())
MASK = re.compile(rb"%s/(\d+)\.png" % MASKS.encode())
EITHER = b"|".join([OVERVIEW.pattern, MASK.pattern])
IN_ITS_FOLDER = re.compile(rb"(?:(.*)/)?(?:%s)" % EITHER, re.DOTALL)

# Entries of the text that each image of generate.py has: in a PNG text chunks, in a JPEG or WebP
# lines of the description in its EXIF block.
OF_AN_IMAGE = ("seed", "sampler")
WITH_DESCRIPTION = ("JPEG", "WEBP")


def overviews_among(names: Sequence[bytes], root: Path) -> list[int]:
    """The places of overviews and masks among the names of files below a folder, in it or in any
    folder within; none where the images beside them are not generate.py's.
    """
    matches = filter(None, map(IN_ITS_FOLDER.fullmatch, names))
    folders = {match[1] or b"" for match in matches}
    if not folders:
        return []
    below: dict[bytes, dict[bytes, int]] = defaultdict(dict)  # by folder: name in it -> place
    for place, name in enumerate(names):
        for folder in _folders_above(name):
            if folder in folders:
                below[folder][name[len(folder) + 1 if folder else 0 :]] = place
    found = [
        place
        for folder, files in below.items()
        for place in _overviews_of(files, root / os.fsdecode(folder))
    ]
    return sorted(set(found))


def _folders_above(name: bytes) -> Iterator[bytes]:
    """Each folder that a file lies in, the root as b""."""
    while name:
        name = name.rpartition(b"/")[0]
        yield name


def _overviews_of(files: Mapping[bytes, int], folder: Path) -> list[int]:
    """The places of overviews and masks of one folder among all files below it: images may be in
    folders, as their conditions are.
    """
    beside = {name.rpartition(b".")[0] for name in files if b"/" not in name}
    masks = filter(None, map(MASK.fullmatch, files))
    has_masks = any(mask[1] in beside for mask in masks)  # else the folder is one of images
    found = [place for name, place in files.items() if _is_overview(name, has_masks)]
    images = [name for name in files if not _is_overview(name, has_masks)]
    if not found or not images:
        return []
    is_numbered = any(map(FIRST_IMAGE.fullmatch, images))
    return found if is_numbered or _has_text_of_an_image(folder, images[0]) else []


def _is_overview(name: bytes, has_masks: bool) -> bool:
    """Whether it is called like an overview or, where there are masks, like one of these."""
    return bool(OVERVIEW.fullmatch(name) or (has_masks and MASK.fullmatch(name)))


def _has_text_of_an_image(folder: Path, name: bytes) -> bool:
    """Whether the text of an image says that generate.py made it."""
    try:
        with quiet_pillow(), Image.open(folder / os.fsdecode(name)) as image:
            if all(key in image.info for key in OF_AN_IMAGE):
                return True
            if image.format not in WITH_DESCRIPTION:
                return False
            description = str(image.getexif().get(ExifTags.Base.ImageDescription, ""))
    except Exception:  # Pillow's plugins raise what they like on damaged files
        return False
    lines = {line.partition(":")[0] for line in description.splitlines()}
    return all(key in lines for key in OF_AN_IMAGE)
