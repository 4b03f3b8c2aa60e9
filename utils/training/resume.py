"""Continuing from a file: an interrupted run, or other weights to fine-tune."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from model.codecs import Grey16Codec, JointCodec, LatentCodec
from model.diffusion import UNLESS_SET
from utils.errors import UserError, name_list
from utils.runs.checkpoint import Checkpoint
from utils.runs.diffusers_autoencoder import read_diffusers_autoencoder
from utils.runs.files import read_checkpoint, read_metadata
from utils.runs.folder import find_checkpoint
from utils.runs.weights import check_finite, match_weights
from utils.text import composed
from utils.training.recipe import EARLIER, plain
from utils.training.run_options import AUTO
from utils.training.state import TrainState

ENLARGING = "up."  # the layer of an upscaler whose shape depends on its scale
# Options that change what a network computes, and not the shapes of its weights.
OF_THE_FUNCTION = (
    "head_channels",
    "norm_groups",
    "norm_eps",
    "norm_num_groups",
    "act",
    "act_fn",
    "asymmetric_padding",
    "freq_shift",
    "cos_first",
)
PIXELS = {"name": "pixels"}  # the codec of a diffusion without latents, and of the other kinds


def open_resumed(kind: str, run: Path, start_epoch: int) -> Checkpoint:
    """The checkpoint that a run continues from: of an epoch, or (-1) the last one.

    Raises UserError where there is none that can be resumed.
    """
    contents, file = find_checkpoint(run, start_epoch)
    if "config" not in contents:
        raise UserError(
            f"{file} holds bare weights and no training state; --pretrain starts from them"
        )
    checkpoint = Checkpoint.parse(contents, file)
    checkpoint.check_kind(kind)
    checkpoint.check_resumable()
    return checkpoint


def resume(state: TrainState, checkpoint: Checkpoint, allow_changes: bool) -> list[str]:
    """Restore the state from a checkpoint of its run; remarks on what differs without changing the
    result.

    Raises UserError where it was made with other settings or images (which `allow_changes`
    permits), each named with both values.
    """
    file = checkpoint.source
    changed = changes(checkpoint, state)
    if changed and not allow_changes:
        what_next = "--allow_changes resumes anyway"
        if not fits(checkpoint.network, state.network):
            what_next = "its network is another one, which cannot be resumed with these"
        raise UserError(f"{file} was made with other settings: {'; '.join(changed)}; {what_next}")
    remarks = []
    known = {name: state.versions.get(name) for name in checkpoint.versions}
    if checkpoint.versions != known:
        remarks.append(
            f"the checkpoint was made with {checkpoint.versions}, this is {state.versions}: "
            "the result will be the same up to rounding, except for dropout"
        )
    now_held_out = state.config["data"].get("held_out") or {}
    if (
        now_held_out.get("images")
        and checkpoint.held_out_fingerprint != now_held_out["fingerprint"]
    ):
        remarks.append(
            "other images are held out than before: the network may have learned from some of "
            "them, so that their loss looks better than that of new images"
        )
    if checkpoint.format_version == 1:
        remarks.append(
            "the checkpoint is from an earlier version, which ordered the images of an epoch "
            "differently: training continues equally well, but not bit for bit as before"
        )
    try:
        remarks += state.restore(checkpoint)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{file} cannot be resumed from: its optimizer or scaler does not fit ({error})"
        ) from None
    return remarks


def fits(weights: Mapping[str, Tensor] | None, network: nn.Module) -> bool:
    """Whether the weights have the names and shapes of the network's."""
    own = {name: value.shape for name, value in network.state_dict().items()}
    return weights is None or own == {name: value.shape for name, value in weights.items()}


def changes(checkpoint: Checkpoint, state: TrainState) -> list[str]:
    """How the facts that decide this run's result differ from those of the checkpoint."""
    before = {**EARLIER, **deciding_facts(checkpoint.config, checkpoint.state["seed"])}
    now = deciding_facts(state.config, state.seed)
    # What neither knows is an option that is newer than the checkpoint and changes no result.
    return [
        f"{name} {before[name]} before, {value} now"
        for name, value in now.items()
        if name in before and plain(value) != plain(before[name])
    ]


