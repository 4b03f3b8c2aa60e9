"""From a folder of images to the batches of each training step."""

import hashlib
import itertools
import os
import signal
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from tqdm import tqdm

from utils.errors import UserError, name_list
from utils.images import SUFFIXES, read_image


@dataclass
class ImageSet(Dataset):
    """A folder of images at one size. Item i is (pixels (C,H,W) uint8, label, i)."""

    root: Path
    image_size: tuple[int, int]
    mode: str  # "L": grey throughout, one channel; "RGB": three
    files: list[str]  # relative to root
    labels: list[int]
    class_names: list[str]  # empty for an unconditional set
    checksums: list[int]  # of the pixels of each image
    left_out: dict[str, str] = field(default_factory=dict)  # file or folder: why
    pixels: np.ndarray | None = None  # (N,H,W,C) uint8, or None where the set is too large to keep

    @property
    def channels(self) -> int:
        return 1 if self.mode == "L" else 3

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> tuple[Tensor, int, int]:
        image = self._read(i) if self.pixels is None else self.pixels[i]
        return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))), self.labels[i], i

    def _read(self, i: int) -> np.ndarray:
        return read_image(self.root / self.files[i], self.image_size)[..., : self.channels]

    def metadata(self) -> dict:
        """What a checkpoint keeps of the set."""
        about = {
            "image_size": list(self.image_size),
            "mode": self.mode,
            "class_names": self.class_names,
        }
        return about | {"images": len(self), "fingerprint": self.fingerprint()}

    def fingerprint(self) -> str:
        """A digest of labels and pixels: tells whether a resumed run sees the same data."""
        everything = (self.class_names, self.image_size, self.mode, self.labels, self.checksums)
        return hashlib.sha256(repr(everything).encode(errors="surrogateescape")).hexdigest()[:16]


def find_images(folder: Path) -> list[Path]:
    """All image files below the folder, sorted, without hidden files and folders. OSError where one
    is unreadable.
    """

    def fail(error: OSError):
        raise error

    found, seen = [], set()
    for here, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        if (real := os.path.realpath(here)) in seen:  # a link that leads back up
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [
            Path(here, n)
            for n in names
            if not n.startswith(".") and Path(n).suffix.lower() in SUFFIXES
        ]
    return sorted(found)


def load_image_set(
    root: Path,
    image_size: tuple[int, int],
    conditional: bool,
    quiet: bool = False,
    cache_bytes: int = 2**31,
) -> ImageSet:
    """Index and check every image below `root`: decode each once, name and leave out the broken.
    UserError without any.

    Conditional: the folders in root are the classes, labels follow their sorted names. Otherwise
    everything below root is one set. Decoded sets up to `cache_bytes` stay in memory.
    """
    try:
        groups = _class_groups(root) if conditional else {"": find_images(root)}
    except OSError as error:
        raise UserError(
            f"dataset_path: the folder {error.filename} cannot be read: {error.strerror}"
        ) from None
    candidates = [(file, name) for name, files in groups.items() for file in files]
    if not candidates:
        suffixes = " ".join(sorted(SUFFIXES))
        raise UserError(
            f"dataset_path {root} holds no images; files with these endings are looked for: {suffixes}"
        )

    good, checksums, left_out = (
        [],
        [],
        {f"{name}/": "no images in it" for name, files in groups.items() if not files},
    )
    keep = len(candidates) * image_size[0] * image_size[1] * 3 <= cache_bytes
    images, grey = [], True
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        results = pool.map(lambda item: _try_read(item[0], image_size), candidates)
        progress = tqdm(
            results, "reading images", len(candidates), disable=quiet, leave=False, delay=2
        )
        for (file, name), result in zip(candidates, progress, strict=True):
            if isinstance(result, str):
                left_out[str(file.relative_to(root))] = result
                continue
            good.append((str(file.relative_to(root)), name))
            checksums.append(zlib.crc32(result))
            grey = grey and bool((result[..., :1] == result).all())
            if keep:
                images.append(result[..., :1].copy() if grey else result)
    if not good:
        file, why = next(iter(left_out.items()))
        raise UserError(
            f"none of the {len(candidates)} images in {root} can be read; the first is {file}: {why}"
        )
    class_names = sorted({name for _, name in good}) if conditional else []
    pixels, channels = None, 1 if grey else 3
    if keep:
        pixels = np.stack([np.broadcast_to(im, (*image_size, 3))[..., :channels] for im in images])
    files, mode = [file for file, _ in good], "L" if grey else "RGB"
    labels = [class_names.index(name) if conditional else 0 for _, name in good]
    return ImageSet(root, image_size, mode, files, labels, class_names, checksums, left_out, pixels)


