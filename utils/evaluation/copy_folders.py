"""Two folders -> which images of the one are copies of images of the other.

Both are read at one size and in one mode, as training reads images.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from model.metrics.copy_distance import WORKING_SIDE
from utils.console import Progress
from utils.data import ImageSet, load_image_set
from utils.data.decode import Decoded
from utils.data.flat import readable
from utils.data.reading import AHEAD_PER_THREAD, ahead, is_grey
from utils.errors import UserError, name_list
from utils.evaluation.copies import Features, find_copies, read_at_once
from utils.evaluation.copy_report import CopyReport
from utils.evaluation.extract import Reader, feature_set, threads_for, why_unreadable
from utils.evaluation.feature_cache import FeatureCache
from utils.evaluation.features import FeatureNetwork
from utils.evaluation.image_folder import ImageFolder
from utils.image_facts import CHANNELS, COLOURS

SIZES_NAMED = 3


@dataclass
class _Seen:
    """What the generated images are like."""

    places: list[int] = field(default_factory=list)  # of the readable ones
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    grey: int = 0
    broken: dict[str, str] = field(default_factory=dict)

    @property
    def mode(self) -> str:
        return "L" if self.grey == len(self.places) else "RGB"


def copies_of_folder(
    train: ImageFolder,
    generated: ImageFolder,
    image_size: tuple[int, int] | None,
    network: FeatureNetwork | None,
    batch_size: int,
) -> tuple[CopyReport, list[str]]:
    """The report, and remarks on what was not as one might expect.

    `image_size` None: that of the generated images, which then must all have one. `network`, if
    any, gives a second opinion on images larger than the copy test looks at. Raises UserError
    where there is nothing to compare.
    """
    seen = _look_at(generated)
    if not seen.places:
        raise UserError(f"none of the images in {generated.root} can be read")
    size = image_size or _only_size(generated, seen)
    remarks = []
    if seen.broken:
        broken = [f"{name} ({why})" for name, why in seen.broken.items()]
        remarks.append(f"copies: left out of GENERATED: {name_list(broken)}")
    training = load_image_set(train.root, size, conditional=False)
    if training.mode != seen.mode:
        theirs, ours = COLOURS[training.mode], COLOURS[seen.mode]
        remarks.append(
            f"copies: the images in {train.root} are {theirs} and the generated ones {ours}: they "
            f"are compared in {ours}"
        )
        training = load_image_set(train.root, size, conditional=False, mode=seen.mode)
    if training.left_out:
        remarks.append(f"copies: left out of TRAIN: {name_list(training.left_out)}")

    reader = Reader(size, seen.mode)
    features = None
    if network is not None and max(size) > WORKING_SIDE:
        features, remark = _features(train, training, generated, seen, network, reader, batch_size)
        remarks += [remark] if remark else []
    names = [generated.shown(place) for place in seen.places]
    batches = _batches(generated, seen, reader, size)
    report = find_copies(training, batches, names, features)
    if features is not None and report.features is None:
        remarks.append(
            f"copies: features say nothing here: all images in {train.root} are near copies of "
            "each other, or there is one alone"
        )
    return report, remarks


def _look_at(folder: ImageFolder) -> _Seen:
    """Decode each image once, to know sizes and colours before anything is compared."""
    seen = _Seen()
    reader = Reader()
    with Progress(len(folder), title="looking at images", unit="image", leave=False) as progress:
        threads = threads_for(folder, np.arange(len(folder)), reader, AHEAD_PER_THREAD)
        images = ahead(lambda place: reader.read(folder.path(place)), range(len(folder)), threads)
        for place, image in enumerate(images):
            progress.update()
            if not isinstance(image, Decoded):
                seen.broken[folder.shown(place)] = why_unreadable(image, folder.names[place])
                continue
            seen.places.append(place)
            seen.sizes[image.own_size] += 1
            seen.grey += is_grey(image.pixels)
    return seen


def _only_size(folder: ImageFolder, seen: _Seen) -> tuple[int, int]:
    if len(seen.sizes) == 1:
        return next(iter(seen.sizes))
    some = [f"{height}x{width}" for (height, width), _ in seen.sizes.most_common(SIZES_NAMED)]
    raise UserError(
        f"--copies compares images at one size, but those in {folder.root} have "
        f"{len(seen.sizes):,} ({', '.join(some)}, ...): pass --image_size"
    )


def _batches(
    folder: ImageFolder, seen: _Seen, reader: Reader, size: tuple[int, int]
) -> Iterator[Tensor]:
    """The readable images in order, (B,C,H,W) uint8. UserError for one that is gone meanwhile."""
    channels = CHANNELS[reader.mode]
    at_once = read_at_once(channels, size)
    waiting: list[np.ndarray] = []
    for place, image in zip(
        seen.places, ahead(lambda place: reader.read(folder.path(place)), seen.places), strict=True
    ):
        if not isinstance(image, Decoded):
            raise UserError(f"{folder.path(place)} can no longer be read: {image}")
        waiting.append(image.pixels[..., :channels].transpose(2, 0, 1))
        if len(waiting) == at_once:
            yield torch.from_numpy(np.stack(waiting))
            waiting = []
    if waiting:
        yield torch.from_numpy(np.stack(waiting))


def _features(
    train: ImageFolder,
    training: ImageSet,
    generated: ImageFolder,
    seen: _Seen,
    network: FeatureNetwork,
    reader: Reader,
    batch_size: int,
) -> tuple[Features | None, str]:
    """The features of both, in the order of the pixels that are compared; or why there are none."""
    place_of = {readable(train.names.raw(place)): place for place in range(len(train))}
    names = [readable(training.files.raw(i)) for i in range(len(training))]
    if any(name not in place_of for name in names):
        return None, "copies: the features of TRAIN are left out: its files have changed meanwhile"
    places = np.array([place_of[name] for name in names])
    of_training = feature_set(train, places, network, reader, batch_size, FeatureCache())
    readable_places = np.array(seen.places)
    of_generated = feature_set(generated, readable_places, network, reader, batch_size)
    if len(of_training.places) < len(places) or len(of_generated.places) < len(readable_places):
        return None, "copies: the features are left out: some files can no longer be read"
    return Features(network.label, of_training.features, of_generated.features), ""
