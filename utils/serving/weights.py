"""The weights that are served: found in folders, known to clients by name, loaded when needed.

A client never sends a path, only a name, and a name is looked up in a table: nothing that it sends
ever reaches the file system.
"""

import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import nn

from model.codecs import Codec, JointCodec, LatentCodec, build_codec
from model.condition import Condition, build_condition
from utils.devices import Precision
from utils.errors import UserError
from utils.guidance_choice import Guidable, Guidance
from utils.runs.checkpoint import Checkpoint
from utils.runs.files import read_metadata
from utils.runs.inference import guide_network, inference_network, network_without_weights
from utils.text import composed, printable
from utils.upscaling import Upscaler

DIFFUSION = "diffusion"
UPSCALER = "upscaler"
SERVED_KINDS = (DIFFUSION, UPSCALER)

MAIN_FILE = "ema_last"  # the file of a run that its name stands for
# Files of a run that say nothing which another one does not.
LEFT_OUT = ("ckpt_last", "ckpt_prev", "ckpt_best")
DEPTH = 2  # how many folders below those named weights are looked for
MOST_WEIGHTS = 1000
LEAST_SECONDS_BETWEEN_SCANS = 1.0

logger = logging.getLogger("serve")


@dataclass(frozen=True)
class Weight:
    """A file of weights, as its metadata describes it. `name` is all that clients see of it."""

    name: str
    kind: str
    path: Path
    stem: str  # of the file
    run: str | None  # the run folder that it lies in; None: in the folder that is served itself
    stamp: tuple[int, int, int]  # which state of the file this is about
    classes: tuple[str, ...]  # empty: trained without
    image_size: tuple[int, int]  # (H, W) of training
    mode: str  # one of image_facts.CHANNELS
    downsample_factor: int  # what the sides of an image must be divisible by
    sampler: str = ""  # as the checkpoint says; of diffusions, as the next four
    sample_steps: int | None = None
    timestep_spacing: str | None = None
    has_guidance: bool = False
    has_guide: bool = False  # of autoguidance
    recommended_guidance: Guidance | None = None
    numbers: int = 0  # that describe an image beside its labels
    condition: Condition | None = field(default=None, compare=False)  # the images that it needs
    makes_masks: bool = False  # a label map with each image
    noise_steps: int = 0
    scale: int | None = None  # of an upscaler
    has_ema: bool = True
    has_raw: bool = False

    @property
    def can_be_told(self) -> bool:
        """Whether anything leads its images: classes, numbers, or images that steer."""
        return bool(self.classes or self.numbers) or self.condition is not None

    @property
    def is_guided(self) -> bool:
        """Whether `cfg_scale` may be other than 1."""
        return self.has_guidance and self.can_be_told

    @property
    def guidable(self) -> Guidable:
        """What leads its images where nobody says what."""
        return Guidable(self.has_guide, self.is_guided, self.can_be_told, self.recommended_guidance)

    @property
    def is_diffusion(self) -> bool:
        return self.kind == DIFFUSION