def _class_groups(root: Path) -> dict[str, list[Path]]:
    folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not folders:
        count = len(find_images(root))
        raise UserError(
            f"{root} has no class folders ({count} images lie in it): sort them, or --conditional False"
        )
    readable = [
        os.fsencode(folder.name).decode("utf-8", "backslashreplace") for folder in folders
    ]  # if not UTF-8
    return {name: find_images(folder) for name, folder in zip(readable, folders, strict=True)}


def _try_read(file: Path, image_size: tuple[int, int]) -> np.ndarray | str:
    """The pixels, or why there are none. Pillow's plugins raise what they like on damaged files."""
    try:
        return read_image(file, image_size)
    except Exception as error:
        return str(error).replace(str(file), file.name) or type(error).__name__


class StepSampler(DistributedSampler):
    """The images of this process for training steps start_step..total_steps-1.

    The global order of an epoch is a permutation that depends on (seed, epoch) alone, filled up
    from its own beginning to whole global batches; the processes take turns in it. So step k holds
    the same images whatever the number of processes, workers and restarts, and no position needs to
    be saved. A global batch is what one optimizer step sees.
    """

    def __init__(
        self,
        dataset,
        global_batch: int,
        seed: int,
        start_step: int,
        total_steps: int,
        rank: int = 0,
        world_size: int = 1,
    ):
        super().__init__(dataset, num_replicas=world_size, rank=rank, shuffle=True, seed=seed)
        self.batch_size = global_batch // world_size  # of this process
        self.steps, self.start_step = total_steps - start_step, start_step
        self.steps_per_epoch = steps_per_epoch(len(dataset), global_batch)
        self.num_samples = self.steps_per_epoch * self.batch_size
        self.total_size = self.num_samples * world_size

    def __iter__(self) -> Iterator[int]:
        def indices():
            first_epoch, first_step = divmod(self.start_step, self.steps_per_epoch)
            for epoch in itertools.count(first_epoch):
                self.set_epoch(epoch)
                skip = first_step * self.batch_size if epoch == first_epoch else 0
                yield from itertools.islice(super(StepSampler, self).__iter__(), skip, None)

        return itertools.islice(indices(), len(self))

    def __len__(self) -> int:
        return self.steps * self.batch_size


def steps_per_epoch(images: int, global_batch: int) -> int:
    return -(-images // global_batch)


def build_loader(
    dataset: ImageSet, sampler: StepSampler, micro_batch: int, num_workers: int, pin: bool
) -> DataLoader:
    """Micro-batches (pixels (B,C,H,W) uint8, labels (B,), indices (B,)) in the sampler's order.

    num_workers -1 decides: none for a set that lies decoded in memory, else one per core, 8 at
    most.
    """
    if num_workers < 0:
        num_workers = 0 if dataset.pixels is not None else min(8, os.cpu_count() or 1)
    options = {"num_workers": num_workers, "pin_memory": pin, "worker_init_fn": _ignore_signals}
    return DataLoader(dataset, micro_batch, sampler=sampler, **options)


def _ignore_signals(_worker: int) -> None:
    """Ctrl-C reaches the workers too; they end with the training process, after it has saved."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def describe(dataset: ImageSet) -> list[str]:
    """What was found, in lines for the plan."""
    size, mode = ",".join(map(str, dataset.image_size)), "grey" if dataset.mode == "L" else "RGB"
    lines = [f"images      {len(dataset):,} at {size}, {mode}, from {dataset.root}"]
    if dataset.class_names:
        lines.append(
            f"classes     {len(dataset.class_names)}: {name_list(dataset.class_names, 20)}"
        )
    if dataset.left_out:
        reasons = [f"{file} ({why})" for file, why in dataset.left_out.items()]
        lines.append(f"left out    {len(reasons)}: {name_list(reasons)}")
    return lines
