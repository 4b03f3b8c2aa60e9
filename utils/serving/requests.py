"""From what a client asks to what the engine makes: defaults filled in, everything checked."""

import contextlib
import random
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from model.guidance import NOTHING, Label
from model.networks import check_image_size
from model.samplers import SAMPLERS
from utils.class_names import asks_for_each, labels_in_turn, name_of
from utils.data.conditions import read_condition
from utils.editing import Edit, Wishes, WrongWish
from utils.errors import UserError, name_list
from utils.generation import Sampling
from utils.guidance_choice import Guidance
from utils.image_facts import CHANNELS, SMALLEST_SIDE, USUAL_MODES
from utils.options import types
from utils.serving.limits import Limits
from utils.serving.pictures import one_at_a_time
from utils.serving.refusal import UNAVAILABLE, Refusal, invalid, not_found
from utils.serving.weights import UPSCALER, Weight, WeightStore

IMAGE_FORMATS = ("png", "webp", "jpeg")
FILM_FORMAT = "gif"  # the states on the way of an image; only some protocols offer it
MOST_SNAPSHOT_PIXELS = 2**24  # of all states that a job keeps: they lie in memory
MOST_CONDITION_PIXELS = 2**22  # of all conditions of a job, which do too
DEFAULT_IMAGES = 1
LARGEST_SEED = int(types.seed.high)
LARGEST_SCALE = 100.0  # of guidance
UNKNOWN_WEIGHT = "model_not_found"  # the code of a refusal, as in the OpenAI API


@dataclass(frozen=True)
class Asked:
    """What a client may say. None: not said."""

    weight: str | None = None
    class_name: str | None = None  # a name or a number; "-1": one image of each class
    labels: tuple[int, ...] | None = None  # of each image, instead of class_name
    num_images: int | None = None
    sample: str | None = None
    sample_steps: int | None = None
    cfg_scale: float | None = None
    guide_scale: float | None = None
    guide_labels: bool | None = None
    seed: int | None = None  # of the first image; the next ones count up
    image_size: tuple[int, int] | None = None  # (H, W)
    image_format: str = "png"
    upscale: str | None = None  # the name of an upscaler
    use_ema: bool | None = None  # None: if the file has them
    snapshots: int = 0  # states on the way that are kept of each image
    snapshots_of_noise: bool = False  # of x_t instead of the estimates of x0
    wishes: Wishes = field(default_factory=Wishes)  # what images begin with
    conditions: tuple[bytes, ...] | None = None  # image files that steer: image i takes the i-th

    @property
    def has_pictures(self) -> bool:
        """Whether files are to be decoded, which takes a while."""
        wishes = self.wishes
        return any((wishes.init_image, wishes.mask, wishes.invert, self.conditions))


@dataclass(frozen=True)
class GenerationRequest:
    """What the engine makes: nothing in it is left open."""

    weight: Weight
    use_ema: bool
    labels: tuple[Label, ...] | None  # of each image; None: the network has no classes
    seeds: tuple[int, ...]  # of each image
    sampling: Sampling
    image_size: tuple[int, int]
    image_format: str
    upscaler: Weight | None
    snapshots: int = 0
    snapshots_of_noise: bool = False
    class_name: str | None = None  # as it was asked for
    wishes: Wishes = field(default_factory=Wishes)  # without what was in files
    edit: Edit | None = None  # what fulfils them; let go when the job has ended, as the next one is
    conditions: Tensor | None = None  # (n,P,H,W) uint8: image i takes the i-th, and so on in turn
    condition_count: int = 0  # as many were sent

    @property
    def count(self) -> int:
        return len(self.seeds)

    @property
    def steps(self) -> int:
        return self.sampling.steps(self.weight.noise_steps)

    def class_of(self, image: int) -> str | None:
        """The name of an image's class, or of its classes."""
        if self.labels is None:
            return None
        return name_of(self.labels[image], self.weight.classes, self.weight.numbers)

    def to_dict(self) -> dict:
        """In the words that a client asks in."""
        return {
            "weight": self.weight.name,
            "class_name": self.class_name,
            "num_images": self.count,
            "sample": self.sampling.sampler,
            "sample_steps": self.steps,
            "cfg_scale": self.sampling.cfg_scale,
            "guide_scale": self.sampling.guide_scale,
            "guide_labels": self.sampling.guide_labels,
            "seed": self.seeds[0],
            "image_size": list(self.image_size),
            "image_format": self.image_format,
            "upscale": self.upscaler.name if self.upscaler else None,
            **self._begun_with(),
        }

    def _begun_with(self) -> dict:
        """What is asked for beside the noise of seeds; nothing where that is all."""
        said: dict = {}
        wishes = self.wishes
        pictures = [
            name for name in ("init_image", "mask", "invert") if getattr(wishes, name) is not None
        ]
        if pictures:
            said["pictures"] = pictures
        for name in ("strength", "outpaint", "interpolate"):
            value = getattr(wishes, name)
            if value is not None:
                said[name] = list(value) if isinstance(value, tuple) else value
        if wishes.repeats > 1:
            said["repeats"] = wishes.repeats
        if self.condition_count > 0:
            said["conditions"] = self.condition_count
        return said

    def without_pictures(self) -> "GenerationRequest":
        """What is kept of it when its images are made: pictures take memory."""
        return replace(self, edit=None, conditions=None)


