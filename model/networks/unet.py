"""The U-Net of DDPM (Ho et al. 2006.11239) and ADM (Dhariwal & Nichol 2105.05233)."""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.modules.attention import AttentionBlock
from model.modules.embeddings import ConditionEmbedding
from model.modules.layers import activation, group_norm, zero_init
from model.modules.norm_act import SILU, norm_act
from model.modules.resample import Downsample, Upsample
from model.modules.resblock import ResBlock
from model.networks.config import check_image_size, check_unet_config


class Stage(nn.Module):
    """A residual block and, on the levels that have it, attention."""

    def __init__(self, block: ResBlock, attention: nn.Module):
        super().__init__()
        self.block = block
        self.attention = attention

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.attention(self.block(x, emb))


class UNet(nn.Module):
    """x_t (B,C,H,W), t (B,), labels (B,) or None -> prediction (B,C_out,H,W).

    Labels may be rows (B,W) too: numbers and several labels, see `ConditionEmbedding`. In training
    on augmented images the network is told how each was changed: augmentation (B,A).

    Level i works at 1/2^i of the image's height and width with `channels * channel_mult[i]`
    channels. The structure is that of diffusers' UNet2DModel, so that weights can go back and
    forth. Raises ValueError at construction for widths that do not fit together, and at the call
    for an image size that is not a multiple of `downsample_factor`.
    """

    name = "unet"

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int | None = None,  # None: as in_channels
        num_classes: int | None = None,  # None: unconditional
        channels: int = 64,  # width of level 0
        channel_mult: Sequence[int] = (1, 2, 3, 4),  # width of each level in multiples of that
        blocks_per_level: int = 2,  # on the way down; one more on the way up
        attention_levels: Sequence[int] = (-1,),  # attention after each block; -1: the lowest level
        mid_attention: bool = True,  # attention between the two blocks in the middle
        head_channels: int | None = 32,  # None: one head
        dropout: float = 0.0,  # inside the residual blocks
        time_embedding: str = "additive",  # DDPM; ADM: "scale_shift"
        act: str = "silu",  # inside the residual blocks: gelu, silu, relu, relu6, lrelu
        norm_groups: int = 32,
        norm_eps: float = 1e-5,
        # Details in which published weights differ.
        asymmetric_padding: bool = False,
        freq_shift: float = 0.0,
        cos_first: bool = True,
        augmentation: int = 0,  # numbers that tell it how an image was augmented
        numbers: int = 0,  # that describe an image, beside its labels
    ):
        config: dict[str, Any] = {
            "name": self.name,
            "in_channels": in_channels,
            "out_channels": out_channels,
            "num_classes": num_classes,
            "channels": channels,
            "channel_mult": list(channel_mult),
            "blocks_per_level": blocks_per_level,
            "attention_levels": list(attention_levels),
            "mid_attention": mid_attention,
            "head_channels": head_channels,
            "dropout": dropout,
            "time_embedding": time_embedding,
            "act": act,
            "norm_groups": norm_groups,
            "norm_eps": norm_eps,
            "asymmetric_padding": asymmetric_padding,
            "freq_shift": freq_shift,
            "cos_first": cos_first,
            "augmentation": augmentation,
            "numbers": numbers,
        }
        check_unet_config(config)
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        self.numbers = numbers
        self.downsample_factor = 2 ** (len(channel_mult) - 1)
        self.emb_dim = 4 * channels
        self.checkpointed: set[str] = set()  # the stages whose activations are computed twice

        widths = [channels * mult for mult in channel_mult]
        attends = {level % len(widths) for level in attention_levels}
        self.condition = ConditionEmbedding(
            channels,
            self.emb_dim,
            num_classes,
            freq_shift,
            cos_first,
            augmentation,
            numbers,
        )
        self.act = activation(act)  # of the condition, once for all residual blocks
        self.conv_in = nn.Conv2d(in_channels, channels, 3, padding=1)

        # The way down. `skips` are the widths of the feature maps kept for the way up.
        self.down = nn.ModuleDict()
        width = channels
        skips = [channels]
        for i, level_width in enumerate(widths):
            for j in range(self.stages_per_level()):
                self.down[f"level{i}_block{j}"] = self.make_stage(width, level_width, i in attends)
                width = level_width
                skips.append(width)
            if i < len(widths) - 1:
                self.down[f"level{i}_downsample"] = Downsample(width, asymmetric_padding)
                skips.append(width)

        self.middle_in = self.make_stage(width, width, mid_attention)
        self.middle_out = self.make_stage(width, width, False)

        # The way up takes the kept feature maps, the last one first.
        self.up = nn.ModuleDict()
        for i, level_width in reversed(list(enumerate(widths))):
            for j in range(self.stages_per_level() + 1):
                c_in = width + skips.pop()
                self.up[f"level{i}_block{j}"] = self.make_stage(c_in, level_width, i in attends)
                width = level_width
            if i > 0:
                self.up[f"level{i}_upsample"] = Upsample(width)

        self.norm_out = self.make_norm(width)
        self.conv_out = zero_init(nn.Conv2d(width, out_channels or in_channels, 3, padding=1))

    # --- Memory ---

    def checkpoint_activations(self, levels: Collection[int]) -> None:
        """In training, keep no activations inside the stages of these levels (negative ones count
        from the lowest) for the backward pass, but compute them once more there (Chen et al.
        1604.06174): less memory, more time, the same gradients.

        Raises ValueError for a level that does not exist.
        """
        count = len(self.config["channel_mult"])
        for level in levels:
            if not -count <= level < count:
                raise ValueError(
                    f"level {level} does not exist: the network has levels 0 to {count - 1}"
                )
        prefixes = tuple(f"level{level % count}_" for level in levels)
        names = [*self.down, *self.up]
        self.checkpointed = {name for name in names if name.startswith(prefixes)}

    def run_stage(self, name: str, stage: nn.Module, h: Tensor, emb: Tensor) -> Tensor:
        if name in self.checkpointed and torch.is_grad_enabled():
            return checkpoint(stage, h, emb, use_reentrant=False)
        return stage(h, emb)

    # --- What a subclass may make differently ---

    def stages_per_level(self) -> int:
        return self.config["blocks_per_level"]

    def make_stage(self, c_in: int, c_out: int, attends: bool) -> nn.Module:
        block = self.make_block(c_in, c_out)
        attention = self.make_attention(c_out) if attends else nn.Identity()
        return Stage(block, attention)

    def make_block(self, c_in: int, c_out: int, kernels: tuple[int, int] = (3, 3)) -> ResBlock:
        return ResBlock(
            c_in,
            c_out,
            self.emb_dim,
            self.config["dropout"],
            self.config["time_embedding"],
            self.config["act"],
            self.make_norm,
            kernels,
        )

    def make_attention(self, channels: int) -> AttentionBlock:
        return AttentionBlock(channels, self.config["head_channels"], self.make_norm)

    def make_norm(self, channels: int) -> nn.GroupNorm:
        return group_norm(self.config["norm_groups"], channels, self.config["norm_eps"])

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        labels: Tensor | None = None,
        augmentation: Tensor | None = None,
    ) -> Tensor:
        check_image_size(x.shape[-2], x.shape[-1], self.downsample_factor)
        emb = self.act(self.condition(t, labels, augmentation))  # (B, emb_dim)
        h = self.conv_in(x)  # (B, channels, H, W)
        skips = [h]
        for name, stage in self.down.items():
            is_resampling = isinstance(stage, Downsample)
            h = stage(h) if is_resampling else self.run_stage(name, stage, h, emb)
            skips.append(h)
        h = self.middle_out(self.middle_in(h, emb), emb)  # (B, lowest width, H/factor, W/factor)
        for name, stage in self.up.items():
            if isinstance(stage, Upsample):
                h = stage(h)
            else:
                h = self.run_stage(name, stage, torch.cat([h, skips.pop()], dim=1), emb)
        return self.conv_out(norm_act(self.norm_out, SILU, h))  # (B, C_out, H, W)