def deciding_facts(config: dict, seed: int) -> dict:
    """What decides a result, by the names that people know; taken from a checkpoint's config."""
    facts = {
        **config["training"],
        "seed": seed,
        **config["network"],
        **(whole_process(config["diffusion"]) if "diffusion" in config else {}),
        **config["data"],
    }
    if facts.get("amp") == AUTO:  # an earlier version forgot what that had decided
        del facts["amp"]
    if facts.get("ema_decay") is not None:  # it counts, where earlier versions kept both
        facts["ema_length"] = None
    facts["the images"] = facts.pop("fingerprint", None)
    facts["the autoencoder"] = config.get("codec", {}).get("hash", "none")
    held_out = facts.pop("held_out", None)
    if held_out is not None:
        facts["val_fraction"] = held_out["share"]
        facts["the images held out"] = held_out["fingerprint"]
    names = facts.get("class_names", [])
    facts["class_names"] = [composed(name) for name in names]
    return facts


def learning_rate_remark(
    checkpoint_steps: int | None, total_steps: int, step: int, rate_of: Callable[[int, int], float]
) -> str | None:
    """What to say where a resumed run has another length, and its learning rate changes with it.

    `rate_of(step, total_steps)` is the learning rate.
    """
    if checkpoint_steps is None or checkpoint_steps == total_steps or step >= total_steps:
        return None
    now = rate_of(step, total_steps)
    before = rate_of(min(step, checkpoint_steps), checkpoint_steps)
    if now == before:
        return None
    return (
        f"the run is now {total_steps:,} steps long, previously {checkpoint_steps:,}: the learning "
        f"rate at step {step:,} is {now:.3g} instead of {before:.3g}"
    )


def output_remark(before: Mapping[str, Any], now: Mapping[str, Any], names: Iterable[str]) -> str:
    """What to say where a resumed run saves, measures or draws otherwise than before; "" where it
    does not. `before` and `now` are options by name.
    """
    changed = [
        f"--{name} {now[name]} ({before[name]} before)"
        for name in names
        if name in before and name in now and plain(before[name]) != plain(now[name])
    ]
    if not changed:
        return ""
    return (
        f"changed are {name_list(changed)}: what is saved, measured and drawn follows the options "
        "of each command"
    )


def check_pretrain(kind: str, file: Path) -> None:
    """Raise UserError where there is nothing in the file to start from, as far as a look at it
    tells, before any long work.
    """
    if file.is_dir() and kind == "autoencoder":  # of diffusers
        return
    try:
        contents = read_metadata(file)
    except UserError:  # bare weights, or those of other programs, or nothing
        contents = read_checkpoint(file)
    if "config" in contents:
        Checkpoint.parse(contents, file).check_kind(kind)


def pretrain(state: TrainState, file: Path) -> list[str]:
    """Start the network and its average from the weights in a file.

    Parts that depend on the set (label rows, image channels) are matched; the remarks say which
    are new or adapted, and how the file's process differs. Raises UserError for what does not fit.
    """
    remarks: list[str] = []
    if file.is_dir() and state.kind == "autoencoder":
        config, weights_of_folder = read_diffusers_autoencoder(file)
        contents = {"network": weights_of_folder}
        remarks += function_differences(config, state.config["network"])
    else:
        contents = read_checkpoint(file)
    are_images = state.config.get("codec", PIXELS) == PIXELS
    previous_names: list[str] | None = None
    previous_numbers: list[dict] | None = None
    if "config" in contents:
        checkpoint = Checkpoint.parse(contents, file)
        checkpoint.check_kind(state.kind)
        check_architecture(checkpoint, state)
        remarks += function_differences(checkpoint.config["network"], state.config["network"])
        previous_names = checkpoint.class_names
        previous_numbers = checkpoint.numbers
        theirs, ours = (config.get("diffusion", {}) for config in (checkpoint.config, state.config))
        remarks += process_differences(theirs, ours)
        codecs = [config.get("codec", PIXELS) for config in (checkpoint.config, state.config)]
        remarks += codec_differences(*codecs)
        remarks += condition_differences(checkpoint.condition, state.config.get("condition"))
        are_images = all(codec == PIXELS for codec in codecs)
        weights = checkpoint.ema or checkpoint.network
    else:
        weights = contents.get("ema") or contents.get("network")
    if not weights:
        raise UserError(f"{file} holds no weights to start from")
    if state.kind == "upscaler":
        weights, of_another_scale = with_own_enlarging(state.network, weights)
        remarks += of_another_scale
    data = state.config["data"]
    matched, said = match_weights(
        state.network,
        weights,
        data["class_names"],
        previous_names,
        file,
        are_images,
        data.get("numbers", []),
        previous_numbers,
    )
    check_finite(matched, file)
    averages = [] if state.averages is None else state.averages.averages
    for network in (state.network, *(average.network for average in (state.ema, *averages))):
        network.load_state_dict(matched)
    return remarks + said