def resolve(asked: Asked, weights: WeightStore, limits: Limits) -> GenerationRequest:
    """Raises Refusal, naming the field, for what cannot be made or is more than is allowed."""
    weight = weight_of(asked.weight, weights)
    upscaler = _upscaler(asked.upscale, weights)
    if upscaler is not None and weight.mode not in USUAL_MODES:
        raise invalid(
            f"{weight.name} makes images of mode {weight.mode}: no upscaler takes these", "upscale"
        )
    if upscaler is not None and weight.makes_masks:
        raise invalid(f"{weight.name} makes masks too, which nothing enlarges", "upscale")
    labels = _labels(asked, weight)
    count = _count(asked, weight, labels, limits)
    if labels is not None:
        labels = tuple(_as_row(labels[i % len(labels)], weight) for i in range(count))
    image_size = _image_size(asked.image_size, weight, limits)
    sampling = _sampling(asked, weight, limits)
    seeds = _seeds(asked.seed, count)
    _check_format(asked)
    image_size = _widened(asked, weight, sampling, image_size, limits)
    _check_labels(asked, weight, labels)
    _check_snapshots(asked.snapshots, count, image_size)
    conditions = _conditions(asked, weight, count, image_size)
    return GenerationRequest(
        weight=weight,
        use_ema=_use_ema(asked.use_ema, weight),
        labels=labels,
        seeds=seeds,
        sampling=sampling,
        image_size=image_size,
        image_format=asked.image_format,
        upscaler=upscaler,
        snapshots=asked.snapshots,
        snapshots_of_noise=asked.snapshots_of_noise,
        class_name=asked.class_name,
        wishes=asked.wishes.without_pictures(),
        edit=_edit(asked, weight, sampling, image_size, seeds, limits),
        conditions=conditions,
        condition_count=0 if conditions is None else len(conditions),
    )


def weight_of(name: str | None, weights: WeightStore) -> Weight:
    """The diffusion of this name; None: the default. Raises Refusal."""
    if name is None:
        weight = weights.default()
        if weight is None:
            raise Refusal(503, "no weights are served", UNAVAILABLE)
        return weight
    weight = weights.find(name)
    if weight is None:
        served = name_list(weight.name for weight in weights.all("diffusion")) or "none"
        raise not_found(
            f"there is no weight {name!r:.80}; served are {served}", "weight", UNKNOWN_WEIGHT
        )
    if not weight.is_diffusion:
        raise invalid(
            f"the weight {weight.name} is an upscaler and makes no images; name it in upscale",
            "weight",
        )
    return weight


def _upscaler(name: str | None, weights: WeightStore) -> Weight | None:
    if name is None:
        return None
    weight = weights.find(name)
    if weight is None or weight.kind != UPSCALER:
        served = name_list(weight.name for weight in weights.all(UPSCALER)) or "none"
        raise not_found(
            f"there is no upscaler {name!r:.80}; served are {served}", "upscale", UNKNOWN_WEIGHT
        )
    return weight


def _use_ema(asked: bool | None, weight: Weight) -> bool:
    if asked is None:
        return weight.has_ema
    if asked and not weight.has_ema:
        raise invalid(f"{weight.name} holds no EMA weights: use_ema is false", "use_ema")
    if not asked and not weight.has_raw:
        raise invalid(f"{weight.name} holds EMA weights alone: use_ema is true", "use_ema")
    return asked


