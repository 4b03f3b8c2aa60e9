"""A convolution of a doubled image as one convolution of the small image."""

import pytest
import torch
import torch.nn.functional as F

from model.modules.doubled_conv import conv_of_phases, doubled_conv, transposed_kernel

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


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [(1, 1), (2, 5), (7, 4)])
def test_woven_phases_are_the_two_operations(size, layout, bias):
    """Exactly: what is left is the rounding of float64."""
    conv = new_conv(bias=bias, dtype=torch.float64).to(memory_format=layout)
    x = torch.randn(3, 6, *size, dtype=torch.float64).contiguous(memory_format=layout)
    for expected, found in zip(
        results(two_operations, x, conv), results(conv_of_phases, x, conv), strict=True
    ):
        assert expected.shape == found.shape and expected.abs().max() > 0.1
        assert (expected - found).abs().max() < 1e-14 * expected.abs().max()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_in_bf16_it_rounds_no_more_than_two_operations(weights, layout):
    """With the weights of training, in fp32 beneath autocast, and with those of a network that only
    samples and has no gradients. Both are held against float64: twice the error of the two
    operations is the bound, as weights that are added up in bf16 are rounded once more.
    """
    conv = new_conv(16, 32, dtype=weights).to(memory_format=layout)
    x = torch.randn(4, 16, 7, 6).bfloat16().contiguous(memory_format=layout)
    wide = new_conv(16, 32, dtype=weights).double()
    exact = results(two_operations, x.double(), wide)
    with torch.autocast("cpu", torch.bfloat16):
        plain, found = results(two_operations, x, conv), results(doubled_conv, x, conv)
        assert not torch.equal(plain[0], found[0])  # the phases were used
    count = len(exact) if weights == torch.float32 else 1
    for truth, before, now in list(zip(exact, plain, found, strict=True))[:count]:
        assert now.dtype == before.dtype
        assert (truth - now).abs().max() < 2 * (truth - before).abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_layout_stays(layout, dtype):
    conv = new_conv(16, 16, dtype=dtype).to(memory_format=layout)
    x = torch.randn(2, 16, 4, 4).to(dtype).contiguous(memory_format=layout).requires_grad_()
    out = doubled_conv(x, conv)
    assert out.is_contiguous(memory_format=layout)
    (grad,) = torch.autograd.grad(out.float().square().sum(), x)
    assert grad.is_contiguous(memory_format=layout)


def test_elsewhere_they_are_two_operations():
    """Where neither form was measured to pay."""
    dtype = torch.float64
    conv = new_conv(dtype=dtype)
    x = torch.randn(2, 6, 5, 4).to(dtype)
    assert torch.equal(doubled_conv(x, conv), two_operations(x, conv))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_do_not_learn_get_no_gradient(dtype):
    conv = new_conv(dtype=dtype).requires_grad_(False)
    x = torch.randn(2, 6, 3, 3, dtype=dtype, requires_grad=True)
    doubled_conv(x, conv).sum().backward()
    assert x.grad is not None and conv.weight.grad is None
    conv.requires_grad_(True)
    doubled_conv(x.detach(), conv).sum().backward()
    assert conv.weight.grad is not None and conv.bias.grad is not None


def test_a_compiler_gets_the_two_operations():
    conv = new_conv()
    x = torch.randn(1, 6, 3, 3)
    program = torch.export.export(_Layer(conv), (x,))
    called = {str(node.target) for node in program.graph.nodes}
    assert not any("transpose" in name or "deconv" in name for name in called)
    assert torch.allclose(doubled_conv(x, conv), program.module()(x), atol=1e-6)


class _Layer(torch.nn.Module):
    def __init__(self, conv):
        super().__init__()
        self.conv = conv

    def forward(self, x):
        return doubled_conv(x, self.conv)
