"""A U-Net of CSP-Darknet stages (Wang et al. 1911.11929): cheaper per image than the residual U-Net."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model.modules.blocks import AttentionBlock, Downsample, ResBlock, Upsample, activation, group_norm, zero_init
from model.modules.embeddings import ConditionEmbedding
from model.networks.unet import check_image_size, config_of, resolve_levels


class CSPStage(nn.Module):
    """(B,C_in,H,W), condition (B,E) -> (B,C_out,H,W).

    Cross stage partial: one half of the channels runs through Darknet blocks (1x1, then 3x3), the other half goes past
    them, and a 1x1 convolution joins the two. The 3x3 convolutions see half the width, a quarter of the cost.
    """

    def __init__(self, c_in: int, c_out: int, blocks: list[ResBlock], norm: nn.Module, act: str, attention: nn.Module):
        super().__init__()
        self.half = c_out // 2
        self.split = nn.Conv2d(c_in, 2 * self.half, 1)
        self.blocks = nn.ModuleList(blocks)
        self.norm, self.act = norm, activation(act)
        self.join = nn.Conv2d(2 * self.half, c_out, 1)
        self.attention = attention

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        deep, past = self.split(x).split(self.half, dim=1)
        for block in self.blocks:
            deep = block(deep, emb)
        return self.attention(self.join(self.act(self.norm(torch.cat([deep, past], dim=1)))))


class CSPDarkUNet(nn.Module):
    """x_t (B,C,H,W), t (B,), labels (B,) or None -> prediction (B,C_out,H,W).

    One CSPStage of `blocks_per_level` Darknet blocks per level and direction; level i works at 1/2^i of the image's
    height and width with `channels * channel_mult[i]` channels. Arguments and errors as UNet's.
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int | None = None,
        num_classes: int | None = None,
        channels: int = 64,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        blocks_per_level: int = 2,
        attention_levels: Sequence[int] = (-1,),
        head_channels: int | None = 32,
        dropout: float = 0.0,
        time_embedding: str = "additive",
        act: str = "silu",
        norm_groups: int = 32,
        norm_eps: float = 1e-5,
    ):
        config = config_of("cspdarkunet", locals())
        super().__init__()
        self.config, self.num_classes = config, num_classes
        self.downsample_factor = 2 ** (len(channel_mult) - 1)
        emb_dim = 4 * channels
        widths = [channels * m for m in channel_mult]
        with_attention = resolve_levels(attention_levels, len(widths))

        def stage(c_in: int, i: int) -> CSPStage:
            width, half, attention = widths[i], widths[i] // 2, nn.Identity()
            if i in with_attention:
                attention = AttentionBlock(width, head_channels, norm_groups, norm_eps)
            settings = (dropout, time_embedding, act, norm_groups, norm_eps, (1, 3))
            blocks = [ResBlock(half, half, emb_dim, *settings) for _ in range(blocks_per_level)]
            return CSPStage(c_in, width, blocks, group_norm(norm_groups, 2 * half, norm_eps), act, attention)

        levels = range(len(widths))
        self.condition = ConditionEmbedding(channels, emb_dim, num_classes)
        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        self.down = nn.ModuleList(stage(widths[max(i - 1, 0)], i) for i in levels)
        self.downsample = nn.ModuleList(Downsample(widths[i]) for i in levels[:-1])
        self.middle = stage(widths[-1], levels[-1])
        self.up = nn.ModuleList(stage(widths[i] + widths[min(i + 1, levels[-1])], i) for i in levels)
        self.upsample = nn.ModuleList(Upsample(widths[i]) for i in levels[1:])
        self.norm_out = group_norm(norm_groups, widths[0], norm_eps)
        self.conv_out = zero_init(nn.Conv2d(widths[0], out_channels or in_channels, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        check_image_size(*x.shape[-2:], self.downsample_factor)
        emb = self.condition(t, labels)  # (B, 4 * channels)
        h = self.conv_in(x)  # (B, widths[0], H, W)
        skips = []
        for i, stage in enumerate(self.down):
            h = stage(h, emb)  # (B, widths[i], H/2^i, W/2^i)
            skips.append(h)
            if i < len(self.downsample):
                h = self.downsample[i](h)
        h = self.middle(h, emb)
        for i in reversed(range(len(self.up))):
            h = self.up[i](torch.cat([h, skips[i]], dim=1), emb)
            if i > 0:
                h = self.upsample[i - 1](h)
        return self.conv_out(nn.functional.silu(self.norm_out(h)))  # (B, C_out, H, W)
