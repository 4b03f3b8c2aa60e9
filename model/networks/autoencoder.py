"""The autoencoder of latent diffusion (Rombach et al. 2112.10752): images <-> small latents."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.modules.layers import GroupNorm, activation
from model.modules.norm_act import SILU, norm_act
from model.modules.resample import Downsample, Upsample
from model.networks.config import check_autoencoder_config, check_image_size

NORM_EPS = 1e-6
SMALLEST_LOGVAR, LARGEST_LOGVAR = -30.0, 20.0


class ResBlock(nn.Module):
    """(B,C_in,H,W) -> (B,C_out,H,W): two convolutions of 3x3 and a residual."""

    def __init__(self, c_in: int, c_out: int, groups: int, act: str):
        super().__init__()
        self.act = activation(act)
        self.norm1 = GroupNorm(groups, c_in, NORM_EPS)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.norm2 = GroupNorm(groups, c_out, NORM_EPS)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.conv_shortcut = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(norm_act(self.norm1, self.act, x))
        h = self.conv2(norm_act(self.norm2, self.act, h))
        return self.conv_shortcut(x) + h


class Attention(nn.Module):
    """(B,C,H,W) -> (B,C,H,W): GroupNorm, attention with one head over H*W positions, residual."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.group_norm = GroupNorm(groups, channels, NORM_EPS)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])  # a list in diffusers' names

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)  # (B, HW, C)
        # As (B, one head, HW, C), the shape for which torch has kernels without the HW x HW matrix.
        q, k, v = (layer(tokens)[:, None] for layer in (self.to_q, self.to_k, self.to_v))
        mixed = F.scaled_dot_product_attention(q, k, v)[:, 0]
        return x + self.to_out[0](mixed).transpose(1, 2).reshape(x.shape)


class MidBlock(nn.Module):
    """(B,C,H,W) -> (B,C,H,W): two residual blocks, attention between them where it is asked for."""

    def __init__(self, channels: int, groups: int, act: str, attends: bool):
        super().__init__()
        self.resnets = nn.ModuleList(ResBlock(channels, channels, groups, act) for _ in range(2))
        self.attentions = nn.ModuleList([Attention(channels, groups)] if attends else [])

    def forward(self, x: Tensor) -> Tensor:
        x = self.resnets[0](x)
        for attention in self.attentions:
            x = attention(x)
        return self.resnets[1](x)