def _labels(asked: Asked, weight: Weight) -> tuple[Label, ...] | None:
    """The labels to go through in turn; None for a network without classes."""
    if not weight.classes:
        if asked.class_name is not None:
            raise invalid(
                f"class_name {asked.class_name!r:.80}: {weight.name} was trained without classes",
                "class_name",
            )
        return None
    if asked.labels is not None:
        return asked.labels
    if asked.class_name is None:
        return tuple(range(len(weight.classes)))
    found = labels_in_turn(asked.class_name, weight.classes)
    if found is not None:
        return tuple(found)
    classes = name_list(weight.classes, len(weight.classes))
    raise invalid(
        f"class_name {asked.class_name!r:.80} is unknown; known are {classes}",
        "class_name",
        "unknown_class",
    )


def _check_labels(asked: Asked, weight: Weight, labels: tuple[Label, ...] | None) -> None:
    """Raise Refusal where images that belong together would not have one class."""
    is_asked_for = asked.class_name is not None or asked.labels is not None
    try:
        asked.wishes.check_labels(labels, is_asked_for or len(weight.classes) == 1)
    except WrongWish as wrong:
        raise invalid(str(wrong), "class_name") from None


def _as_row(label: Label, weight: Weight) -> Label:
    """A label of a network that learned numbers too as a row that begins with these: with nothing,
    since none can be asked for here.
    """
    if weight.numbers == 0:
        return label
    labels = label if isinstance(label, tuple) else (label,)
    return (*(NOTHING,) * weight.numbers, *labels)


def _count(asked: Asked, weight: Weight, labels: tuple[Label, ...] | None, limits: Limits) -> int:
    count = asked.num_images
    if count is None:
        count = DEFAULT_IMAGES
        if labels is not None and asks_for_each(asked.class_name, weight.classes):
            count = len(labels)
    if not 1 <= count <= limits.max_images:
        raise invalid(f"num_images is 1 to {limits.max_images}, not {count}", "num_images")
    return count


def _seeds(first: int | None, count: int) -> tuple[int, ...]:
    largest = LARGEST_SEED - (count - 1)
    if first is None:
        first = random.SystemRandom().randint(0, largest)
    if not 0 <= first <= largest:
        raise invalid(f"seed is 0 to {largest} for {count} images, not {first}", "seed")
    return tuple(range(first, first + count))


def _sampling(asked: Asked, weight: Weight, limits: Limits) -> Sampling:
    sampler = asked.sample or weight.sampler
    if sampler not in SAMPLERS:
        known = ", ".join(SAMPLERS)
        raise invalid(f"sample is one of {known}, not {sampler!r:.40}", "sample")
    usual = usual_sampling(weight) if sampler == weight.sampler else Sampling(sampler)
    sampling = usual.guided(_guidance(asked, weight))
    if asked.sample_steps is not None:
        sampling = replace(sampling, sample_steps=asked.sample_steps)
    steps = sampling.steps(weight.noise_steps)
    most = min(limits.max_steps, weight.noise_steps)
    if asked.sample_steps is None and steps > most:
        sampling = replace(sampling, sample_steps=most)
        steps = most
    if not 1 <= steps <= most:
        raise invalid(
            f"sample_steps is 1 to {most} with {weight.name}, not {steps}", "sample_steps"
        )
    return sampling


def _guidance(asked: Asked, weight: Weight) -> Guidance:
    """As generate.py has it where it is not said."""
    for name in ("cfg_scale", "guide_scale"):
        scale = getattr(asked, name)
        if scale is not None and not 0 <= scale <= LARGEST_SCALE:  # NaN is not, either
            raise invalid(f"{name} is 0 to {LARGEST_SCALE:g}, not {scale}", name)
    guidance = weight.guidable.choose(asked.cfg_scale, asked.guide_scale, asked.guide_labels)
    if weight.can_be_told and not weight.is_guided and guidance.cfg_scale != 1:
        raise invalid(
            f"{weight.name} was trained without guidance: cfg_scale is 1, not "
            f"{guidance.cfg_scale:g}",
            "cfg_scale",
        )
    if guidance.guide_scale != 1 and not weight.has_guide:
        raise invalid(
            f"{weight.name} holds no guide: guide_scale is 1, not {guidance.guide_scale:g}",
            "guide_scale",
        )
    if asked.guide_labels is not None and guidance.guide_scale == 1:
        raise invalid("guide_labels is about a guide, and none leads these images", "guide_labels")
    if weight.can_be_told and not weight.is_guided and not guidance.guide_labels:
        raise invalid(
            f"{weight.name} was trained without guidance: its guide needs labels", "guide_labels"
        )
    return guidance


def usual_sampling(weight: Weight) -> Sampling:
    """How a weight's images are made where nobody says how."""
    return Sampling(weight.sampler, weight.sample_steps, weight.timestep_spacing)