def with_own_enlarging(network: nn.Module, weights: Mapping) -> tuple[dict, list[str]]:
    """Weights of an upscaler, with the network's own new layer where they enlarge by another scale;
    and a remark on that.
    """
    own = network.state_dict()
    others = [
        name
        for name in own
        if name.startswith(ENLARGING) and name in weights and weights[name].shape != own[name].shape
    ]
    if not others:
        return dict(weights), []
    replaced = {name: own[name] for name in others}
    return {**weights, **replaced}, [
        "the weights enlarge by another scale: the layer that makes the pixels is new"
    ]


def check_architecture(checkpoint: Checkpoint, state: TrainState) -> None:
    """Raise UserError where the file holds another architecture than this run builds."""
    theirs, ours = checkpoint.config["network"].get("name"), state.config["network"]["name"]
    if theirs != ours:
        raise UserError(
            f"{checkpoint.source} holds a {theirs}, but this run builds a {ours}: "
            f"pass --network {theirs} to start from it"
        )


def function_differences(theirs: dict, ours: dict) -> list[str]:
    """A remark on weights of a network that computes something else with them, if it does."""
    before, now = (
        {name: config.get(name) for name in OF_THE_FUNCTION if name in theirs and name in ours}
        for config in (theirs, ours)
    )
    names = [name for name in before if before[name] != now[name]]
    if not names:
        return []
    before, now = ({name: values[name] for name in names} for values in (before, now))
    return [f"the weights are of a network with {before}, this run's has {now} and begins worse"]


def codec_differences(theirs: dict, ours: dict) -> list[str]:
    """A remark on a network that was trained on something else than this run, if it was."""
    before, now = map(inputs_in_words, (theirs, ours))
    return [] if before == now else [f"the weights were trained on {before}, this run is on {now}"]


def inputs_in_words(codec: dict) -> str:
    """What a diffusion sees, by its codec's config."""
    name = codec.get("name")
    if name == LatentCodec.name:
        return f"the latents of autoencoder {codec.get('hash')}"
    if name == JointCodec.name:
        labels = name_list(map(str, codec.get("values", [])))
        return f"images with masks of the labels {labels}"
    return "grey of 16 bits" if name == Grey16Codec.name else "pixels"


def condition_differences(theirs: dict | None, ours: dict | None) -> list[str]:
    """A remark on a network that was steered by other images than those of this run, if it was;
    where either is not steered at all, what becomes of its weights is said with them.
    """
    if theirs is None or ours is None:
        return []
    before, now = map(condition_in_words, (theirs, ours))
    return [] if before == now else [f"the weights were steered by {before}, this run is by {now}"]


def condition_in_words(condition: dict) -> str:
    """The images that steer a network, by the config of their condition."""
    if "values" in condition:
        return f"maps of the labels {name_list(map(str, condition['values']))}"
    return "grey pictures" if condition.get("planes") == 1 else "colour pictures"


def whole_process(diffusion: dict) -> dict:
    """A diffusion's config with what it leaves out."""
    return {**UNLESS_SET, **diffusion}


def process_differences(theirs: dict, ours: dict) -> list[str]:
    """A remark on a network that was trained for another diffusion process, if it was."""
    theirs, ours = whole_process(theirs), whole_process(ours)
    names = [name for name in ours if theirs.get(name) != ours[name]]
    if not names:
        return []
    before = {name: theirs.get(name) for name in names}
    now = {name: ours[name] for name in names}
    return [f"the weights were trained with {before}, this run uses {now}"]
