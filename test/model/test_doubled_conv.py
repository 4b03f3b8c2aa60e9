"""A convolution of a doubled image as one transposed convolution."""

import pytest
import torch
import torch.nn.functional as F

from model.modules import doubled_conv as module
from model.modules.doubled_conv import doubled_conv, transposed_kernel

LAYOUTS = [torch.contiguous_format, torch.channels_last]


def two_operations(x, conv):
    return conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def torch_alone(x, conv):
    return F.conv_transpose2d(x, transposed_kernel(conv.weight), conv.bias, 2, 1)


def results(function, x, conv):
    """The output and all gradients."""
    leaf = x.clone().requires_grad_()
    out = function(leaf, conv)
    torch.manual_seed(3)
    grad = torch.empty_like(out).copy_(torch.randn(out.shape))  # in the layout of the output
    return [out, *torch.autograd.grad(out, [leaf, *conv.parameters()], grad)]


def new_conv(c_in=6, c_out=10, bias=True, dtype=torch.float32):
    torch.manual_seed(0)
    return torch.nn.Conv2d(c_in, c_out, 3, padding=1, bias=bias).to(dtype)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [(1, 1), (2, 5), (7, 4)])
def test_the_numbers_are_those_of_two_operations(size, layout, bias):
    conv = new_conv(bias=bias).to(memory_format=layout)
    x = torch.randn(3, 6, *size).contiguous(memory_format=layout)
    wide = new_conv(bias=bias, dtype=torch.float64)
    for expected, found in zip(
        results(two_operations, x.double(), wide), results(doubled_conv, x, conv), strict=True
    ):
        assert expected.shape == found.shape and expected.abs().max() > 0.1
        assert (expected - found).abs().max() < 2e-6 * expected.abs().max()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_gradients_are_those_of_torch(layout):
    """Which differentiates the transposed convolution by itself."""
    conv = new_conv(16, 32).to(memory_format=layout)
    x = torch.randn(4, 16, 7, 6).contiguous(memory_format=layout)
    for expected, found in zip(
        results(torch_alone, x, conv), results(doubled_conv, x, conv), strict=True
    ):
        assert (expected - found).abs().max() < 2e-6 * expected.abs().max()


def test_the_layout_stays():
    conv = new_conv(16, 16).to(memory_format=torch.channels_last)
    x = torch.randn(2, 16, 4, 4).contiguous(memory_format=torch.channels_last)
    assert doubled_conv(x, conv).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_elsewhere_they_are_two_operations(dtype):
    """Where one does not pay."""
    conv = new_conv(dtype=dtype)
    x = torch.randn(2, 6, 5, 4).to(dtype)
    assert torch.equal(doubled_conv(x, conv), two_operations(x, conv))


def test_weights_that_do_not_learn_get_no_gradient():
    conv = new_conv().requires_grad_(False)
    x = torch.randn(2, 6, 3, 3, requires_grad=True)
    doubled_conv(x, conv).sum().backward()
    assert x.grad is not None and conv.weight.grad is None
    conv.requires_grad_(True)
    doubled_conv(x.detach(), conv).sum().backward()
    assert conv.weight.grad is not None and conv.bias.grad is not None


def test_a_compiler_gets_the_two_operations(monkeypatch):
    conv = new_conv()
    x = torch.randn(1, 6, 3, 3)
    program = torch.export.export(_Layer(conv), (x,))
    called = {str(node.target) for node in program.graph.nodes}
    assert not any("transpose" in name or "deconv" in name for name in called)
    monkeypatch.setattr(module, "_pays", lambda x: True)
    assert torch.allclose(doubled_conv(x, conv), program.module()(x), atol=1e-6)


class _Layer(torch.nn.Module):
    def __init__(self, conv):
        super().__init__()
        self.conv = conv

    def forward(self, x):
        return doubled_conv(x, self.conv)
