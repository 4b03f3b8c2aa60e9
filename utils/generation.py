"""From a checkpoint to images: shared by generate.py, evaluate.py and previews."""

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from model.codecs import Codec, JointCodec, PixelCodec, build_codec
from model.condition import Condition, build_condition
from model.diffusion import GaussianDiffusion
from model.editing import FillIn
from model.guidance import Autoguided, Label, needs_null, null_of
from model.networks import check_image_size
from model.samplers import BaseDiffusion, Trajectory, build_sampler, sampler_class
from model.samplers.base import evaluation_mode
from utils.call_memory import memory_of_row
from utils.devices import Precision
from utils.errors import UserError, advice_on_memory, name_list
from utils.free_memory import SHARE_OF_MEMORY, free_memory
from utils.guidance_choice import Guidable, Guidance
from utils.runs.checkpoint import Checkpoint
from utils.runs.inference import guide_network, inference_network
from utils.runs.names import is_of_a_run

# What helps where the images of a batch do not fit into memory.
SMALLER_BATCH = "a smaller --batch_size gives the same images"
SMALLER_IMAGES = "smaller images need less"

# A first time step further from T-1 than this share of T leaves a visible step of noise out.
LARGEST_GAP = 0.05


@dataclass(frozen=True)
class Sampling:
    """How images are made: what is free to choose after training."""

    sampler: str = "ddim"
    sample_steps: int | None = None  # None: as many as are usual with the sampler
    timestep_spacing: str | None = None  # None: the usual one
    eta: float = 0.0  # ddim's
    clip_sample: bool = True
    cfg_scale: float = 1.0
    cfg_interval: tuple[float, float] | None = None  # of sigma / alpha; None: guided everywhere
    guide_scale: float = 1.0  # of autoguidance by the guide that the weights hold; 1: none
    guide_labels: bool = True  # whether the guide is told the labels

    @classmethod
    def of_checkpoint(
        cls,
        checkpoint: Checkpoint,
        sampler: str | None,  # None: as the checkpoint says; and so the next two
        sample_steps: int | None,
        timestep_spacing: str | None,
        eta: float,
        clip_sample: bool,
        cfg_scale: float | None,  # None: the usual one where guidance was trained
        cfg_interval: tuple[float, float] | None = None,
        guide_scale: float | None = None,  # None: the usual one where there is a guide
        guide: Checkpoint | None = None,  # instead of the one that the checkpoint holds
        guide_labels: bool | None = None,  # None: as the checkpoint says
    ) -> "Sampling":
        """What is not given is as the checkpoint says; its steps and spacing belong to its sampler.

        An image is guided in one way unless both are asked for. Raises UserError for guidance that
        was not trained, or a guide that is not there.
        """
        guidable = Guidable(
            has_guide=guide is not None or checkpoint.guide is not None,
            was_trained=checkpoint.guidance_was_trained and checkpoint.can_be_told,
            can_be_told=checkpoint.can_be_told,
            recommended=checkpoint.recommended_guidance,
        )
        guidance = guidable.choose(cfg_scale, guide_scale, guide_labels, guide is not None)
        _check_guidance(checkpoint, guidable, guidance, guide_labels)
        sampler = sampler or checkpoint.sampler
        if sampler == checkpoint.sampler:
            sample_steps = checkpoint.sample_steps if sample_steps is None else sample_steps
            timestep_spacing = timestep_spacing or checkpoint.timestep_spacing
        like = cls(sampler, sample_steps, timestep_spacing, eta, clip_sample)
        return replace(like.guided(guidance), cfg_interval=cfg_interval)

    @property
    def guidance(self) -> Guidance:
        """Its part about guidance."""
        return Guidance(self.cfg_scale, self.guide_scale, self.guide_labels)

    def guided(self, guidance: Guidance) -> "Sampling":
        """The same with this guidance."""
        return replace(
            self,
            cfg_scale=guidance.cfg_scale,
            guide_scale=guidance.guide_scale,
            guide_labels=guidance.guide_labels,
        )

    def steps(self, noise_steps: int) -> int:
        """The number of sampling steps for a network trained with so many."""
        if self.sample_steps is not None:
            return self.sample_steps
        usual = sampler_class(self.sampler).usual_steps
        return noise_steps if usual is None else min(usual, noise_steps)

    @property
    def adds_noise(self) -> bool:
        """Whether steps add noise of the images' seeds."""
        return sampler_class(self.sampler).draws_noise or (self.sampler == "ddim" and self.eta > 0)

    @property
    def spacing(self) -> str:
        """Which time steps are visited."""
        return self.timestep_spacing or sampler_class(self.sampler).usual_spacing

    def remarks(self) -> list[str]:
        """On what was asked for and does nothing."""
        found = []
        if self.eta != 0 and self.sampler != "ddim":
            found.append(f"--eta {self.eta:g} has no effect: it is for --sample ddim")
        if self.cfg_interval is not None and not needs_null(self.cfg_scale):
            found.append("--cfg_interval has no effect: it is for --cfg_scale other than 0 and 1")
        return found

    def build(
        self, process: dict, device: torch.device | str, is_bounded: bool = True
    ) -> BaseDiffusion:
        """The sampler, for a network trained under a process (a diffusion's config).

        `is_bounded`: whether what it makes lies in [-1, 1], so that it may be clipped.

        Raises ValueError or TypeError for values that do not fit.
        """
        return build_sampler(
            self.sampler,
            process,
            eta=self.eta,
            sample_steps=self.steps(process["noise_steps"]),
            timestep_spacing=self.spacing,
            clip_sample=self.clip_sample and is_bounded,
            device=device,
        )


