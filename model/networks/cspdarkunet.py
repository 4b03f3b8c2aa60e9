"""A U-Net of CSP-Darknet stages (Wang et al. 1911.11929), cheaper than the residual U-Net."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model.modules.layers import activation
from model.modules.norm_act import norm_act
from model.networks.unet import UNet


class CSPStage(nn.Module):
    """(B,C_in,H,W), activated condition (B,E) -> (B,C_out,H,W).

    Cross stage partial: one half of the channels runs through Darknet blocks (1x1, then 3x3), the
    other half goes past them, and a 1x1 convolution joins the two. The 3x3 convolutions see half
    the width, a quarter of the cost.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        blocks: Sequence[nn.Module],
        norm: nn.Module,
        act: str,
        attention: nn.Module,
    ):
        super().__init__()
        self.half_width = c_out // 2
        self.split = nn.Conv2d(c_in, 2 * self.half_width, 1)
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm
        self.act = activation(act)
        self.join = nn.Conv2d(2 * self.half_width, c_out, 1)
        self.attention = attention

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        deep, past = self.split(x).split(self.half_width, dim=1)  # each (B, C_out/2, H, W)
        for block in self.blocks:
            deep = block(deep, emb)
        joined = self.join(norm_act(self.norm, self.act, torch.cat([deep, past], dim=1)))
        return self.attention(joined)


class CSPDarkUNet(UNet):
    """UNet's frame, arguments and errors; a stage is a CSPStage of `blocks_per_level` blocks."""

    name = "cspdarkunet"

    def stages_per_level(self) -> int:
        return 1

    def make_stage(self, c_in: int, c_out: int, attends: bool) -> nn.Module:
        half = c_out // 2
        blocks = [
            self.make_block(half, half, kernels=(1, 3))
            for _ in range(self.config["blocks_per_level"])
        ]
        norm = self.make_norm(2 * half)
        attention = self.make_attention(c_out) if attends else nn.Identity()
        return CSPStage(c_in, c_out, blocks, norm, self.config["act"], attention)
