"""EfficientNet-Lite0 up to its pooled features: what images are compared by.

Tan & Le 1905.11946 without squeeze-and-excitation and with ReLU6, as TensorFlow defines it:
https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite
"""

import math
import re
from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

FEATURES = 1280
NORM_EPS = 1e-3  # TensorFlow's; torch has 1e-5

# The blocks: how many, kernel, stride of the first, widening within a block, channels put out.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM_CHANNELS = 32

# Our names of layers, and those in published weights.
OUTER_NAMES = {
    "_conv_stem": "stem.conv",
    "_bn0": "stem.norm",
    "_conv_head": "head.conv",
    "_bn1": "head.norm",
}
BLOCK_NAMES = {
    "_expand_conv": "expand.conv",
    "_bn0": "expand.norm",
    "_depthwise_conv": "depthwise.conv",
    "_bn1": "depthwise.norm",
    "_project_conv": "project.conv",
    "_bn2": "project.norm",
}
CLASSIFIER = "_fc"  # the layer behind the features
BLOCK_KEY = re.compile(r"_blocks\.(\d+)\.(\w+)\.(\w+)")


class EfficientNetLite0(nn.Module):
    """Images (B,3,H,W), normalised with ImageNet's mean and std -> features (B,1280)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNorm(3, STEM_CHANNELS, kernel=3, stride=2)
        blocks = []
        channels = STEM_CHANNELS
        for count, kernel, first_stride, widening, channels_out in STAGES:
            for number in range(count):
                stride = first_stride if number == 0 else 1
                blocks.append(Block(channels, channels_out, kernel, stride, widening))
                channels = channels_out
        self.blocks = nn.Sequential(*blocks)
        self.head = ConvNorm(channels, FEATURES, kernel=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.stem(x))
        x = self.blocks(x)
        x = F.relu6(self.head(x))
        return x.mean(dim=(2, 3))

    def activations(self, x: Tensor) -> list[Tensor]:
        """Images (B,3,H,W) -> the last features at 1/2, 1/4, 1/8, 1/16 and 1/32 of their size."""
        kept = []
        x = F.relu6(self.stem(x))
        for block in self.blocks:
            assert isinstance(block, Block)
            if block.depthwise.stride > 1:
                kept.append(x)
            x = block(x)
        return [*kept, x]


class Block(nn.Module):
    """Inverted residual: widen, filter each channel, narrow again (1801.04381)."""

    def __init__(self, channels: int, channels_out: int, kernel: int, stride: int, widening: int):
        super().__init__()
        wide = channels * widening
        self.expand = ConvNorm(channels, wide, kernel=1) if widening > 1 else None
        self.depthwise = ConvNorm(wide, wide, kernel, stride, groups=wide)
        self.project = ConvNorm(wide, channels_out, kernel=1)
        self.has_skip = stride == 1 and channels == channels_out

    def forward(self, x: Tensor) -> Tensor:
        y = x
        if self.expand is not None:
            y = F.relu6(self.expand(y))
        y = F.relu6(self.depthwise(y))
        y = self.project(y)
        return x + y if self.has_skip else y


class ConvNorm(nn.Module):
    """A convolution padded as TensorFlow's SAME, then batch normalisation."""

    def __init__(
        self, channels: int, channels_out: int, kernel: int, stride: int = 1, groups: int = 1
    ):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels_out, kernel, stride, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(channels_out, eps=NORM_EPS)
        self.kernel = kernel
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        top, bottom = same_padding(x.shape[-2], self.kernel, self.stride)
        left, right = same_padding(x.shape[-1], self.kernel, self.stride)
        return self.norm(self.conv(F.pad(x, (left, right, top, bottom))))


def same_padding(length: int, kernel: int, stride: int) -> tuple[int, int]:
    """Zeros before and behind `length` pixels, so that ceil(length / stride) come out.

    An odd number has one more behind: torch's own padding would shift the picture.
    """
    length_out = math.ceil(length / stride)
    total = max((length_out - 1) * stride + kernel - length, 0)
    before = total // 2
    return before, total - before


def renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published weights under our names, without the classifier. KeyError for an unknown name."""
    ours = {}
    for key, tensor in weights.items():
        layer, _, rest = key.partition(".")
        if layer == CLASSIFIER:
            continue
        found = BLOCK_KEY.fullmatch(key)
        if found:
            number, layer, parameter = found.groups()
            ours[f"blocks.{number}.{BLOCK_NAMES[layer]}.{parameter}"] = tensor
        else:
            ours[f"{OUTER_NAMES[layer]}.{rest}"] = tensor
    return ours