def empty_interval(sampling: Sampling, sampler: BaseDiffusion) -> list[str]:
    """A remark where no network call lies within the interval of guidance."""
    if sampling.cfg_interval is None or not needs_null(sampling.cfg_scale):
        return []  # without it, `Sampling.remarks` says so
    if sampler.guided_calls(sampling.cfg_interval) > 0:
        return []
    low, high = sampling.cfg_interval
    return [f"--cfg_interval {low:g},{high:g} has no effect: no step lies within it"]


def idle_guidance(
    checkpoint: Checkpoint, cfg_scale: float | None, guide_labels: bool | None
) -> list[str]:
    """Remarks on guidance that was asked for, where nothing can be told to the network. (A guide
    sees the images that steer, whether it is told labels or not.)
    """
    has_none = f"has no effect: {checkpoint.source} was trained without classes"
    remarks = []
    if cfg_scale not in (None, 1) and not checkpoint.can_be_told:
        remarks.append(f"--cfg_scale {cfg_scale:g} {has_none}")
    if guide_labels is not None and not (checkpoint.class_names or checkpoint.numbers):
        remarks.append(f"--guide_labels {guide_labels} {has_none}")
    return remarks


def idle_guide(path: Path | None, sampling: Sampling) -> list[str]:
    """A remark on a guide that was given, where nothing is guided by it."""
    if path is None or sampling.guide_scale != 1:
        return []
    return [f"--guide_path {path} has no effect: the images are made with --guide_scale 1"]


def _check_guidance(
    checkpoint: Checkpoint, guidable: Guidable, guidance: Guidance, guide_labels: bool | None
) -> None:
    """Raise UserError for what the weights cannot do; guide_labels: as it was asked for."""
    if guidance.guide_scale != 1 and not guidable.has_guide:
        raise UserError(
            f"{checkpoint.source} holds no guide for --guide_scale; generate.py and evaluate.py "
            "take one by --guide_path"
        )
    if guide_labels is not None and guidance.guide_scale == 1:
        raise UserError("--guide_labels is about a guide, and none leads these images")
    if checkpoint.guidance_was_trained or not checkpoint.can_be_told:
        return
    dropped = "--label_drop" if checkpoint.condition is None else "--condition_drop"
    if guidance.cfg_scale != 1:
        raise UserError(
            f"{checkpoint.source} was trained with {dropped} 0, without guidance: add --cfg_scale 1"
        )
    if not guidance.guide_labels:
        raise UserError(
            f"{checkpoint.source} was trained with {dropped} 0, so that its guide needs labels: "
            "leave --guide_labels out"
        )


@dataclass
class Beginning:
    """Where images start that do not start from the noise of their seeds."""

    x_T: Tensor | None  # (B,C,H,W): at the noise level of the first call; None: of the seeds
    first_call: int = 0
    change: FillIn | None = None  # between steps