class WeightStore:
    """The weights below some folders. Threads may use it."""

    def __init__(self, folders: Sequence[Path]):
        self.folders = list(folders)
        self._lock = threading.Lock()
        self._weights: dict[str, Weight] = {}
        self._looked_at: dict[Path, Weight] = {}  # each by its own name, whatever others are called
        self._last_scan = 0.0
        self._refused: dict[Path, tuple[int, int, int]] = {}  # files that are not served
        self.scan()

    # --- Which there are ---

    def scan(self) -> list[Weight]:
        """Look for weights again: new ones appear, and those whose file has gone disappear."""
        with self._lock:
            return self._scan()

    def _scan(self) -> list[Weight]:
        """The same, by the thread that holds the lock."""
        known, self._looked_at = self._looked_at, {}
        found: dict[str, Weight] = {}
        for folder in self.folders:
            for file in _weight_files(folder):
                weight = self._look_at(file, folder, known.get(file))
                if weight is None:
                    continue
                self._looked_at[file] = weight
                if weight.name in found:  # such as a run that is called like a shipped weight
                    weight = replace(weight, name=f"{folder.name}:{weight.name}")
                if weight.name in found:
                    logger.warning("two weights are named %s; one is left out", weight.name)
                    continue
                found[weight.name] = weight
        self._weights = dict(sorted(found.items()))
        self._last_scan = time.monotonic()
        return list(self._weights.values())

    def scan_if_changed(self) -> None:
        """Look again if files have come, gone or changed. Cheap where nothing has, and at most
        once in a second, whatever clients ask for; nobody waits while another thread looks.
        """
        if not self.may_have_changed or not self._lock.acquire(blocking=False):
            return
        try:
            self._scan()
        finally:
            self._lock.release()

    @property
    def may_have_changed(self) -> bool:
        """Whether it is time to look again."""
        return time.monotonic() - self._last_scan >= LEAST_SECONDS_BETWEEN_SCANS

    def all(self, kind: str | None = None) -> list[Weight]:
        """Those that are known, by name."""
        return [weight for weight in self._weights.values() if kind in (None, weight.kind)]

    def find(self, name: str) -> Weight | None:
        """The weight of this name, or of a run and a file in it, "run:ema_last"."""
        weight = self._weights.get(name)
        if weight is None and name.endswith(f":{MAIN_FILE}"):
            weight = self._weights.get(name.removesuffix(f":{MAIN_FILE}"))
        return weight

    def find_by_stem(self, stem: str) -> Weight | None:
        """The one diffusion whose file has this name without its ending; None: none or several."""
        found = [weight for weight in self.all(DIFFUSION) if weight.stem == stem]
        return found[0] if len(found) == 1 else None

    def default(self) -> Weight | None:
        """The weight for who names none: that of the newest run, else the first. One that needs
        images which steer only where there is no other.
        """
        diffusions = self.all(DIFFUSION)
        if not diffusions:
            return None
        diffusions = [weight for weight in diffusions if not weight.condition] or diffusions
        of_runs = [weight for weight in diffusions if weight.run and weight.stem == MAIN_FILE]
        if of_runs:
            return max(of_runs, key=lambda weight: weight.stamp)
        return diffusions[0]

    def _look_at(self, file: Path, folder: Path, known: Weight | None) -> Weight | None:
        """The weight in a file, read only if it is new or has changed; None: it is not served."""
        try:
            stamp = _stamp(file)
        except OSError:
            return None  # it has just gone
        if known is not None and known.stamp == stamp:
            return known
        if self._refused.get(file) == stamp:
            return None
        try:
            weight = _described(file, folder, stamp)
        except UserError as error:
            logger.warning("not served: %s", error)
            weight = None
        if weight is None:
            self._refused[file] = stamp
        return weight


# --- In memory ---


@dataclass
class LoadedDiffusion:
    """What a diffusion's job computes with, on the device, in evaluation mode."""

    weight: Weight
    network: nn.Module
    codec: Codec
    process: dict  # the diffusion's config
    channels: int  # of the images
    null_label: int | None  # None: trained without classes
    guide: nn.Module | None = None  # a worse network, of autoguidance
    condition: Condition | None = None  # how the network takes images that steer


def load_diffusion(weight: Weight, use_ema: bool, precision: Precision) -> LoadedDiffusion:
    """Read it from its file. Raises UserError where that has become unusable."""
    checkpoint = Checkpoint.read(weight.path)
    checkpoint.check_kind(DIFFUSION)
    network = inference_network(checkpoint, use_ema)
    try:
        codec = build_codec(checkpoint.config.get("codec", {}), checkpoint.codec)
    except (TypeError, ValueError) as error:
        raise UserError(f"{checkpoint.source}: {error}") from None
    codec = codec.to(precision.device)
    condition = _condition_of(checkpoint)
    if condition is not None:
        condition.use(codec)
    return LoadedDiffusion(
        weight=weight,
        network=precision.place_for_calls(network),
        codec=codec,
        process=checkpoint.config["diffusion"],
        channels=checkpoint.channels,
        null_label=checkpoint.config["network"].get("num_classes"),
        guide=_guide(checkpoint, precision),
        condition=condition,
    )


def _guide(checkpoint: Checkpoint, precision: Precision) -> nn.Module | None:
    if checkpoint.guide is None:
        return None
    return precision.place_for_calls(guide_network(checkpoint))


