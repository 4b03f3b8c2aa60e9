"""A convolution of an image that was doubled by nearest neighbour, without doubling it.

In the doubled image each pixel stands four times, so a kernel of 3 x 3 meets the same pixel up to
four times. With the weights that meet it added up beforehand, the two are one transposed
convolution of 4 x 4, stride 2, of the small image: 16 multiplications for each of its pixels
instead of 36.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_weight

STRIDE = 2
PADDING = 1


def doubled_conv(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """conv(nearest neighbour at twice the size): (B,C,H,W) -> (B,C_out,2H,2W), up to rounding.

    `conv` is of 3 x 3, stride 1, padding 1.
    """
    if not _pays(x):
        return conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
    return _TransposedConv.apply(x, transposed_kernel(conv.weight), conv.bias)


def transposed_kernel(weight: Tensor) -> Tensor:
    """(C_out,C,3,3) -> (C,C_out,4,4): what the transposed convolution multiplies with."""
    return _spread(_spread(weight, 2), 3).transpose(0, 1)


def _spread(weight: Tensor, dim: int) -> Tensor:
    """3 numbers along a dimension to 4: each of them meets a pixel and its copy, which lie side by
    side.
    """
    first, middle, last = weight.unbind(dim)
    return torch.stack([last, middle + last, first + middle, first], dim)


def _pays(x: Tensor) -> bool:
    """Where it was faster: on a CPU in fp32, by half. In bf16 it was slower. Compilers and
    exporters get the two operations, which they know better.
    """
    is_plain = not torch.compiler.is_compiling()
    return x.device.type == "cpu" and x.dtype == torch.float32 and is_plain


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
