"""Weights and the network that they are for: loaded strictly, or adapted for fine-tuning."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.errors import UserError, name_list
from utils.runs.foreign import shown
from utils.text import composed

LABEL_TABLE = "condition.label.weight"  # (num_classes + 1, E); the last row is the null label
TIME_BIAS = "condition.time_mlp.2.bias"  # (E,): what the label's row is added to
CONV_IN = "conv_in.weight"  # (C, channels of the image, k, k)
AUGMENTATION = "condition.augmentation.weight"
NUMBERS = "condition.numbers."
NUMBERS_IN = NUMBERS + "0.weight"  # (E, 2F): each of F numbers, then whether each is there
NUMBERS_IN_BIAS = NUMBERS + "0.bias"  # (E,)
NUMBERS_OUT = NUMBERS + "2.weight"  # (E, E)
NUMBERS_OUT_BIAS = NUMBERS + "2.bias"  # (E,)
CONV_OUT = "conv_out.weight"  # (channels of the image, C, k, k)
CONV_OUT_BIAS = "conv_out.bias"  # (channels of the image,)


def load_weights(
    network: nn.Module, weights: Mapping, source: Path | str, assign: bool = False
) -> None:
    """Copy weights into the network, or (`assign`) put them there themselves. UserError names all
    that do not fit.
    """
    check_tensors(weights, source)
    check_fit(network, weights, source)
    network.load_state_dict(weights, assign=assign)


def check_tensors(weights: object, source: Path | str) -> None:
    """UserError unless this is a dict of tensors that hold their numbers themselves."""
    if not isinstance(weights, Mapping) or not all(is_plain(item) for item in weights.values()):
        raise UserError(f"the weights in {source} are not all tensors of plain numbers")


def check_finite(weights: Mapping[str, Tensor], source: Path | str) -> None:
    """UserError that names the tensors that hold NaN or infinity."""
    bad = [
        shown(str(key))
        for key, value in weights.items()
        if value.is_floating_point() and not value.isfinite().all()
    ]
    if bad:
        raise UserError(
            f"the weights in {source} are not finite: {name_list(bad, 5)}; take a checkpoint from "
            "before the training went wrong"
        )


def is_plain(value: object) -> bool:
    """Whether this is a dense tensor with numbers: not sparse, not quantised, not on "meta"."""
    if not isinstance(value, Tensor):
        return False
    return value.layout == torch.strided and not value.is_meta and not value.is_quantized


def check_fit(network: nn.Module, weights: Mapping[str, Tensor], source: Path | str) -> None:
    """UserError that names every tensor that is missing, unexpected, or of another shape or kind of
    number than the network's.
    """
    own = network.state_dict()
    both = [key for key in own if key in weights]
    shapes = [
        f"{key} {tuple(weights[key].shape)} instead of {tuple(own[key].shape)}"
        for key in both
        if weights[key].shape != own[key].shape
    ]
    kinds = [
        f"{key} {kind_of(weights[key])} instead of {kind_of(own[key])}"
        for key in both
        if kind_of(weights[key]) != kind_of(own[key])
    ]
    problems = {
        "missing": [key for key in own if key not in weights],
        "unexpected": [shown(str(key)) for key in weights if key not in own],
        "other shapes:": shapes,
        "other kinds of numbers:": kinds,
    }
    said = [f"{what} {name_list(names, 5)}" for what, names in problems.items() if names]
    if said:
        name = getattr(network, "config", {}).get("name", type(network).__name__)
        raise UserError(f"the weights in {source} do not fit the network {name}: {'; '.join(said)}")


def kind_of(tensor: Tensor) -> str:
    """The kind of number: between floats of any width, or whole numbers, values are converted."""
    if tensor.dtype == torch.bool:
        return "true or false"
    if tensor.is_complex():
        return "complex"
    return "floating-point" if tensor.is_floating_point() else "whole"


def match_weights(
    network: nn.Module,
    weights: Mapping[str, Tensor],
    class_names: Sequence[str],
    previous_class_names: Sequence[str] | None,
    source: Path | str = "the given file",
    are_images: bool = True,
    numbers: Sequence[Mapping] = (),
    previous_numbers: Sequence[Mapping] | None = None,
) -> tuple[dict[str, Tensor], list[str]]:
    """What a network that is to be trained on other classes keeps of weights: all that does not
    depend on the set of images.

    class_names: of the new set, none for an unconditional network. previous_class_names: of the set
    that the weights were trained on; None where the file does not say. `are_images`: whether both
    work on images, not on latents, so that 1 channel is grey and 3 are colour. numbers,
    previous_numbers: {"name", "mean", "std"} of each number that the networks are told, likewise.

    Returns weights that load strictly, and sentences that say what is new or adapted, none where
    everything fits as it is. The weights given stay as they are. UserError names all that cannot be
    made to fit: other widths, other blocks, another kind of network.
    """
    check_tensors(weights, source)
    own: dict[str, Tensor] = network.state_dict()
    matched = dict(weights)
    said = adapt_channels(matched, own) if are_images else []
    said += adapt_condition(matched, own)
    said += adapt_augmentation(matched, own)
    said += adapt_numbers(matched, own, numbers, previous_numbers)
    said += adapt_labels(matched, own, class_names, previous_class_names, source)
    check_fit(network, matched, source)
    return matched, said


# --- Augmentation ---


def adapt_augmentation(weights: dict[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    """Add what tells the network how an image was augmented, or take it away, in place. Without
    augmentations neither changes what the network does.
    """
    if AUGMENTATION in own and AUGMENTATION not in weights:
        weights[AUGMENTATION] = torch.zeros_like(own[AUGMENTATION])
        return ["the weights were trained without --augment: the network has yet to learn it"]
    if AUGMENTATION in weights and AUGMENTATION not in own:
        del weights[AUGMENTATION]
        return ["the weights were trained with --augment, this run is without"]
    return []


# --- Numbers ---


def adapt_numbers(
    weights: dict[str, Tensor],
    own: Mapping[str, Tensor],
    numbers: Sequence[Mapping],
    previous: Sequence[Mapping] | None,
) -> list[str]:
    """Change the layers that are told numbers, in place, from those of the weights to those of the
    network.
    """
    before, now = weights.get(NUMBERS_IN), own.get(NUMBERS_IN)
    if before is None and now is None:
        return []
    if before is None:
        return add_numbers(weights, own)
    if not have_layers_for_numbers(weights):
        return []  # what does not fit is named afterwards
    if now is None:
        return drop_numbers(weights)
    if len(before) != len(now):
        return []  # another width: named afterwards
    if previous is None:
        if before.shape == now.shape:
            return []
        return start_numbers_afresh(weights, own)
    if before.shape[1] != 2 * len(previous) or now.shape[1] != 2 * len(numbers):
        return []
    return match_numbers_by_name(weights, numbers, previous)


def have_layers_for_numbers(weights: Mapping[str, Tensor]) -> bool:
    """Whether the layers are whole, and fit one another."""
    names = (NUMBERS_IN, NUMBERS_IN_BIAS, NUMBERS_OUT, NUMBERS_OUT_BIAS)
    if not all(name in weights and weights[name].is_floating_point() for name in names):
        return False
    width = len(weights[NUMBERS_IN_BIAS]) if weights[NUMBERS_IN_BIAS].ndim == 1 else 0
    shapes = [tuple(weights[name].shape) for name in names[1:]]
    return weights[NUMBERS_IN].ndim == 2 and shapes == [(width,), (width, width), (width,)]


def add_numbers(weights: dict[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    """Weights without numbers, for a network with them: new layers, whose last one starts at zero,
    so that the network starts as what the weights do.
    """
    weights |= {name: value.clone() for name, value in own.items() if name.startswith(NUMBERS)}
    for name in (NUMBERS_OUT, NUMBERS_OUT_BIAS):
        weights[name] = torch.zeros_like(own[name])
    return ["the weights were trained without numbers: the network has yet to learn them"]


def start_numbers_afresh(weights: dict[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    """Weights that do not say which numbers they know, and know more or fewer."""
    drop_numbers(weights)
    add_numbers(weights, own)
    return ["the numbers of labels.csv are others than those of the weights: they start afresh"]


def drop_numbers(weights: dict[str, Tensor]) -> list[str]:
    """Weights with numbers, for a network without. What they do where no number is known is added
    to the bias before it.
    """
    hidden = F.silu(weights.pop(NUMBERS_IN_BIAS))
    unknown = F.linear(hidden, weights.pop(NUMBERS_OUT), weights.pop(NUMBERS_OUT_BIAS))
    del weights[NUMBERS_IN]
    bias = weights.get(TIME_BIAS)
    if bias is not None and bias.shape == unknown.shape:
        weights[TIME_BIAS] = bias + unknown.to(bias)
    return ["this network is told no numbers: it starts as what the weights do where none is known"]


def match_numbers_by_name(
    weights: dict[str, Tensor], numbers: Sequence[Mapping], previous: Sequence[Mapping]
) -> list[str]:
    """A number keeps what the weights know of it where they know one of the same name, at whichever
    place, and however it was scaled: an age is the same age. New ones count nothing at first.
    """
    if list(map(dict, numbers)) == list(map(dict, previous)):
        return []
    old = weights[NUMBERS_IN]
    values, is_there = old.chunk(2, dim=1)
    new_values, new_is_there = old.new_zeros(2, len(old), len(numbers))
    places = {composed(each["name"]): place for place, each in enumerate(previous)}
    names = [composed(each["name"]) for each in numbers]
    for place, (name, number) in enumerate(zip(names, numbers, strict=True)):
        if name not in places:
            continue
        before = previous[places[name]]
        value = values[:, places[name]]
        # (raw - mean) / std of then, by that of now
        new_values[:, place] = value * (number["std"] / before["std"])
        moved = value * ((number["mean"] - before["mean"]) / before["std"])
        new_is_there[:, place] = is_there[:, places[name]] + moved
    weights[NUMBERS_IN] = torch.cat([new_values, new_is_there], dim=1)
    new = [name for name in names if name not in places]
    gone = [name for name in places if name not in names]
    said = []
    if new:
        said.append(f"numbers that are new, and count nothing at first: {listed(new)}")
    if gone:
        said.append(f"numbers of the weights that this set does not have: {listed(gone)}")
    if not said:
        said.append("numbers are matched by name, and scaled as this set's are")
    return said


# --- Grey and colour ---


def adapt_channels(weights: dict[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    """Change the first and the last convolution, in place, where the weights are for grey pictures
    and the network for colour ones, or the reverse. On grey pictures the network does what it did.
    """
    if not differ_in_channels_only(weights, own):
        return []
    before, now = channels_of(weights), channels_of(own)
    if (before, now) == ((1, 1), (3, 3)):
        grey_to_colour(weights)
        return [
            "the weights are for grey pictures, this network is for colour: its first and last "
            "convolution are adapted, so that grey pictures give the same output as before"
        ]
    if (before, now) == ((3, 3), (1, 1)):
        colour_to_grey(weights)
        return [
            "the weights are for colour pictures, this network is for grey: its first and last "
            "convolution are adapted, so that grey pictures give the mean of the three colours"
        ]
    return []


def adapt_condition(weights: dict[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    """Change what the first convolution does with conditions, in place, where the network has more
    or fewer channels of them: new ones count nothing at first.
    """
    if not differ_in_channels_only(weights, own):
        return []
    (taken, images), (wanted, own_images) = channels_of(weights), channels_of(own)
    before, now = taken - images, wanted - own_images
    if images != own_images or before == now or min(before, now) < 0:
        return []
    kernel = weights[CONV_IN][:, :images]
    new = kernel.new_zeros(kernel.shape[0], now, *kernel.shape[2:])
    weights[CONV_IN] = torch.cat([kernel, new], dim=1)
    if now == 0:
        return ["the weights are for images with conditions, this run is without"]
    return ["the weights were trained without these conditions: the network has yet to learn them"]


def channels_of(weights: Mapping[str, Tensor]) -> tuple[int, int]:
    """The channels of the images that go in and come out."""
    return weights[CONV_IN].shape[1], weights[CONV_OUT].shape[0]


def differ_in_channels_only(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> bool:
    """Whether both have the two convolutions, and these are alike but for the images' channels.

    So nothing larger than the network is made: a small file can describe a huge tensor.
    """
    for key, channel_dim in ((CONV_IN, 1), (CONV_OUT, 0), (CONV_OUT_BIAS, 0)):
        if key not in weights or key not in own or not weights[key].is_floating_point():
            return False
        before, now = list(weights[key].shape), list(own[key].shape)
        if len(before) != len(now):
            return False
        del before[channel_dim], now[channel_dim]
        if before != now:
            return False
    return weights[CONV_OUT_BIAS].shape[0] == weights[CONV_OUT].shape[0]


def grey_to_colour(weights: dict[str, Tensor]) -> None:
    """Three equal channels in, a third of the weight for each; three equal channels out."""
    weights[CONV_IN] = weights[CONV_IN].repeat(1, 3, 1, 1) / 3
    weights[CONV_OUT] = weights[CONV_OUT].repeat(3, 1, 1, 1)
    weights[CONV_OUT_BIAS] = weights[CONV_OUT_BIAS].repeat(3)


def colour_to_grey(weights: dict[str, Tensor]) -> None:
    """The grey channel stands for three equal ones; what comes out is the mean of three."""
    weights[CONV_IN] = weights[CONV_IN].sum(1, keepdim=True)
    weights[CONV_OUT] = weights[CONV_OUT].mean(0, keepdim=True)
    weights[CONV_OUT_BIAS] = weights[CONV_OUT_BIAS].mean(0, keepdim=True)


# --- Classes ---


def adapt_labels(
    weights: dict[str, Tensor],
    own: Mapping[str, Tensor],
    class_names: Sequence[str],
    previous: Sequence[str] | None,
    source: Path | str,
) -> list[str]:
    """Change the table of labels, in place, from the classes of the weights to those of the
    network.
    """
    before, now = weights.get(LABEL_TABLE), own.get(LABEL_TABLE)
    if before is None and now is None:
        return []
    if before is None:
        return add_label_table(weights, own)
    if before.ndim != 2 or len(before) < 2:
        return []  # no table of labels: what does not fit is named afterwards
    if now is None:
        return drop_label_table(weights)
    if before.shape[1] != now.shape[1]:
        return []  # another width: named afterwards
    if not previous or not class_names:
        return match_rows_by_number(weights, len(now) - 1)
    if len(previous) != len(before) - 1:
        raise UserError(
            f"{source} names {len(previous)} classes, but its weights are for {len(before) - 1}"
        )
    return match_rows_by_name(weights, class_names, previous)


def add_label_table(weights: dict[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    """Weights without classes, for a network with them. The rows start at zero: so each class
    starts as what the weights have learned, and random rows would disturb that.
    """
    weights[LABEL_TABLE] = torch.zeros_like(own[LABEL_TABLE])
    return ["the weights were trained without classes: the label table is new and starts at zero"]


def drop_label_table(weights: dict[str, Tensor]) -> list[str]:
    """Weights with classes, for a network without. The row of the null label is added to the bias
    before it, so that the network starts as what the weights do without a label.
    """
    null = weights.pop(LABEL_TABLE)[-1]
    bias = weights.get(TIME_BIAS)
    if bias is not None and bias.shape == null.shape:
        weights[TIME_BIAS] = bias + null.to(bias)
    return [
        "this network has no classes: the table of labels is dropped, and the network starts as "
        "what the weights do without a label"
    ]


def match_rows_by_number(weights: dict[str, Tensor], count: int) -> list[str]:
    """Weights that name no classes: the rows stay where there are as many classes, else only that
    of the null label does.
    """
    before = weights[LABEL_TABLE]
    if len(before) == count + 1:
        return []
    weights[LABEL_TABLE] = label_rows(before, [None] * count)
    return [
        f"the weights are for {len(before) - 1} classes without names, this set has {count}: all "
        "rows of the table of labels are new, and start as the null label"
    ]


def match_rows_by_name(
    weights: dict[str, Tensor], class_names: Sequence[str], previous: Sequence[str]
) -> list[str]:
    """A class keeps its row where the weights know one of the same name, at whichever place."""
    places = {composed(name): place for place, name in enumerate(previous)}
    names = [composed(name) for name in class_names]
    rows = [places.get(name) for name in names]
    if rows == list(range(len(previous))):
        return []
    weights[LABEL_TABLE] = label_rows(weights[LABEL_TABLE], rows)
    kept = [name for name in names if name in places]
    new = [name for name in names if name not in places]
    gone = [name for name in places if name not in names]
    said = [f"labels are matched by name: {len(kept)} of {len(names)} classes keep their row"]
    if new:
        said.append(f"classes that are new, and start as the null label: {listed(new)}")
    if gone:
        said.append(f"classes of the weights that this set does not have: {listed(gone)}")
    return said


def label_rows(table: Tensor, rows: Sequence[int | None]) -> Tensor:
    """A table of labels for other classes: the rows of these numbers, and the null row last.

    A class without a row (None) starts as the null row. That is what the network does where it is
    told nothing, so it knows how to draw an image from there; random rows would mean nothing to it.
    """
    null = len(table) - 1
    chosen = [null if row is None else row for row in rows]
    return table[[*chosen, null]]


def listed(names: Sequence[str]) -> str:
    return name_list([shown(name, 40) for name in names])
