"""What a checkpoint says, as a type: parsed once, with errors that name the field."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from model.codecs import JointCodec, LatentCodec, build_codec
from model.condition import build_condition
from utils.errors import UserError
from utils.guidance_choice import Guidance
from utils.image_facts import CHANNELS, IMAGE_MODES, LARGEST_SIDE, NETWORK_CHANNELS
from utils.runs.files import FORMAT_VERSION, read_checkpoint

# The kinds of checkpoint, and what each is for.
SCRIPT_OF_KIND = {
    "diffusion": "tools/generate.py",
    "upscaler": "tools/upscale.py",
    "autoencoder": "tools/train.py --autoencoder_path",
}
KINDS = tuple(SCRIPT_OF_KIND)

Weights = Mapping[str, Tensor]

# Options of version 1 that decided a result; it kept them among its args alone.
_VERSION_1_FACTS = (
    "conditional",
    "flip",
    "loss",
    "label_drop",
    "global_batch",
    "optim",
    "lr",
    "lr_func",
    "warmup_steps",
    "weight_decay",
    "grad_clip",
    "ema_decay",
    "amp",
)


@dataclass
class Checkpoint:
    """One checkpoint, in memory.

    `config` rebuilds what was trained and says how to use it: network, data (image_size, mode,
    class_names, images, fingerprint), training (what decides a result) and length (epochs,
    total_steps); of a diffusion also diffusion, codec and sampling (sampler, guidance). `state` is
    where training stands:
    epoch, step and seed. The slim file for generation has no network, optimizer or scaler. `args`
    is a record of the command line; no result is decided by it.
    """

    config: dict
    kind: str = "diffusion"
    state: dict = field(default_factory=dict)
    network: dict | None = None
    ema: dict | None = None
    codec: dict | None = None  # of a diffusion on latents: the autoencoder's weights
    optimizer: dict | None = None
    scaler: dict | None = None
    averages: dict | None = None  # of runs with --ema_snapshots: weights by length
    guide: dict | None = None  # averaged weights of an early step, to guide sampling by
    args: dict = field(default_factory=dict)
    versions: dict = field(default_factory=dict)
    source: Path | str = "the checkpoint"
    format_version: int = FORMAT_VERSION

    def to_dict(self) -> dict:
        """What is written."""
        contents = {
            "format_version": FORMAT_VERSION,
            "kind": self.kind,
            "config": self.config,
            "state": self.state,
            "network": self.network,
            "ema": self.ema,
            "optimizer": self.optimizer,
            "scaler": self.scaler,
            "args": self.args,
            "versions": self.versions,
        }
        if self.codec is not None:
            contents["codec"] = self.codec
        if self.averages is not None:
            contents["averages"] = self.averages
        if self.guide is not None:
            contents["guide"] = self.guide
        return contents

    @classmethod
    def read(cls, path: Path) -> "Checkpoint":
        """The checkpoint in a file. Raises UserError where it is damaged or something else."""
        contents = read_checkpoint(path)
        if "config" not in contents:
            raise UserError(
                f"{path} holds bare weights: it does not say which network, schedule and classes "
                "they are for"
            )
        return cls.parse(contents, path)

    @classmethod
    def parse(cls, contents: dict, source: Path | str) -> "Checkpoint":
        """The contents of a file, checked. Raises UserError that names the field."""
        fields = _Fields(contents, source)
        version = fields.value("format_version", _is_whole, "a whole number")
        config = dict(fields.value("config", _is_dict, "a dict"))
        args = fields.value("args", _is_dict, "a dict", default={})
        if version == 1:
            config = _upgraded(config, fields.value("args", _is_dict, "a dict"))
        kind = fields.value("kind", lambda kind: kind in KINDS, f"one of {KINDS}", "diffusion")
        _check_config(_Fields(config, source, "config."), kind)
        return cls(
            config=config,
            kind=kind,
            state=fields.value("state", _is_dict, "a dict", default={}),
            network=fields.value("network", _is_dict, "a dict of tensors", default=None),
            ema=fields.value("ema", _is_dict, "a dict of tensors", default=None),
            codec=fields.value("codec", _is_dict, "a dict of tensors", default=None),
            optimizer=fields.value("optimizer", _is_dict, "a dict", default=None),
            scaler=fields.value("scaler", _is_dict, "a dict", default=None),
            averages=fields.value("averages", _is_dict, "a dict of weights", default=None),
            guide=fields.value("guide", _is_dict, "a dict of tensors", default=None),
            args=args,
            versions=fields.value("versions", _is_dict, "a dict", default={}),
            source=source,
            format_version=version,
        )

    def check_resumable(self) -> None:
        """Raise UserError, naming the field, where something is missing to resume training."""
        fields = _Fields(self.__dict__, self.source)
        for name in ("network", "ema", "optimizer", "scaler"):
            fields.value(name, _is_dict, "a dict, as the checkpoints of train.py have it")
        _Fields(self.config, self.source, "config.").part("training")
        state = _Fields(self.state, self.source, "state.")
        for name in ("epoch", "step", "seed"):
            state.value(name, _is_count, "a whole number from 0")

    def check_kind(self, kind: str) -> None:
        """Raise UserError where the checkpoint is of another kind."""
        if self.kind != kind:
            raise UserError(
                f"{self.source} is a checkpoint of kind {self.kind}, but {kind} is needed; "
                f"it is for {SCRIPT_OF_KIND[self.kind]}"
            )

    def check_unsteered(self) -> None:
        """Raise UserError where its images need conditions."""
        if self.condition is not None:
            raise UserError(
                f"{self.source} makes images of conditions: generate.py --condition gives it some"
            )

    # --- What the metadata says ---

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of training."""
        height, width = self.config["data"]["image_size"]
        return height, width

    @property
    def channels(self) -> int:
        return CHANNELS[self.config["data"]["mode"]]

    @property
    def class_names(self) -> list[str]:
        """Empty for an unconditional network."""
        return self.config["data"]["class_names"]

    @property
    def condition(self) -> dict | None:
        """Which images steer its images (`model.condition`); None: none do."""
        return self.config.get("condition")

    @property
    def numbers(self) -> list[dict]:
        """The numbers that describe an image, {"name", "mean", "std"} each."""
        return self.config["data"].get("numbers", [])

    @property
    def knows_several_labels(self) -> bool:
        """Whether it was trained on rows of labels, and not on class folders."""
        return "numbers" in self.config["data"]

    @property
    def can_be_told(self) -> bool:
        """Whether anything leads its images: classes, numbers, or images that steer."""
        return bool(self.class_names or self.numbers) or self.condition is not None

    @property
    def held_out(self) -> dict | None:
        """Which images were held out of training (`Split.to_record`); None: it does not say."""
        return self.config["data"].get("held_out")

    @property
    def held_out_fingerprint(self) -> str | None:
        """Of the images that were held out of training; None: it does not say."""
        return None if self.held_out is None else self.held_out["fingerprint"]

    @property
    def sampler(self) -> str:
        """The sampler chosen in training, or afterwards as the best one."""
        return self.config["sampling"]["sampler"]

    @property
    def sample_steps(self) -> int | None:
        """The steps that go with it; None: it does not say."""
        return self.config["sampling"].get("sample_steps")

    @property
    def timestep_spacing(self) -> str | None:
        """Which time steps go with it; None: it does not say."""
        return self.config["sampling"].get("timestep_spacing")

    @property
    def guidance_was_trained(self) -> bool:
        """Whether labels were dropped in training, so that there is something to guide with."""
        return self.config["sampling"]["guidance"]

    @property
    def recommended_guidance(self) -> Guidance | None:
        """What was found to guide its images best; None: nobody has looked."""
        found = self.config["sampling"].get("recommended_guidance")
        return None if found is None else Guidance(**found)

    def weights(self, use_ema: bool = True) -> dict:
        """The EMA or the raw weights. Raises UserError where the file does not hold them."""
        found = self.ema if use_ema else self.network
        if found is None:
            kind = "EMA" if use_ema else "raw"
            raise UserError(f"{self.source} holds no {kind} weights; try --use_ema {not use_ema}")
        return found