def load_upscaler(weight: Weight, precision: Precision) -> Upscaler:
    """Read it from its file. Raises UserError where that has become unusable."""
    return Upscaler.from_checkpoint(Checkpoint.read(weight.path), precision)


# --- Files ---


def _weight_files(folder: Path) -> Iterator[Path]:
    """The files of weights below a folder, in order. No link leads out of it."""
    count = 0
    for parent, folders, files in os.walk(folder):
        depth = len(Path(parent).relative_to(folder).parts)
        folders.sort()
        if depth >= DEPTH:
            folders.clear()
        for name in sorted(files):
            file = Path(parent, name)
            if file.suffix != ".pt" or file.stem in LEFT_OUT or name.startswith("."):
                continue
            if not file.resolve().is_relative_to(folder.resolve()):
                logger.warning("not served: %s is a link that leads elsewhere", file)
                continue
            count += 1
            if count > MOST_WEIGHTS:
                logger.warning("only the first %d weights in %s are served", MOST_WEIGHTS, folder)
                return
            yield file


def _stamp(file: Path) -> tuple[int, int, int]:
    facts = file.stat()
    return (facts.st_mtime_ns, facts.st_size, facts.st_ino)


def name_of(file: Path, folder: Path) -> str:
    """demo.pt -> demo; cifar/ema_last.pt -> cifar; cifar/ema_best.pt -> cifar:ema_best."""
    parts = file.relative_to(folder).with_suffix("").parts
    if len(parts) > 1 and parts[-1] == MAIN_FILE:
        parts = parts[:-1]
    return composed(printable(":".join(parts)))


def _described(file: Path, folder: Path, stamp: tuple[int, int, int]) -> Weight | None:
    """What a file's metadata says; None for kinds that are not served. Raises UserError."""
    checkpoint = Checkpoint.parse(read_metadata(file), file)
    if checkpoint.kind not in SERVED_KINDS:
        return None
    network = network_without_weights(checkpoint.config["network"], file)
    is_direct_child = file.parent == folder
    is_diffusion = checkpoint.kind == DIFFUSION
    return Weight(
        name=name_of(file, folder),
        kind=checkpoint.kind,
        path=file,
        stem=file.stem,
        run=None if is_direct_child else printable(file.parent.name),
        stamp=stamp,
        classes=tuple(checkpoint.class_names) if is_diffusion else (),
        image_size=checkpoint.image_size,
        mode=checkpoint.config["data"]["mode"],
        downsample_factor=_downsample_factor(checkpoint, network),
        sampler=checkpoint.sampler if is_diffusion else "",
        sample_steps=checkpoint.sample_steps if is_diffusion else None,
        timestep_spacing=checkpoint.timestep_spacing if is_diffusion else None,
        numbers=len(checkpoint.numbers),
        condition=_condition_of(checkpoint) if is_diffusion else None,
        makes_masks=checkpoint.config.get("codec", {}).get("name") == JointCodec.name,
        has_guidance=checkpoint.guidance_was_trained if is_diffusion else False,
        has_guide=checkpoint.guide is not None,
        recommended_guidance=checkpoint.recommended_guidance if is_diffusion else None,
        noise_steps=checkpoint.config["diffusion"]["noise_steps"] if is_diffusion else 0,
        scale=getattr(network, "scale", None),
        has_ema=checkpoint.ema is not None,
        has_raw=checkpoint.network is not None,
    )


def _condition_of(checkpoint: Checkpoint) -> Condition | None:
    """How the network takes images that steer, where it does. Raises UserError."""
    if checkpoint.condition is None:
        return None
    try:
        return build_condition(checkpoint.condition)
    except ValueError as error:
        raise UserError(f"{checkpoint.source}: {error}") from None


def _downsample_factor(checkpoint: Checkpoint, network: nn.Module) -> int:
    """What the sides of an image must be divisible by, the autoencoder of latents included."""
    factor = getattr(network, "downsample_factor", 1)
    codec = checkpoint.config.get("codec", {})
    if codec.get("name") != LatentCodec.name:
        return factor
    autoencoder = network_without_weights(codec["network"], checkpoint.source)
    return factor * getattr(autoencoder, "downsample_factor", 1)