class Level(nn.Module):
    """(B,C_in,H,W) -> (B,C_out,H',W'): residual blocks, then half (`down`) or twice (`up`) the
    height and width, or neither.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        blocks: int,
        groups: int,
        act: str,
        down: bool = False,
        up: bool = False,
    ):
        super().__init__()
        self.resnets = nn.ModuleList(
            ResBlock(c_in if i == 0 else c_out, c_out, groups, act) for i in range(blocks)
        )
        self.downsamplers = nn.ModuleList([Downsample(c_out, asymmetric=True)] if down else [])
        self.upsamplers = nn.ModuleList([Upsample(c_out)] if up else [])

    def forward(self, x: Tensor) -> Tensor:
        for layer in (*self.resnets, *self.downsamplers, *self.upsamplers):
            x = layer(x)
        return x


class Encoder(nn.Module):
    """Images (B,C_in,H,W) -> (B,C_out,H/f,W/f), f = 2^(levels - 1)."""

    def __init__(
        self,
        c_in: int,
        c_out: int,
        widths: Sequence[int],  # of the levels, from the image's resolution downwards
        blocks: int,  # of each level
        groups: int,
        act: str,
        mid_attends: bool,
    ):
        super().__init__()
        self.conv_in = nn.Conv2d(c_in, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        before = widths[0]
        for i, width in enumerate(widths):
            down = i < len(widths) - 1
            self.down_blocks.append(Level(before, width, blocks, groups, act, down=down))
            before = width
        self.mid_block = MidBlock(before, groups, act, mid_attends)
        self.conv_norm_out = GroupNorm(groups, before, NORM_EPS)
        self.conv_out = nn.Conv2d(before, c_out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)  # (B, widths[0], H, W)
        for level in self.down_blocks:
            h = level(h)
        h = self.mid_block(h)  # (B, widths[-1], H/f, W/f)
        return self.conv_out(norm_act(self.conv_norm_out, SILU, h))


class Decoder(nn.Module):
    """Latents (B,C_in,h,w) -> images (B,C_out,fh,fw); the arguments are the encoder's."""

    def __init__(
        self,
        c_in: int,
        c_out: int,
        widths: Sequence[int],
        blocks: int,
        groups: int,
        act: str,
        mid_attends: bool,
    ):
        super().__init__()
        before = widths[-1]
        self.conv_in = nn.Conv2d(c_in, before, 3, padding=1)
        self.mid_block = MidBlock(before, groups, act, mid_attends)
        self.up_blocks = nn.ModuleList()
        for i, width in enumerate(reversed(widths)):
            up = i < len(widths) - 1
            self.up_blocks.append(Level(before, width, blocks, groups, act, up=up))
            before = width
        self.conv_norm_out = GroupNorm(groups, before, NORM_EPS)
        self.conv_out = nn.Conv2d(before, c_out, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid_block(self.conv_in(z))  # (B, widths[-1], h, w)
        for level in self.up_blocks:
            h = level(h)  # at last (B, widths[0], fh, fw)
        return self.conv_out(norm_act(self.conv_norm_out, SILU, h))


class Autoencoder(nn.Module):
    """Images (B,C,H,W) in [-1, 1] -> latents (B,c,H/f,W/f), f = `downsample_factor` -> images.

    Structure, names of weights and words of the config are those of diffusers' AutoencoderKL, so
    that weights can go back and forth. With the defaults f is 4, and there are two residual blocks
    a level, as in the published networks. Raises ValueError at construction for options out of
    bounds.
    """

    name = "autoencoder"

    def __init__(
        self,
        in_channels: int = 3,
        latent_channels: int = 4,
        block_out_channels: Sequence[int] = (64, 128, 256),  # width of each level
        layers_per_block: int = 2,  # residual blocks a level; the decoder has one more
        norm_num_groups: int = 32,
        act_fn: str = "silu",  # inside the residual blocks: gelu, silu, relu, relu6, lrelu
        mid_block_add_attention: bool = True,
        use_quant_conv: bool = True,  # a 1x1 convolution behind the encoder
        use_post_quant_conv: bool = True,  # and one before the decoder
    ):
        config: dict[str, Any] = {
            "name": self.name,
            "in_channels": in_channels,
            "latent_channels": latent_channels,
            "block_out_channels": block_out_channels,
            "layers_per_block": layers_per_block,
            "norm_num_groups": norm_num_groups,
            "act_fn": act_fn,
            "mid_block_add_attention": mid_block_add_attention,
            "use_quant_conv": use_quant_conv,
            "use_post_quant_conv": use_post_quant_conv,
        }
        check_autoencoder_config(config)
        super().__init__()
        widths = list(block_out_channels)
        self.config = {**config, "block_out_channels": widths}
        self.in_channels = in_channels
        self.latent_channels = latent_channels
        self.downsample_factor = 2 ** (len(widths) - 1)

        moments = 2 * latent_channels  # mean and log-variance
        shared = (norm_num_groups, act_fn, mid_block_add_attention)
        self.encoder = Encoder(in_channels, moments, widths, layers_per_block, *shared)
        self.decoder = Decoder(latent_channels, in_channels, widths, layers_per_block + 1, *shared)
        self.quant_conv = nn.Conv2d(moments, moments, 1) if use_quant_conv else nn.Identity()
        self.post_quant_conv = (
            nn.Conv2d(latent_channels, latent_channels, 1) if use_post_quant_conv else nn.Identity()
        )

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B,C,H,W) -> mean and log-variance of the posterior, (B,c,H/f,W/f) each.

        Sides that f does not divide are rounded down.
        """
        mean, logvar = self.quant_conv(self.encoder(x)).chunk(2, dim=1)
        return mean, logvar.clamp(SMALLEST_LOGVAR, LARGEST_LOGVAR)

    def decode(self, z: Tensor) -> Tensor:
        """Latents (B,c,h,w) -> images (B,C,fh,fw), about in [-1, 1], not clamped."""
        return self.decoder(self.post_quant_conv(z))

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """x (B,C,H,W), standard normal noise (B,c,H/f,W/f) -> x_hat (B,C,H,W), mean, log-variance.

        What is decoded is a draw from the posterior, mean + std * noise; without noise, the mean.
        Raises ValueError for an image size that is not a multiple of f.
        """
        check_image_size(x.shape[-2], x.shape[-1], self.downsample_factor)
        mean, logvar = self.encode(x)
        z = mean if noise is None else mean + torch.exp(logvar / 2) * noise
        return self.decode(z), mean, logvar