# --- Parsing ---

_REQUIRED = object()


class _Fields:
    """The entries of a dict that came from a file, each asked for by name."""

    def __init__(self, values: Mapping, source: Path | str, prefix: str = ""):
        self.values = values
        self.source = source
        self.prefix = prefix

    def value(
        self,
        name: str,
        is_right: Callable[[Any], bool],
        expected: str,
        default: Any = _REQUIRED,
    ) -> Any:
        """The entry. Raises UserError where it is missing without a default, or wrong."""
        if name not in self.values or (self.values[name] is None and default is None):
            if default is not _REQUIRED:
                return default
            raise self.unusable(f"{self.prefix}{name} is missing")
        value = self.values[name]
        if not is_right(value):
            shown = repr(value)
            if len(shown) > 60:
                shown = f"{shown[:60]}..."
            raise self.unusable(f"{self.prefix}{name} is {shown}, but must be {expected}")
        return value

    def part(self, name: str) -> "_Fields":
        """A dict within."""
        values = self.value(name, _is_dict, "a dict")
        return _Fields(values, self.source, f"{self.prefix}{name}.")

    def unusable(self, what: str) -> UserError:
        return UserError(f"the metadata of {self.source} is not usable: {what}")


def _check_config(config: _Fields, kind: str) -> None:
    """Raise UserError for metadata that makes no sense, or does not fit together."""
    network = config.part("network")
    data = config.part("data")
    data.value("image_size", _is_image_size, f"two sides from 1 to {LARGEST_SIDE}")
    mode = data.value(
        "mode", lambda value: value in IMAGE_MODES, f"one of {', '.join(IMAGE_MODES)}"
    )
    names = data.value("class_names", _is_list_of_text, "a list of texts")
    numbers = data.value("numbers", _are_numbers, "a list of columns", default=[])
    if len(numbers) != network.value("numbers", _is_count, "a whole number", default=0):
        raise config.unusable(f"it describes {len(numbers)} numbers, its network takes others")
    data.value("held_out", _is_split, "a split of the images", default=None)
    channels = NETWORK_CHANNELS[mode]
    if kind == "diffusion":
        _check_diffusion(config, names)
        channels = _diffused_channels(config, channels)
        channels += _condition_channels(config)
    taken = network.value("in_channels", _is_count, "a whole number")
    if taken != channels:
        raise config.unusable(
            f"the network takes {taken} channels, what it is trained on has {channels}"
        )
    if kind == "diffusion":
        made = network.value("out_channels", _is_count, "a whole number", default=None) or taken
        wanted = channels - _condition_channels(config)
        if made != wanted:
            raise config.unusable(f"the network makes {made} channels of {wanted}")


