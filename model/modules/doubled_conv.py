"""A convolution of an image that was doubled by nearest neighbour, without doubling it.

In the doubled image each pixel stands four times, so a kernel of 3 x 3 meets the same pixel up to
four times. With the weights that meet it added up beforehand, each pixel of the result is made of
2 x 2 pixels of the small image, by one of four kernels: one for each of the four places (phases)
that a pixel of the small image becomes. That takes 16 multiplications for each of its pixels
instead of 36.

Two forms of it are used, each where it was the faster one: a transposed convolution of 4 x 4,
stride 2, and a convolution of 2 x 2 with four times the channels, whose phases are then woven into
one image.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_weight

STRIDE = 2
PADDING = 1
PHASES = STRIDE**2


def doubled_conv(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """conv(nearest neighbour at twice the size): (B,C,H,W) -> (B,C_out,2H,2W), up to rounding.

    `conv` is of 3 x 3, stride 1, padding 1.
    """
    # On a CPU alone. Compilers and exporters get the two operations, which they know better.
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        if x.dtype == torch.float32:
            return _TransposedConv.apply(x, transposed_kernel(conv.weight), conv.bias)
        if x.dtype == torch.bfloat16:
            return conv_of_phases(x, conv)
    return conv(F.interpolate(x, scale_factor=float(STRIDE), mode="nearest"))


def sums_of_weights(weight: Tensor) -> Tensor:
    """(C_out,C,3,3) -> (C_out,C,4,4): along both dimensions a, b, c become a, a + b, b + c, c. The
    first and the third are what the first copy of a pixel meets, the others meet the second one.

    They lie in memory with the channels last, where torch's pooling is several times as fast.
    """
    weight = weight.contiguous(memory_format=torch.channels_last)
    return F.avg_pool2d(weight, 2, stride=1, padding=1, divisor_override=1)


# --- One transposed convolution: in fp32 ---


def transposed_kernel(weight: Tensor) -> Tensor:
    """(C_out,C,3,3) -> (C,C_out,4,4): what the transposed convolution multiplies with."""
    return sums_of_weights(weight).flip(2, 3).transpose(0, 1)


class _TransposedConv(torch.autograd.Function):
    """The transposed convolution. Torch's own gradient of the kernel takes twice as long in the
    channels-last layout.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, kernel)
        ctx.has_bias = bias is not None
        return F.conv_transpose2d(x, kernel, bias, STRIDE, PADDING)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, kernel = ctx.saved_tensors
        x_grad = kernel_grad = None
        if ctx.needs_input_grad[0]:
            x_grad = F.conv2d(grad, kernel, None, STRIDE, PADDING)
        if ctx.needs_input_grad[1]:
            kernel_grad = conv2d_weight(grad, kernel.shape, x, STRIDE, PADDING)
        bias_grad = grad.sum((0, 2, 3)) if ctx.has_bias else None
        return x_grad, kernel_grad, bias_grad


# --- One convolution with the channels of all phases: in bf16, whose transposed ones are slow ---


def conv_of_phases(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """What `doubled_conv` returns, with the phases as channels of one convolution."""
    bias = None if conv.bias is None else conv.bias.repeat(PHASES)
    return _Woven.apply(F.conv2d(x, kernel_of_phases(conv.weight), bias, padding=PADDING))


def kernel_of_phases(weight: Tensor) -> Tensor:
    """(C_out,C,3,3) -> (4 C_out,C,2,2): the upper left phase, upper right, lower left, lower right.

    It is to be padded by one on all sides, so each phase is found one place further down where it
    is a lower one, and one further right where it is a right one.
    """
    c_out, c_in = weight.shape[:2]
    sums = sums_of_weights(weight).permute(0, 2, 3, 1).reshape(c_out, 2, STRIDE, 2, STRIDE, c_in)
    kernel = sums.permute(2, 4, 0, 1, 3, 5).reshape(PHASES * c_out, 2, 2, c_in)
    return kernel.permute(0, 3, 1, 2).contiguous(memory_format=layout_of(weight))


def layout_of(values: Tensor) -> torch.memory_format:
    is_last = values.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if is_last else torch.contiguous_format


def _places(phases: Tensor) -> Tensor:
    """Phases (B,4C,H+1,W+1) as the places of the image that they become: a view (B,C,H,2,W,2)."""
    images, channels, height, width = phases.shape
    channels //= PHASES
    image, channel, row, column = phases.stride()
    size = (images, channels, height - 1, STRIDE, width - 1, STRIDE)
    # From an upper phase to the lower one it is two phases and a row, from a left one to the right
    # one it is a phase and a column.
    lower, right = row + 2 * channels * channel, column + channels * channel
    return phases.as_strided(size, (image, channel, row, lower, column, right))


class _Woven(torch.autograd.Function):
    """Phases (B,4C,H+1,W+1) -> the image (B,C,2H,2W), in the same memory layout."""

    @staticmethod
    def forward(ctx: Any, phases: Tensor) -> Tensor:
        ctx.shape, ctx.strides = phases.shape, phases.stride()
        places = _places(phases)
        images, channels, height, _, width, _ = places.shape
        image = torch.empty(
            (images, channels, STRIDE * height, STRIDE * width),
            dtype=phases.dtype,
            device=phases.device,
            memory_format=layout_of(phases),
        )
        image.view(places.shape).copy_(places)
        return image

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        phases = torch.empty_strided(
            ctx.shape, ctx.strides, dtype=grad.dtype, device=grad.device
        ).zero_()  # at its edges each phase has a row and a column that are not used
        places = _places(phases)
        places.copy_(grad.reshape(places.shape))
        return phases
