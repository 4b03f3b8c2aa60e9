"""Group norm and activation as one operation, which keeps its input alone for the backward pass.

As three operations (norm, scale and shift by the condition, SiLU) each keeps what it was given,
which is more than half of all that a residual block keeps. Here these are computed once more in the
backward pass instead: they are cheap beside the convolutions between which they stand.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

SILU = nn.SiLU()  # for what has no activation layer of its own
DEVICES = ("cpu", "cuda", "meta")  # that have torch's backward pass of a group norm
aten = torch.ops.aten


def norm_act(
    norm: nn.Module,
    act: nn.Module,
    x: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
) -> Tensor:
    """act(norm(x) * scale + shift), (B,C,H,W); scale and shift (B,C,1,1), or neither.

    Results and gradients are those of the three operations, to the bit. They are one for a group
    norm and SiLU, where there are gradients.
    """
    if not (isinstance(norm, nn.GroupNorm) and isinstance(act, nn.SiLU)):
        return act(_modulated(norm(x), scale, shift))
    if not torch.is_grad_enabled():
        return F.silu(_modulated_in_place(norm(x), scale, shift), inplace=True)
    if x.device.type not in DEVICES:
        return F.silu(_modulated(norm(x), scale, shift))
    return _NormSilu.apply(x, norm.weight, norm.bias, scale, shift, norm.num_groups, norm.eps)


def _modulated(x: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    """x * scale + shift, or x itself where there is neither."""
    if scale is None or shift is None:
        return x
    return torch.addcmul(shift, x, scale)


def _modulated_in_place(x: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    """The same, written over x, where there are no gradients."""
    if scale is None or shift is None:
        return x
    return torch.addcmul(shift, x, scale, out=x)


class _NormSilu(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        scale: Tensor | None,
        shift: Tensor | None,
        groups: int,
        eps: float,
    ) -> Tensor:
        ctx.groups, ctx.eps = groups, eps
        normed, mean, rstd = _group_norm(_prepared(x, weight), weight, bias, groups, eps)
        ctx.save_for_backward(x, weight, bias, mean, rstd, scale, shift)
        return F.silu(_modulated_in_place(normed, scale, shift), inplace=True).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, rstd, scale, shift = ctx.saved_tensors
        prepared = _prepared(x, weight)
        normed, _, _ = _group_norm(prepared, weight, bias, ctx.groups, ctx.eps)
        h = _modulated(normed, scale, shift)

        # What was computed here is written over: fresh memory would cost more than the arithmetic.
        grad = aten.silu_backward.grad_input(grad.to(h.dtype), h, grad_input=h)
        scale_grad = shift_grad = None
        if scale is not None:
            shift_grad = grad.sum((2, 3), keepdim=True).to(scale.dtype)
            scale_grad = normed.mul_(grad).sum((2, 3), keepdim=True).to(scale.dtype)
            grad = grad.mul_(scale)
        x_grad, weight_grad, bias_grad = aten.native_group_norm_backward(
            grad.contiguous(memory_format=_layout(prepared)),
            prepared,
            mean,
            rstd,
            weight,
            *_sizes(x),
            ctx.groups,
            [True, True, True],
        )
        return x_grad.to(x.dtype), weight_grad, bias_grad, scale_grad, shift_grad, None, None


def _group_norm(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The group norm, its means and its inverse standard deviations."""
    return torch.native_group_norm(x, weight, bias, *_sizes(x), groups, eps)


def _sizes(x: Tensor) -> tuple[int, int, int]:
    """Images, channels, places."""
    images, channels, height, width = x.shape
    return images, channels, height * width


def _prepared(x: Tensor, weight: Tensor) -> Tensor:
    """x as torch's group norm takes it. Under autocast it stays in 16 bits on a CPU, and elsewhere
    it is computed in the weights' numbers.
    """
    if not _is_on_cpu(x):
        x = x.to(weight.dtype)
    return x.contiguous(memory_format=_layout(x))


def _layout(x: Tensor) -> torch.memory_format:
    """On a CPU both layouts have kernels, elsewhere one has. A slice of channels lies as the whole,
    with gaps.
    """
    is_last = x.stride(1) == 1 and x.shape[1] > 1 and not x.is_contiguous()
    return torch.channels_last if is_last and _is_on_cpu(x) else torch.contiguous_format


def _is_on_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu"