def _check_diffusion(config: _Fields, class_names: list[str]) -> None:
    """The parts of the config that only a diffusion has."""
    diffusion = config.part("diffusion")
    sampling = config.part("sampling")
    for name in ("noise_steps", "noise_schedule", "prediction"):
        diffusion.value(name, lambda value: value is not None, "a value")
    sampling.value("sampler", _is_text, "a name")
    sampling.value("sample_steps", _is_count, "a whole number", default=None)
    sampling.value("timestep_spacing", _is_text, "a name", default=None)
    sampling.value("guidance", lambda value: isinstance(value, bool), "True or False")
    sampling.value(
        "recommended_guidance", _is_guidance, "scales of cfg_scale and guide_scale", default=None
    )
    network = config.part("network")
    classes = network.value("num_classes", _is_count, "a whole number", default=None)
    if len(class_names) != (classes or 0):
        raise config.unusable(f"it has {len(class_names)} class names for {classes or 0} classes")


def _diffused_channels(config: _Fields, image_channels: int) -> int:
    """Of what the diffusion sees: of the images, or of an autoencoder's latents."""
    if "codec" not in config.values:
        return image_channels
    codec = config.part("codec")
    if codec.values.get("name") == JointCodec.name:
        return image_channels + _mask_channels(config, image_channels)
    if codec.values.get("name") != "latents":
        return image_channels
    codec.value("hash", _is_text, "a text")
    for name in ("latents_mean", "latents_std"):
        codec.value(name, _is_list_of_numbers, "a list of numbers")
    autoencoder = codec.part("network")
    taken = autoencoder.value("in_channels", _is_count, "a whole number")
    if taken != image_channels:
        raise config.unusable(
            f"the autoencoder takes {taken} channels, the images have {image_channels}"
        )
    return autoencoder.value("latent_channels", _is_count, "a whole number")


