"""The U-Net of DDPM (Ho et al. 2006.11239) and ADM (Dhariwal & Nichol 2105.05233)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model.modules.blocks import (
    AttentionBlock,
    Downsample,
    ResBlock,
    Upsample,
    group_norm,
    zero_init,
)
from model.modules.embeddings import ConditionEmbedding


def config_of(name: str, arguments: dict) -> dict:
    """The plain dict of a network from the locals() at the top of its __init__. ValueError for
    values out of bounds.
    """
    given = {key: value for key, value in arguments.items() if key[0] != "_" and key != "self"}
    config = {
        key: list(value) if isinstance(value, tuple) else value for key, value in given.items()
    }
    bounds = {"in_channels": 64, "out_channels": 64, "num_classes": 1_000_000, "channels": 2048}
    bounds |= {"blocks_per_level": 16, "head_channels": 2048, "norm_groups": 2048}
    for key, high in bounds.items():
        value = config[key]
        if value is None and key in ("out_channels", "num_classes", "head_channels"):
            continue
        if type(value) is not int or not 1 <= value <= high:
            raise ValueError(
                f"network option {key} is a whole number from 1 to {high}, not {value!r}"
            )
    mult = config["channel_mult"]
    if not 1 <= len(mult) <= 8 or any(type(m) is not int or not 1 <= m <= 64 for m in mult):
        raise ValueError(
            f"network option channel_mult is 1 to 8 whole numbers from 1 to 64, not {mult!r}"
        )
    for level in config["attention_levels"]:
        if not -len(mult) <= level < len(mult):
            raise ValueError(
                f"attention level {level} does not exist: the network has levels 0 to {len(mult) - 1}"
            )
    if not 0 <= config["dropout"] < 1:
        raise ValueError(
            f"network option dropout is a probability below 1, not {config['dropout']!r}"
        )
    if config["channels"] % 2:
        raise ValueError(
            f"network option channels must be even (sine and cosine halves), not {config['channels']}"
        )
    return {"name": name, **config}


def check_image_size(h: int, w: int, factor: int) -> None:
    """Raise ValueError where the height or width of an image is not a multiple of a network's total
    stride.
    """
    if h % factor or w % factor:
        smaller = f"{max(h // factor, 1) * factor},{max(w // factor, 1) * factor}"
        larger = f"{-(-h // factor) * factor},{-(-w // factor) * factor}"
        raise ValueError(
            f"image size {h},{w}: both must be multiples of {factor}; {smaller} and {larger} would work"
        )


class Stage(nn.Module):
    """A residual block and, on the levels that have it, attention."""

    def __init__(self, block: ResBlock, attention: nn.Module):
        super().__init__()
        self.block, self.attention = block, attention

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.attention(self.block(x, emb))


class UNet(nn.Module):
    """x_t (B,C,H,W), t (B,), labels (B,) or None -> prediction (B,C_out,H,W).

    Level i works at 1/2^i of the image's height and width with `channels * channel_mult[i]`
    channels. The structure is that of diffusers' UNet2DModel, so that weights can go back and
    forth. ValueError at construction for widths that do not fit together, at the call for an image
    size that is not a multiple of `downsample_factor`.
    """

    name = "unet"

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int | None = None,  # None: as in_channels
        num_classes: int | None = None,  # None: unconditional
        channels: int = 64,  # width of level 0
        channel_mult: Sequence[int] = (
            1,
            2,
            3,
            4,
        ),  # width of each level, in multiples of `channels`
        blocks_per_level: int = 2,  # on the way down; one more on the way up
        attention_levels: Sequence[int] = (
            -1,
        ),  # attention after each block; -1 is the lowest level
        mid_attention: bool = True,  # attention between the two blocks in the middle
        head_channels: int | None = 32,  # None: one head
        dropout: float = 0.0,  # inside the residual blocks
        time_embedding: str = "additive",  # DDPM; ADM: "scale_shift"
        act: str = "silu",  # inside the residual blocks: gelu, silu, relu, relu6, lrelu
        norm_groups: int = 32,
        norm_eps: float = 1e-5,
        asymmetric_padding: bool = False,  # this and the next two: details in which published weights differ
        freq_shift: float = 0.0,
        cos_first: bool = True,
    ):
        config = config_of(self.name, locals())
        super().__init__()
        self.config, self.num_classes = config, num_classes
        self.downsample_factor = 2 ** (len(channel_mult) - 1)
        widths = [channels * m for m in channel_mult]
        attends = {level % len(widths) for level in attention_levels}
        self.condition = ConditionEmbedding(
            channels, 4 * channels, num_classes, freq_shift, cos_first
        )
        self.conv_in = nn.Conv2d(in_channels, channels, 3, padding=1)

        self.down = nn.ModuleDict()
        width, skips = (
            channels,
            [channels],
        )  # channels of the current feature map; of each one kept for the way up
        for i, level_width in enumerate(widths):
            for j in range(self.stages_per_level()):
                self.down[f"level{i}_block{j}"] = self.stage(width, level_width, i in attends)
                width = level_width
                skips.append(width)
            if i < len(widths) - 1:
                self.down[f"level{i}_downsample"] = Downsample(width, asymmetric_padding)
                skips.append(width)

        self.middle_in = self.stage(width, width, mid_attention)
        self.middle_out = self.stage(width, width, False)

        self.up = nn.ModuleDict()
        for i, level_width in reversed(list(enumerate(widths))):
            for j in range(self.stages_per_level() + 1):
                self.up[f"level{i}_block{j}"] = self.stage(
                    width + skips.pop(), level_width, i in attends
                )
                width = level_width
            if i > 0:
                self.up[f"level{i}_upsample"] = Upsample(width)

        self.norm_out = self.norm(width)
        self.conv_out = zero_init(nn.Conv2d(width, out_channels or in_channels, 3, padding=1))

    def stages_per_level(self) -> int:
        return self.config["blocks_per_level"]

    def stage(self, c_in: int, c_out: int, attends: bool) -> nn.Module:
        return Stage(self.block(c_in, c_out), self.attention(c_out) if attends else nn.Identity())

    def block(self, c_in: int, c_out: int, kernels: tuple[int, int] = (3, 3)) -> ResBlock:
        options = (self.config[key] for key in ("dropout", "time_embedding", "act"))
        return ResBlock(c_in, c_out, 4 * self.config["channels"], *options, self.norm, kernels)

    def attention(self, channels: int) -> AttentionBlock:
        return AttentionBlock(channels, self.config["head_channels"], self.norm)

    def norm(self, channels: int) -> nn.GroupNorm:
        return group_norm(self.config["norm_groups"], channels, self.config["norm_eps"])

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        check_image_size(*x.shape[-2:], self.downsample_factor)
        emb = self.condition(t, labels)  # (B, 4 * channels)
        h = self.conv_in(x)  # (B, channels, H, W)
        skips = [h]
        for stage in self.down.values():
            h = stage(h) if isinstance(stage, Downsample) else stage(h, emb)
            skips.append(h)
        h = self.middle_out(self.middle_in(h, emb), emb)  # (B, lowest width, H/factor, W/factor)
        for stage in self.up.values():
            h = (
                stage(h)
                if isinstance(stage, Upsample)
                else stage(torch.cat([h, skips.pop()], dim=1), emb)
            )
        return self.conv_out(nn.functional.silu(self.norm_out(h)))  # (B, C_out, H, W)
