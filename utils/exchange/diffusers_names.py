"""Our U-Net's weights under the names that they have in diffusers' UNet2DModel."""

from collections.abc import Iterator

from torch import Tensor, nn

TOP = {
    "condition.time_mlp.0": "time_embedding.linear_1",
    "condition.time_mlp.2": "time_embedding.linear_2",
    "condition.label": "class_embedding",
    "norm_out": "conv_norm_out",
}
IN_BLOCK = {
    "norm1": "norm1",
    "conv1": "conv1",
    "emb": "time_emb_proj",
    "norm2": "norm2",
    "conv2": "conv2",
    "skip": "conv_shortcut",
}
# The joint projection of q, k and v is three of theirs.
IN_ATTENTION = {
    "norm": ("group_norm",),
    "qkv": ("to_q", "to_k", "to_v"),
    "out": ("to_out.0",),
}
# Without a counterpart; it adds nothing to images that are not augmented, as none do in sampling.
ONLY_OURS = ("condition.augmentation.weight",)
IN_MIDDLE = {"middle_in": "0", "middle_out": "1"}


def diffusers_state(network: nn.Module) -> dict[str, Tensor]:
    """The state_dict of a UNet2DModel with the weights of our network."""
    state = {}
    weights = network.state_dict()
    for ours, names in diffusers_names(network):
        for name, part in zip(names, weights[ours].chunk(len(names)), strict=True):
            state[name] = part
    return state


def diffusers_names(network: nn.Module) -> Iterator[tuple[str, list[str]]]:
    """The name of each of our weights, and those of the parts that it has in diffusers, in order.

    network: a `model.networks.UNet`.
    """
    config: dict = network.config  # type: ignore[assignment]
    levels = len(config["channel_mult"])
    for name in network.state_dict():
        if name in ONLY_OURS:
            continue
        yield name, _names(name.split("."), levels)


def _names(parts: list[str], levels: int) -> list[str]:
    """Of the weight whose name has these parts."""
    first, *rest = parts
    if first in IN_MIDDLE:
        return _in_stage("mid_block", IN_MIDDLE[first], rest)
    if first not in ("down", "up"):
        *stem, leaf = parts
        layer = ".".join(stem)
        return [f"{TOP.get(layer, layer)}.{leaf}"]

    # Such as down.level0_block1 or up.level2_upsample; they count their levels up in order of use.
    level_name, what = rest[0].removeprefix("level").split("_")
    level = int(level_name)
    place = level if first == "down" else levels - 1 - level
    block = f"{first}_blocks.{place}"
    if what.endswith("sample"):
        return [".".join([block, f"{what}rs.0", *rest[1:]])]
    return _in_stage(block, what.removeprefix("block"), rest[1:])


def _in_stage(block: str, number: str, parts: list[str]) -> list[str]:
    """Of a weight in a residual block or in the attention behind it."""
    kind, layer, leaf = parts
    if kind == "block":
        return [f"{block}.resnets.{number}.{IN_BLOCK[layer]}.{leaf}"]
    return [f"{block}.attentions.{number}.{theirs}.{leaf}" for theirs in IN_ATTENTION[layer]]
