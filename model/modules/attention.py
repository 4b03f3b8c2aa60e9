"""Self-attention over the positions of a feature map."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.modules.layers import zero_init

# On a CPU, up to so many positions, attention written out is faster than torch's fused kernel: in
# 16 bits, where the kernel's backward pass is slow, and in training in fp32.
FEW_POSITIONS = 256
FEW_POSITIONS_FP32 = 144


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, each (B, heads, L, d), with memory that grows as L where there
    are many positions.
    """
    if not _is_faster_written_out(q):
        return F.scaled_dot_product_attention(q, k, v)
    b, heads, length, d = q.shape
    q, k, v = (each.reshape(b * heads, length, d) for each in (q, k, v))
    nothing = q.new_empty(1, 1, 1)  # what the product would be added to
    weights = torch.baddbmm(nothing, q, k.mT, beta=0, alpha=d**-0.5)  # (B heads, L, L)
    mixed = torch.bmm(weights.softmax(-1).to(v.dtype), v)
    return mixed.view(b, heads, length, d)


def _is_faster_written_out(q: Tensor) -> bool:
    length = q.shape[-2]
    if q.device.type != "cpu":
        return False
    if q.dtype == torch.float32:
        return torch.is_grad_enabled() and length <= FEW_POSITIONS_FP32
    return length <= FEW_POSITIONS


class AttentionBlock(nn.Module):
    """(B,C,H,W) -> (B,C,H,W): GroupNorm, multi-head attention over H*W positions, residual.

    Raises ValueError where `head_channels` (None: one head) does not divide `channels`.
    """

    def __init__(self, channels: int, head_channels: int | None, norm: Callable[[int], nn.Module]):
        super().__init__()
        if head_channels is None:
            head_channels = channels
        if channels % head_channels:
            raise ValueError(
                f"head_channels {head_channels} does not divide the {channels} channels of "
                f"attention; {math.gcd(head_channels, channels)} does"
            )
        self.heads = channels // head_channels
        self.norm = norm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = zero_init(nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # (B, HW, C)
        qkv = self.qkv(tokens).view(b, h * w, 3, self.heads, c // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, HW, C/heads)
        mixed = attend(q, k, v)
        mixed = mixed.transpose(1, 2).reshape(b, h * w, c)
        return x + self.out(mixed).transpose(1, 2).reshape(b, c, h, w)