class EditOfImages(Protocol):
    """See `utils.editing`."""

    def begin(self, generator: "ImageGenerator", seeds: Sequence[int]) -> Beginning: ...
    def finish(self, pixels: Tensor) -> Tensor: ...


@dataclass
class Denoised:
    """Images after one network call of their sampling."""

    calls_done: int
    trajectory: Trajectory
    x0: Tensor  # (B,C,H,W): the current estimate

    @property
    def is_last(self) -> bool:
        return self.trajectory.all_done


def not_finite(last: Denoised, seeds: Sequence[int]) -> list[int]:
    """The seeds of finished images that have infinite numbers, or such that are none."""
    is_finite = last.trajectory.x.isfinite().flatten(1).all(dim=1).tolist()
    return [seed for seed, is_good in zip(seeds, is_finite, strict=True) if not is_good]


def not_finite_in_words(seeds: Sequence[int]) -> str:
    named = name_list(map(str, seeds))
    return (
        f"the network gave numbers that are not finite, for the seeds {named}: "
        "where it computes in 16 bits, --amp False may help; otherwise the weights, or the numbers "
        "that were asked for, go too far"
    )


class ImageGenerator:
    """Turns seeds and labels into images, with one network and one sampler.

    An image is a function of its own seed and label, whatever batch it is in.
    """

    def __init__(
        self,
        network: nn.Module,  # on the sampler's device
        sampler: BaseDiffusion,
        codec: Codec,
        image_size: tuple[int, int],
        channels: int,
        precision: Precision,
        cfg_scale: float = 1.0,
        cfg_interval: tuple[float, float] | None = None,
        condition: Condition | None = None,
    ):
        self.network = network
        self.sampler = sampler
        self.codec = codec
        self.image_size = image_size
        self.channels = channels
        self.precision = precision
        self.cfg_scale = cfg_scale
        self.cfg_interval = cfg_interval
        self.condition = condition

    @classmethod
    def from_checkpoint(
        cls,
        checkpoint: Checkpoint,
        sampling: Sampling,
        precision: Precision,
        image_size: tuple[int, int] | None = None,  # None: that of training
        use_ema: bool = True,
        guide: Checkpoint | None = None,  # instead of the one that the checkpoint holds
    ) -> "ImageGenerator":
        """The generator that a checkpoint describes. Raises UserError for what does not fit."""
        checkpoint.check_kind("diffusion")
        network = inference_network(checkpoint, use_ema)
        size = image_size or checkpoint.image_size
        try:
            codec = build_codec(checkpoint.config.get("codec", {}), checkpoint.codec)
            factor = codec.downsample_factor * cast(int, network.downsample_factor)
            check_image_size(size[0], size[1], factor)
            sampler = sampling.build(
                checkpoint.config["diffusion"], precision.device, codec.is_bounded
            )
        except (TypeError, ValueError) as error:
            raise UserError(f"{checkpoint.source}: {error}") from None
        network = precision.place_for_calls(network)
        codec = codec.to(precision.device)
        condition = build_condition(checkpoint.condition) if checkpoint.condition else None
        if condition is not None:
            condition.use(codec)
        if sampling.guide_scale != 1:
            worse = precision.place_for_calls(_guide_network(checkpoint, guide, use_ema))
            network = Autoguided(network, worse, sampling.guide_scale, sampling.guide_labels)
            try:
                check_image_size(*size, codec.downsample_factor * network.downsample_factor)
            except ValueError as error:
                raise UserError(f"the guide of {checkpoint.source}: {error}") from None
        return cls(
            network,
            sampler,
            codec,
            size,
            checkpoint.channels,
            precision,
            sampling.cfg_scale,
            sampling.cfg_interval,
            condition,
        )

    def check_conditions(self, conditions: Tensor | None) -> None:
        """Raise UserError where the network needs conditions, and there are none."""
        if self.condition is not None and conditions is None:
            raise UserError(
                "these weights make images of conditions: generate.py --condition names them"
            )

    @property
    def makes_masks(self) -> bool:
        """Whether images come with label maps."""
        return isinstance(self.codec, JointCodec)

    def with_sampler(self, sampler: BaseDiffusion) -> "ImageGenerator":
        """The same with another sampler."""
        other = copy.copy(self)
        other.sampler = sampler
        return other

    @property
    def downsample_factor(self) -> int:
        """What the sides of images must be divisible by."""
        return self.codec.downsample_factor * cast(int, self.network.downsample_factor)

    @property
    def calls(self) -> int:
        """Network calls that a batch of images takes."""
        return len(self.sampler.calls())

    def images_at_once(self, most: int, processes: int = 1) -> int:
        """How many images of a batch fit into the free memory, at most `most`; where it is the
        host's, so many `processes` share it.
        """
        usable = SHARE_OF_MEMORY * free_memory(self.precision.device, processes)
        network = unguided(self.network)  # a guide computes after it
        size = self.codec.shape(self.image_size, self.channels)[1:]
        of_row = memory_of_row(cast(dict, network.config), size, self.precision.dtype)
        rows = 2 if needs_null(self.cfg_scale) else 1
        return max(1, int(min(most, usable / (rows * of_row))))

    def start(
        self,
        seeds: Sequence[int],
        labels: Sequence[Label] | None,
        begin: Beginning | None = None,
        conditions: Tensor | None = None,
    ) -> Trajectory:
        """The images of these seeds before their first network call; labels: one per image, or
        None; conditions: the pixels (B,P,H,W) uint8 that steer each. Raises ValueError for seeds or
        labels out of range, and UserError where the network needs conditions and has none.
        """
        begin = begin or Beginning(None)
        self.check_conditions(conditions)
        condition = None
        if self.condition is not None and conditions is not None:
            condition = self.condition.encode(conditions.to(self.sampler.device))
        channels, height, width = self.codec.shape(self.image_size, self.channels)
        return self.sampler.start(
            len(seeds),
            (height, width),
            channels,
            labels,
            self.cfg_scale,
            seeds,
            begin.x_T,
            begin.first_call,
            null_label=null_of(self.network, labels),
            cfg_interval=self.cfg_interval,
            condition=condition,
        )

    def denoise(
        self,
        seeds: Sequence[int],
        labels: Sequence[Label] | None,
        edit: EditOfImages | None = None,
        conditions: Tensor | None = None,
    ) -> Iterator[Denoised]:
        """The images of these seeds after each network call. Raises what `start` does."""
        begin = Beginning(None) if edit is None else edit.begin(self, seeds)
        start = self.start(seeds, labels, begin, conditions)
        with evaluation_mode(self.network):
            steps = self.sampler.denoise(self.call, start, begin.change)
            for done, (trajectory, x0) in enumerate(steps, start=1):
                yield Denoised(done, trajectory, x0)

    def images(
        self,
        seeds: Sequence[int],
        labels: Sequence[Label] | None,
        after_call: Callable[[], None] = lambda: None,
        edit: EditOfImages | None = None,
        conditions: Tensor | None = None,
        must_be_finite: bool = False,
    ) -> Tensor:
        """(B,C,H,W) uint8, on the CPU. `after_call` is called after each network call. Raises
        UserError for numbers that are not finite where they must be: as pixels they are black.
        """
        for denoised in self.denoise(seeds, labels, edit, conditions):
            after_call()
            last = denoised
        if must_be_finite:
            bad = not_finite(last, seeds)
            if bad:
                raise UserError(not_finite_in_words(bad))
        return self.finished(last, edit)

    def finished(self, last: Denoised, edit: EditOfImages | None = None) -> Tensor:
        """The pixels of finished images, (B,C,H,W) uint8, on the CPU."""
        pixels = self.pixels(self.sampler.finished_images(last.trajectory))
        return pixels if edit is None else edit.finish(pixels)

    def masks(self, last: Denoised) -> Tensor | None:
        """The label maps that were made together with images, (B,1,H,W) uint8, on the CPU."""
        if not isinstance(self.codec, JointCodec):
            return None
        return self.codec.decode_masks(last.trajectory.x).cpu()

    def pixels(self, x: Tensor) -> Tensor:
        """What the diffusion sees -> (B,C,H,W) uint8, on the CPU."""
        return self.codec.decode(x).cpu()

    def call(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """The network, in the generator's number format."""
        with self.precision.autocast():
            return self.network(x, t, labels)


def _guide_network(checkpoint: Checkpoint, guide: Checkpoint | None, use_ema: bool) -> nn.Module:
    """The worse network that leads the checkpoint's. Raises UserError for one of another kind."""
    if guide is None:
        return guide_network(checkpoint)
    guide.check_kind("diffusion")
    network = inference_network(guide, use_ema and guide.ema is not None)
    if _kind_of(guide) != _kind_of(checkpoint):
        raise UserError(
            f"{guide.source} cannot guide these weights: it was trained with another diffusion "
            "process, other channels, other conditions, other classes or numbers, or other latents"
        )
    return network


def _kind_of(checkpoint: Checkpoint) -> tuple:
    """What a network and its guide have in common."""
    config = checkpoint.config
    network = config["network"]
    return (
        GaussianDiffusion(**config["diffusion"]).config,
        network["in_channels"],
        network.get("out_channels") or network["in_channels"],
        network.get("num_classes"),
        checkpoint.class_names,
        checkpoint.numbers,
        checkpoint.condition,
        config.get("codec", PixelCodec().config),
    )


def choose_batch(
    generators: Sequence[ImageGenerator], asked: int | None, usual: int, processes: int = 1
) -> tuple[int, str]:
    """How many images go through the network together, and a remark or "": as many as are asked
    for, otherwise the usual number or as many as fit into memory with each of the generators.
    """
    if asked is not None:
        return asked, ""
    fitting = min(generator.images_at_once(usual, processes) for generator in generators)
    if fitting == usual:
        return usual, ""
    return fitting, f"{fitting} of the images at once: more do not fit into the free memory"


def batch_advice(batch_size: int) -> contextlib.AbstractContextManager:
    """Where memory runs out inside, say what needs less."""
    return advice_on_memory(SMALLER_BATCH if batch_size > 1 else SMALLER_IMAGES)


def unguided(network: nn.Module) -> nn.Module:
    """The network itself, where a worse one guides it."""
    return network.network if isinstance(network, Autoguided) else network


def load_for_inference(path: str | Path, use_ema: bool = True) -> tuple[nn.Module, dict, list[str]]:
    """Path of a checkpoint -> the network, the diffusion's config and the class names."""
    checkpoint = Checkpoint.read(Path(path))
    checkpoint.check_kind("diffusion")
    network = inference_network(checkpoint, use_ema)
    return network, checkpoint.config["diffusion"], checkpoint.class_names


def image_settings(
    sampling: Sampling,
    sampler: BaseDiffusion,
    network: nn.Module,
    weights: Path | str,  # the file
    use_ema: bool,
) -> dict:
    """What goes into the text of each PNG beside its seed and class."""
    settings = {
        "sampler": sampling.sampler,
        "sample_steps": sampling.steps(sampler.noise_steps),
        "timestep_spacing": sampling.spacing,
        "clip_sample": sampler.clip_sample,
        "cfg_scale": sampling.cfg_scale,
        "use_ema": use_ema,
    }
    if sampling.sampler == "ddim":
        settings["eta"] = sampling.eta
    if sampling.cfg_interval is not None:
        settings["cfg_interval"] = ",".join(f"{ratio:g}" for ratio in sampling.cfg_interval)
    if isinstance(network, Autoguided):
        settings["guide_scale"] = network.scale
        if network.num_classes is not None:
            settings["guide_labels"] = network.guide_labels
    settings["weights"] = Path(weights).name
    if is_of_a_run(Path(weights).name):
        settings["run"] = Path(weights).absolute().parent.name
    return {**settings, **cast(dict, network.config), **sampler.config}


def sampling_remarks(sampler: BaseDiffusion) -> list[str]:
    """Remarks on legal choices that cannot give good images."""
    first = sampler.grid[0]
    last = sampler.noise_steps - 1
    if last - first <= LARGEST_GAP * sampler.noise_steps:
        return []
    return [
        f"the sampler begins at time step {first}, but sampling starts from pure noise, that "
        f"of time step {last}: the images will stay noisy; --timestep_spacing trailing starts there"
    ]