def _mask_channels(config: _Fields, image_channels: int) -> int:
    """Of the label maps that are made together with images."""
    try:
        codec = build_codec(dict(config.part("codec").values))
    except (TypeError, ValueError) as error:
        raise config.unusable(f"config.codec: {error}") from None
    assert isinstance(codec, JointCodec)
    if codec.image_channels != image_channels:
        raise config.unusable(
            f"its masks are of images of {codec.image_channels} channels, not {image_channels}"
        )
    return len(codec.values)


def _condition_channels(config: _Fields) -> int:
    """What a network takes beside the noisy image."""
    if config.values.get("condition") is None:
        return 0
    try:
        condition = build_condition(dict(config.part("condition").values))
    except ValueError as error:
        raise config.unusable(f"config.condition: {error}") from None
    if condition.is_latent != (config.values.get("codec", {}).get("name") == LatentCodec.name):
        raise config.unusable(f"config.condition: {condition.name} does not go with its codec")
    return condition.channels


def _upgraded(config: dict, args: dict) -> dict:
    """The config of a version-1 file: what it kept among its args goes to where it belongs."""
    sampling = {"sampler": args.get("sample"), "guidance": args.get("label_drop") != 0}
    training = {name: args.get(name) for name in _VERSION_1_FACTS}
    upgraded = {"codec": {"name": "pixels"}, "sampling": sampling, "training": training} | config
    upgraded.setdefault("length", {"epochs": args.get("epochs")})
    return upgraded


def _is_whole(value: Any) -> bool:
    return type(value) is int  # True is an int too


def _is_count(value: Any) -> bool:
    return _is_whole(value) and value >= 0


def _is_dict(value: Any) -> bool:
    return isinstance(value, dict)


def _is_guidance(value: Any) -> bool:
    """Whether this is what `asdict` makes of a Guidance."""
    if not isinstance(value, dict) or value.keys() != {each.name for each in fields(Guidance)}:
        return False
    scales = (value["cfg_scale"], value["guide_scale"])
    are_scales = all(type(scale) in (int, float) and 0 <= scale < math.inf for scale in scales)
    return are_scales and isinstance(value["guide_labels"], bool)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_list_of_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) in (int, float) for item in value)


def _is_list_of_text(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _are_numbers(value: Any) -> bool:
    """Whether these are the columns of labels.csv, as `NumberColumn.to_dict` writes them."""
    return isinstance(value, list) and all(
        isinstance(each, dict)
        and _is_text(each.get("name"))
        and type(each.get("mean")) is float
        and type(each.get("std")) is float
        and each["std"] > 0
        for each in value
    )


def _is_split(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("share"), float):
        return False
    if not 0 <= value["share"] <= 1:
        return False
    if not _is_text(value.get("of")) or not _is_text(value.get("fingerprint")):
        return False
    return all(
        isinstance(value.get(name), list) and all(_is_count(number) for number in value[name])
        for name in ("images", "unused")
    )


def _is_image_size(value: Any) -> bool:
    if not isinstance(value, list | tuple) or len(value) != 2:
        return False
    return all(_is_whole(side) and 1 <= side <= LARGEST_SIDE for side in value)
