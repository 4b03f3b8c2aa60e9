"""The networks that enlarge: sizes, start, how far they see."""

import pytest
import torch

from model.networks import EDSR, RDN, UPSCALERS, build_network

TINY = {
    "rdn": {"name": "rdn", "features": 8, "blocks": 2, "layers": 2, "growth": 4},
    "edsr": {"name": "edsr", "features": 8, "blocks": 3},
}


def weights(network):
    return sum(parameter.numel() for parameter in network.parameters())


def test_the_default_sizes():
    assert weights(RDN(scale=4)) == 1_444_227
    assert RDN(scale=4).receptive_radius == 22
    # The published baseline of EDSR at x2, which has the same layers.
    assert weights(EDSR(scale=2)) == 1_369_859


@pytest.mark.parametrize("name", UPSCALERS)
@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("channels", [1, 3])
def test_shapes_and_config(name, scale, channels):
    network = build_network({**TINY[name], "scale": scale, "in_channels": channels})
    assert network(torch.zeros(2, channels, 7, 5)).shape == (2, channels, 7 * scale, 5 * scale)
    again = build_network(network.config)
    again.load_state_dict(network.state_dict())
    assert again.config == network.config and again.scale == network.scale == scale


@pytest.mark.parametrize("name", UPSCALERS)
def test_it_starts_without_a_checkerboard(name):
    """ICNR: before the last convolution, the pixels of a place are equal."""
    torch.manual_seed(0)
    network = build_network({**TINY[name], "scale": 3})
    enlarged = network.up(torch.randn(1, 8, 6, 6))
    corners = enlarged[..., ::3, ::3]
    assert corners.std() > 0.1
    spread = enlarged - corners.repeat_interleave(3, 2).repeat_interleave(3, 3)
    assert spread.abs().max() == 0


@pytest.mark.parametrize("name", UPSCALERS)
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_it_sees_exactly_as_far_as_it_says(name, scale):
    """Whichever pixel of a place is asked, no input pixel further away than the radius counts, and
    for the pixels at the place's edge one that far away does.
    """
    torch.manual_seed(0)
    network = build_network({**TINY[name], "scale": scale, "act": "silu"}).double()
    for parameter in network.parameters():
        torch.nn.init.uniform_(parameter, 0.05, 0.15)  # so that nothing cancels
    radius = network.receptive_radius
    side = 2 * radius + 5
    middle = side // 2
    furthest = 0
    for offset in (0, scale - 1):
        x = torch.zeros(1, 3, side, side, dtype=torch.float64, requires_grad=True)
        network(x)[0, 0, middle * scale + offset, middle * scale + offset].backward()
        seen = x.grad[0].abs().amax(0).nonzero()
        furthest = max(furthest, int((seen - middle).abs().max()))
    assert furthest == radius


@pytest.mark.parametrize(
    "option",
    [{"scale": 5}, {"scale": 1}, {"scale": 2.0}, {"features": 0}, {"blocks": True}, {"growth": -1}],
)
def test_options_out_of_bounds_are_named(option):
    with pytest.raises(ValueError, match=next(iter(option))):
        build_network({"name": "rdn", **option})
