"""Images with the images that steer them: a mask, edges or a photograph for each, of the same name.

The condition of `rose/a.jpg` is `rose/a` with any ending in the folder of conditions.
"""

import io
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model.condition import MOST_LABELS, Condition, LabelCondition, PictureCondition
from utils.data.decode import NotALabelMap
from utils.data.flat import readable
from utils.data.image_set import ImageSet, load_image_set
from utils.data.index import scan_folder
from utils.data.opening import upright_size
from utils.data.reading import in_mode, try_decode, why_unreadable
from utils.errors import ReadError, UserError, name_list
from utils.image_facts import LABEL_MAP, mode_of
from utils.text import composed

KINDS = ("auto", "labels", "picture")
PROBED = 32  # files that are looked at to tell label maps from pictures
SHOWN = 5  # names in a message
MOST_LOOKED_AT = 200  # pairs of files whose own sizes are read
WITHOUT_CONDITION = "no condition of its name"
UNREADABLE_CONDITION = "its condition cannot be read"


@dataclass
class ConditionedSet:
    """A training set: item i is (planes (C+P,H,W) uint8, label, i). The planes of an image's
    condition lie behind its own, so that whatever moves one moves the other.
    """

    images: ImageSet
    conditions: ImageSet  # one for each image, in their order
    condition: Condition  # how a network takes them

    @property
    def is_decoded(self) -> bool:
        return self.images.is_decoded and self.conditions.is_decoded

    @property
    def checksums(self) -> np.ndarray:
        """Of the images."""
        return self.images.checksums

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Tensor, int | Tensor, int] | ReadError:
        image, condition = self.images[i], self.conditions[i]
        for item in (image, condition):
            if isinstance(item, ReadError):
                return item
        assert not isinstance(image, ReadError) and not isinstance(condition, ReadError)
        return torch.cat([image[0], condition[0]]), image[1], i

    def name(self, i: int) -> str:
        return self.images.name(i)

    def subset(self, places: np.ndarray) -> "ConditionedSet":
        """The images at these places, with their conditions."""
        images, conditions = self.images.subset(places), self.conditions.subset(places)
        return ConditionedSet(images, conditions, self.condition)


def pair(
    images: ImageSet,
    folder: Path,
    kind: str,
    cache: str,
    quiet: bool,
    picture_mode: str = "auto",  # of conditions that are pictures
) -> ConditionedSet:
    """The images that have a condition in the folder, with it.

    The others are left out, and counted in the images' account. `kind` is one of KINDS: "auto" is
    "labels" where files from all over it are palette or grey ones with few different numbers.
    Raises UserError where no image has a condition, or the conditions are not of that kind.
    """
    _check_folder(folder)
    is_guessed = kind == "auto"
    if is_guessed:
        kind = _probed_kind(folder, images.image_size)
    mode = LABEL_MAP if kind == "labels" else picture_mode
    found = load_image_set(folder, images.image_size, False, mode, cache, quiet)
    if is_guessed and kind == "labels":
        _check_guess(found)
    by_name = _places_by_name(found)
    names = [_name(images, place) for place in range(len(images))]
    kept = [place for place, name in enumerate(names) if name in by_name]
    if not kept:
        raise UserError(
            f"{folder} has no condition for any of the {len(images):,} images of {images.root}: "
            f"their names, without endings, differ, such as {names[0]} and {next(iter(by_name))}"
        )
    unreadable = {_without_ending(name) for name in found.left_out}
    for place, name in enumerate(names):
        if name not in by_name:
            reason = UNREADABLE_CONDITION if name in unreadable else WITHOUT_CONDITION
            images.account.leave_out(images.files.raw(place), reason)
    matched = np.array([by_name[names[place]] for place in kept], np.int64)
    conditions = found.subset(matched)
    images.remarks.extend(_remarks(found, set(by_name) - set(names)))
    everything = images.subset(np.array(kept, np.int64))
    images.remarks.extend(_remark_on_shapes(everything, conditions))
    chosen = everything.with_used_classes()
    unused = [name for name in everything.class_names if name not in chosen.class_names]
    if unused:
        images.remarks.append(
            f"no image of {name_list(unused)} has a condition: these classes are not learned"
        )
    return ConditionedSet(chosen, conditions, _condition_of(conditions, kind))