def usual_steps(weight: Weight) -> int | None:
    """The steps of that; None for an upscaler, and for a sampler that is not known here."""
    if weight.sampler not in SAMPLERS:
        return None
    return usual_sampling(weight).steps(weight.noise_steps)


def _image_size(asked: tuple[int, int] | None, weight: Weight, limits: Limits) -> tuple[int, int]:
    height, width = asked or weight.image_size
    if not all(SMALLEST_SIDE <= side <= limits.max_side for side in (height, width)):
        raise invalid(
            f"the sides of image_size are {SMALLEST_SIDE} to {limits.max_side}, "
            f"not {height},{width}",
            "image_size",
        )
    try:
        check_image_size(height, width, weight.downsample_factor)
    except ValueError as error:
        raise invalid(str(error), "image_size") from None
    return height, width


def _check_format(asked: Asked) -> None:
    if asked.image_format not in (*IMAGE_FORMATS, FILM_FORMAT):
        raise invalid(
            f"image_format is one of {', '.join(IMAGE_FORMATS)}, not {asked.image_format!r:.40}",
            "image_format",
        )
    if asked.image_format == FILM_FORMAT and asked.upscale is not None:
        raise invalid("the frames of a GIF are not enlarged: leave upscale out", "upscale")


def _check_snapshots(snapshots: int, count: int, image_size: tuple[int, int]) -> None:
    height, width = image_size
    pixels = snapshots * count * height * width
    if pixels > MOST_SNAPSHOT_PIXELS:
        raise invalid(
            f"{snapshots} states of {count} images of {height},{width} are more than the server "
            "keeps: ask for fewer or smaller images",
            "num_images",
        )


# --- What images begin with, and what steers them ---


def _widened(
    asked: Asked,
    weight: Weight,
    sampling: Sampling,
    image_size: tuple[int, int],
    limits: Limits,
) -> tuple[int, int]:
    """The size of the images, borders that are painted included; the wishes go together."""
    wishes = asked.wishes
    try:
        wishes.check(has_condition=asked.conditions is not None)
        wishes.check_weights(weight.makes_masks)
        wishes.check_sampling(sampling)
        height, width = wishes.size(image_size, weight.downsample_factor)
    except WrongWish as wrong:
        raise invalid(str(wrong), wrong.name) from None
    if max(height, width) > limits.max_side:
        raise invalid(
            f"with these borders, images are {height},{width}; {limits.max_side} is the most",
            "outpaint",
        )
    return height, width


def _edit(
    asked: Asked,
    weight: Weight,
    sampling: Sampling,
    image_size: tuple[int, int],
    seeds: tuple[int, ...],
    limits: Limits,
) -> Edit | None:
    wishes = asked.wishes
    decoding = one_at_a_time if asked.has_pictures else contextlib.nullcontext()
    try:
        with decoding:
            edit = wishes.edit(image_size, CHANNELS[weight.mode], seeds[0], len(seeds))
    except WrongWish as wrong:
        raise invalid(str(wrong), wrong.name) from None
    if edit is None or (wishes.repeats == 1 and wishes.invert is None):
        return edit
    sampler = edit.sampler_of(sampling.build({"noise_steps": weight.noise_steps}, "cpu"))
    calls = edit.calls(sampler)
    if calls > limits.max_steps:
        name = "repeats" if wishes.repeats > 1 else "invert"
        raise invalid(
            f"with {name}, an image takes {calls} network calls; {limits.max_steps} are the most",
            name,
        )
    return edit


def _conditions(
    asked: Asked, weight: Weight, count: int, image_size: tuple[int, int]
) -> Tensor | None:
    """The images that steer, as the network takes them."""
    condition, files = weight.condition, asked.conditions
    if condition is None:
        if files is not None:
            raise invalid(f"{weight.name} was trained without conditions", "condition")
        return None
    if not files:
        raise invalid(f"{weight.name} makes images of conditions: send some", "condition")
    if len(files) > count:
        raise invalid(f"{len(files)} conditions are more than {count} images", "condition")
    height, width = image_size
    if len(files) * height * width > MOST_CONDITION_PIXELS:
        raise invalid(
            f"{len(files)} conditions of {height},{width} are more than the server keeps",
            "condition",
        )
    read = []
    for place, data in enumerate(files):
        name = f"number {place}" if len(files) > 1 else "that was sent"
        try:
            with one_at_a_time:
                read.append(read_condition(data, name, condition, image_size))
        except UserError as error:
            raise invalid(str(error), "condition") from None
    return torch.stack(read)
