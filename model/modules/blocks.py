"""The blocks that the networks are made of: residual block, attention, change of resolution."""

import math
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS = {"gelu": nn.GELU, "silu": nn.SiLU, "relu": nn.ReLU, "relu6": nn.ReLU6}
ACTIVATIONS["lrelu"] = lambda: nn.LeakyReLU(0.1)


def activation(name: str) -> nn.Module:
    if name not in ACTIVATIONS:
        raise ValueError(f"activation {name!r} is unknown; known are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]()


def group_norm(groups: int, channels: int, eps: float) -> nn.GroupNorm:
    """GroupNorm with `groups` groups, or where they do not divide the channels, the greatest common
    divisor.
    """
    return nn.GroupNorm(math.gcd(groups, channels), channels, eps)


def zero_init(layer: nn.Module) -> nn.Module:
    """Zero a layer's weight and bias, so that the branch it ends adds nothing at the start of
    training.
    """
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class ResBlock(nn.Module):
    """(B,C_in,H,W), condition (B,E) -> (B,C_out,H,W).

    time_embedding "additive" adds the projected condition before the second norm (DDPM);
    "scale_shift" scales and shifts the normalised features with it (ADM, Dhariwal & Nichol
    2105.05233). `norm` makes a layer from a number of channels; `kernels` are the sizes of the two
    convolutions: (3, 3), in Darknet's block (1, 3).
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        emb_dim: int,
        dropout: float,
        time_embedding: str,
        act: str,
        norm: Callable[[int], nn.Module],
        kernels: tuple[int, int],
    ):
        super().__init__()
        if time_embedding not in ("additive", "scale_shift"):
            raise ValueError(
                f"time_embedding is 'additive' or 'scale_shift', not {time_embedding!r}"
            )
        self.scale_shift = time_embedding == "scale_shift"
        self.act = activation(act)
        self.norm1 = norm(c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, kernels[0], padding=kernels[0] // 2)
        self.emb = nn.Linear(emb_dim, 2 * c_out if self.scale_shift else c_out)
        self.norm2 = norm(c_out)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zero_init(nn.Conv2d(c_out, c_out, kernels[1], padding=kernels[1] // 2))
        self.skip = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv1(self.act(self.norm1(x)))
        emb = self.emb(self.act(emb))[:, :, None, None]
        if self.scale_shift:
            scale, shift = emb.chunk(2, dim=1)
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(h + emb)
        return self.skip(x) + self.conv2(self.dropout(self.act(h)))


class AttentionBlock(nn.Module):
    """(B,C,H,W) -> (B,C,H,W): GroupNorm, multi-head attention over the H*W positions, added to the
    input.
    """

    def __init__(self, channels: int, head_channels: int | None, norm: Callable[[int], nn.Module]):
        super().__init__()
        if channels % (head_channels or channels):
            fits = math.gcd(head_channels, channels)
            raise ValueError(
                f"head_channels {head_channels} does not divide the {channels} of attention; {fits} does"
            )
        self.heads = channels // (head_channels or channels)
        self.norm = norm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = zero_init(nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # (B, HW, C)
        qkv = self.qkv(tokens).view(b, h * w, 3, self.heads, c // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, HW, C/heads)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, h * w, c)
        return x + self.out(mixed).transpose(1, 2).reshape(b, c, h, w)


class Downsample(nn.Module):
    """(B,C,H,W) -> (B,C,H/2,W/2), by stride 2. `asymmetric` pads right and below only, as the
    TensorFlow DDPM does.
    """

    def __init__(self, channels: int, asymmetric: bool = False):
        super().__init__()
        self.asymmetric = asymmetric
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=0 if asymmetric else 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.asymmetric else x)


class Upsample(nn.Module):
    """(B,C,H,W) -> (B,C,2H,2W): nearest neighbour, then a convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