def _remark_on_shapes(images: ImageSet, conditions: ImageSet) -> list[str]:
    """What to say where conditions have another shape than their images, so that each is cropped to
    other parts. Looks at some of the files.
    """
    others = []
    looked_at = range(0, len(images), max(1, len(images) // MOST_LOOKED_AT))
    for i in looked_at:
        paths = (images.root / images.name(i), conditions.root / conditions.name(i))
        try:
            sizes = [upright_size(path) for path in paths]
        except Exception:  # Pillow's plugins raise what they like
            continue
        if not _have_one_shape(*sizes):
            (height, width), (own_height, own_width) = sizes
            others.append(
                f"{conditions.name(i)} with {own_height},{own_width} pixels beside {height},{width}"
            )
    if not others:
        return []
    return [
        f"{len(others):,} of {len(looked_at):,} conditions have another shape than their images, "
        f"such as {others[0]}: each is cropped to its middle, and they do not lie on each other"
    ]


def _have_one_shape(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether one is the other, scaled and rounded to whole pixels."""
    (height, width), (own_height, own_width) = size, other
    rounding = (height + width + own_height + own_width) / 2
    return abs(height * own_width - width * own_height) <= rounding


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "does not exist"
        raise UserError(f"--condition_path {folder} {found}; name the folder of conditions")


def _probed_kind(folder: Path, size: tuple[int, int]) -> str:
    index = scan_folder(folder, False)
    values: set[int] = set()
    for place in np.linspace(0, len(index) - 1, min(PROBED, len(index))).astype(int):
        decoded = try_decode(os.path.join(index.root, index.names[place]), size, LABEL_MAP)
        if isinstance(decoded, NotALabelMap):
            return "picture"
        if not isinstance(decoded, Exception):
            values |= set(np.unique(decoded.pixels).tolist())
    return "labels" if 0 < len(values) <= MOST_LABELS else "picture"


def _check_guess(conditions: ImageSet) -> None:
    """Raise UserError where files that were taken for label maps have pictures among them."""
    for name in conditions.left_out:
        decoded = try_decode(str(conditions.root / name), conditions.image_size, LABEL_MAP)
        if isinstance(decoded, NotALabelMap):
            raise UserError(
                f"of the conditions in {conditions.root} many look like label maps, but {name} is "
                "none: --condition_kind picture takes all of them as they look, and labels leaves "
                "out what is no label map"
            )


def _name(images: ImageSet, place: int) -> str:
    """Without its ending, which may differ."""
    return _without_ending(readable(images.files.raw(place)))


def _without_ending(name: str) -> str:
    return composed(os.path.splitext(name)[0])


def _places_by_name(conditions: ImageSet) -> dict[str, int]:
    places: dict[str, int] = {}
    for place in range(len(conditions)):
        name = _name(conditions, place)
        if name in places:
            two = [conditions.name(places[name]), conditions.name(place)]
            raise UserError(
                f"{conditions.root} has two conditions of one name: {name_list(two)}; remove one"
            )
        places[name] = place
    return places


def _remarks(found: ImageSet, unused: set[str]) -> list[str]:
    remarks = [f"conditions: {remark}" for remark in found.remarks]
    broken = [f"{name} ({why})" for name, why in found.left_out.items()]
    if broken:
        remarks.append(
            f"{len(broken):,} conditions cannot be read, and their images are left out: "
            f"{name_list(broken[:SHOWN])}{', ...' if len(broken) > SHOWN else ''}"
        )
    if unused:
        names = sorted(unused)
        remarks.append(
            f"{len(names):,} conditions belong to no image: "
            f"{name_list(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''}"
        )
    return remarks


def _condition_of(conditions: ImageSet, kind: str) -> Condition:
    if kind != "labels":
        return PictureCondition(conditions.channels)
    values: set[int] = set()
    for i in range(len(conditions)):
        item = conditions[i]
        if isinstance(item, ReadError):
            raise item
        values |= set(np.unique(item[0].numpy()).tolist())
    if len(values) > MOST_LABELS:
        raise UserError(
            f"the label maps in {conditions.root} have {len(values)} different labels; "
            f"{MOST_LABELS} are the most. Where they are pictures: --condition_kind picture"
        )
    return LabelCondition(sorted(values))


# --- For images that are to be made ---


def condition_files(path: Path) -> list[Path]:
    """A file, or the images of a folder in their order. Raises UserError where there is none."""
    if path.is_dir():
        index = scan_folder(path, False)
        if len(index) == 0:
            raise UserError(f"{path} holds no images for --condition")
        return [index.root / index.names[place] for place in range(len(index))]
    if not path.exists():
        raise UserError(f"--condition {path} does not exist")
    return [path]


def read_condition(
    source: Path | bytes, name: str, condition: Condition, size: tuple[int, int]
) -> Tensor:
    """A condition (P,H,W) uint8, as in training, of a file or what is in one; `name` stands for it
    in messages. Raises UserError where it cannot be read, or has labels that the network did not
    learn.
    """
    is_map = isinstance(condition, LabelCondition)
    mode = LABEL_MAP if is_map else mode_of(condition.planes)
    opened = io.BytesIO(source) if isinstance(source, bytes) else str(source)
    decoded = try_decode(opened, size, mode)
    if isinstance(decoded, Exception):
        why = why_unreadable(decoded, name)
        raise UserError(f"the condition {name} cannot be read: {why}")
    pixels = in_mode(decoded.pixels, mode)
    if isinstance(condition, LabelCondition):
        unknown = sorted(set(np.unique(pixels).tolist()) - set(condition.values))
        if unknown:
            known = name_list(map(str, condition.values))
            raise UserError(
                f"{name} has the label {unknown[0]}; the network learned the labels {known}"
            )
    planes = pixels[..., : condition.planes].transpose(2, 0, 1)
    return torch.from_numpy(planes.copy())
