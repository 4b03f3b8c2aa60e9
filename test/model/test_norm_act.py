"""Group norm and SiLU as one operation: the numbers of three, and what it keeps for its backward
pass.
"""

import pytest
import torch
import torch.nn.functional as F

from model.modules import norm_act as module
from model.modules.norm_act import SILU, norm_act
from model.networks import build_network


def in_one(norm, *tensors):
    return norm_act(norm, SILU, *tensors)


def three_operations(norm, x, scale=None, shift=None):
    h = norm(x)
    if scale is not None:
        h = torch.addcmul(shift, h, scale)
    return F.silu(h)


def new_norm(channels=12, groups=4, dtype=torch.float32):
    norm = torch.nn.GroupNorm(groups, channels).to(dtype)
    torch.nn.init.normal_(norm.weight, 1, 0.3)
    torch.nn.init.normal_(norm.bias)
    return norm


def inputs(dtype=torch.float32, layout=torch.contiguous_format, is_modulated=True, side=6):
    x = torch.randn(3, 12, side, side + 1).to(dtype).contiguous(memory_format=layout)
    if not is_modulated:
        return [x]
    return [x, *(torch.randn(3, 12, 1, 1).to(dtype) for _ in range(2))]


def results(function, norm, tensors):
    """The output and all gradients."""
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    out = function(norm, *leaves)
    torch.manual_seed(3)
    grad = torch.empty_like(out).copy_(torch.randn(out.shape))  # in the layout of the output
    return [out, *torch.autograd.grad(out, [*leaves, norm.weight, norm.bias], grad)]


@pytest.mark.parametrize("is_modulated", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_bits_are_those_of_three_operations(dtype, layout, is_modulated):
    """In 16 bits with weights in 32, as under autocast on a CPU."""
    torch.manual_seed(0)
    norm = new_norm(dtype=torch.float32 if dtype == torch.bfloat16 else dtype)
    tensors = inputs(dtype, layout, is_modulated)
    for expected, found in zip(
        results(three_operations, norm, tensors), results(in_one, norm, tensors), strict=True
    ):
        assert expected.dtype == found.dtype and expected.std() > 0
        assert torch.equal(expected, found)
    with torch.no_grad():
        assert torch.equal(three_operations(norm, *tensors), in_one(norm, *tensors))


@pytest.mark.parametrize("is_modulated", [False, True])
def test_where_16_bits_are_too_few_it_computes_in_those_of_the_weights(monkeypatch, is_modulated):
    """As autocast on a GPU: in fp32 between two convolutions in bf16."""
    monkeypatch.setattr(module, "_is_on_cpu", lambda x: False)
    torch.manual_seed(0)
    norm = new_norm()
    tensors = inputs(torch.bfloat16, torch.channels_last, is_modulated)

    def as_autocast_does(norm, x, scale=None, shift=None):
        more = () if scale is None else (scale.float(), shift.float())
        return three_operations(norm, x.float(), *more).to(torch.bfloat16)

    for expected, found in zip(
        results(as_autocast_does, norm, tensors), results(in_one, norm, tensors), strict=True
    ):
        assert expected.dtype == found.dtype
        assert (expected.float() - found.float()).abs().max() <= 1e-6 * expected.float().abs().max()


@pytest.mark.parametrize("is_modulated", [False, True])
def test_gradients_are_those_of_finite_differences(is_modulated):
    torch.manual_seed(0)
    norm = new_norm(dtype=torch.float64)
    leaves = [tensor.requires_grad_() for tensor in inputs(torch.float64, side=3)]
    leaves = leaves if is_modulated else leaves[:1]
    assert torch.autograd.gradcheck(lambda *tensors: in_one(norm, *tensors), leaves)


def test_a_gradient_that_others_need_stays_as_it_is():
    """The backward pass writes over what it has computed, and over nothing else."""
    torch.manual_seed(0)
    norm, (x, scale, shift) = new_norm(), inputs()
    kept = [tensor.clone() for tensor in (x, scale, shift)]
    leaf = x.clone().requires_grad_()
    out = in_one(norm, leaf, scale.requires_grad_(), shift.requires_grad_())
    grad = torch.randn(out.shape)
    before = grad.clone()
    out.backward(grad, retain_graph=True)
    first = leaf.grad.clone()
    out.backward(grad)
    assert torch.equal(grad, before) and torch.equal(leaf.grad, 2 * first)
    for tensor, copy in zip((leaf, scale, shift), kept, strict=True):
        assert torch.equal(tensor, copy)


def bytes_kept(call) -> int:
    """Of all activations that a forward pass keeps for its backward pass, each counted once."""
    kept: dict[int, int] = {}

    def count(tensor):
        if not isinstance(tensor, torch.nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        out = call()
    assert out.requires_grad
    return sum(kept.values())


def test_it_keeps_nothing_but_its_input():
    norm = new_norm()
    x, scale, shift = (tensor.requires_grad_() for tensor in inputs(side=32))
    alone = x.numel() * x.element_size()
    assert bytes_kept(lambda: in_one(norm, x, scale, shift)) < 1.1 * alone
    assert bytes_kept(lambda: three_operations(norm, x, scale, shift)) > 2.9 * alone


def test_a_network_keeps_less_than_two_thirds(monkeypatch):
    config = {"name": "unet", "in_channels": 3, "channels": 32, "time_embedding": "scale_shift"}
    network = build_network({**config, "attention_levels": [], "mid_attention": False})
    x, t = torch.randn(8, 3, 32, 32), torch.arange(8)
    kept = bytes_kept(lambda: network(x, t))
    for place in ("model.modules.resblock.norm_act", "model.networks.unet.norm_act"):
        monkeypatch.setattr(place, lambda norm, act, *tensors: three_operations(norm, *tensors))
    assert kept < 2 / 3 * bytes_kept(lambda: network(x, t))


@pytest.mark.parametrize("is_modulated", [False, True])
def test_a_slice_of_channels_lies_as_the_whole_does(is_modulated):
    torch.manual_seed(0)
    norm = new_norm()
    x, *more = inputs(torch.float32, torch.channels_last, is_modulated)
    whole = torch.cat([x, x + 1], dim=1).contiguous(memory_format=torch.channels_last)
    part = whole[:, : x.shape[1]]
    assert not part.is_contiguous() and part.stride(1) == 1
    assert module._layout(part) == torch.channels_last

    def on_the_slice(function):
        leaf = whole.clone().requires_grad_()
        out = function(norm, leaf[:, : x.shape[1]], *more)
        return [out, *torch.autograd.grad(out.square().sum(), [leaf, norm.weight, norm.bias])]

    for expected, found in zip(on_the_slice(three_operations), on_the_slice(in_one), strict=True):
        assert torch.equal(expected, found)


def test_one_image_of_one_pixel_is_normalised_as_two_are():
    """torch's own layer refuses a single value in each group."""
    config = {"channels": 8, "channel_mult": [1, 2, 4], "attention_levels": [2], "head_channels": 8}
    network = build_network(config).eval()
    t = torch.zeros(2, dtype=torch.long)
    x = torch.randn(2, 3, 4, 4)
    with torch.no_grad():
        both = network(x, t)
        assert (network(x[:1], t[:1]) - both[:1]).abs().max() < 1e-5
    network.train()(x[:1], t[:1]).sum().backward()
