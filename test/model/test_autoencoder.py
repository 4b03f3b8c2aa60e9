"""The autoencoder against diffusers' AutoencoderKL."""

import pytest
import torch
from diffusers import AutoencoderKL

from model.networks import AUTOENCODERS, build_network

CASES = {
    "f4": {"block_out_channels": [8, 16, 24]},
    "f8": {"block_out_channels": [8, 8, 16, 16], "layers_per_block": 1},
    "f1": {"block_out_channels": [8], "layers_per_block": 1},
    "eight_latents": {"block_out_channels": [8, 16], "latent_channels": 8, "in_channels": 1},
    "no_attention": {"block_out_channels": [8, 16], "mid_block_add_attention": False},
    "no_quant_conv": {
        "block_out_channels": [8, 16],
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "act_fn": "gelu",
    },
}
STABLE_DIFFUSION = {"block_out_channels": [128, 256, 512, 512], "norm_num_groups": 32}


def pair(options):
    """Our network and diffusers' of the same options, in float32."""
    torch.manual_seed(0)
    ours = build_network({"name": "autoencoder", "norm_num_groups": 4, **options})
    words = {key: value for key, value in ours.config.items() if key != "name"}
    levels = len(words["block_out_channels"])
    theirs = AutoencoderKL(
        **words,
        out_channels=words["in_channels"],
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
    )
    return ours, theirs


def assert_equal(ours, theirs):
    """Both on odd sizes: the posterior, and what is decoded of a latent."""
    for size in ((37, 50), (33, 47)):
        x = torch.rand(2, ours.in_channels, *size) * 2 - 1
        with torch.inference_mode():
            mean, logvar = ours.encode(x)
            posterior = theirs.encode(x).latent_dist
            assert (mean - posterior.mean).abs().max() < 1e-5
            assert (logvar - posterior.logvar).abs().max() < 1e-5
            z = torch.randn_like(mean)
            assert (ours.decode(z) - theirs.decode(z).sample).abs().max() < 1e-5


@pytest.mark.parametrize("case", CASES)
def test_weights_go_to_diffusers_and_back(case):
    ours, theirs = pair(CASES[case])
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert_equal(ours, theirs)
    for parameter in ours.parameters():  # other numbers, which go the other way
        torch.nn.init.uniform_(parameter, -0.2, 0.2)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    assert_equal(ours, theirs)


def test_the_log_variance_is_bounded_as_theirs():
    ours, theirs = pair(CASES["f4"])
    with torch.no_grad():
        ours.quant_conv.bias[4:] = torch.tensor([-100.0, -29.0, 0.0, 100.0])
    theirs.load_state_dict(ours.state_dict())
    assert_equal(ours, theirs)
    logvar = ours.encode(torch.zeros(1, 3, 8, 8))[1]
    assert logvar.min() == -30 and logvar.max() == 20


def test_the_published_network_of_stable_diffusion():
    with torch.device("meta"):
        ours, theirs = pair(STABLE_DIFFUSION)
    shapes = {key: tensor.shape for key, tensor in ours.state_dict().items()}
    assert shapes == {key: tensor.shape for key, tensor in theirs.state_dict().items()}
    assert len(shapes) == 248
    assert sum(shape.numel() for shape in shapes.values()) == 83_653_863
    assert ours.downsample_factor == 8


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_the_config_rebuilds_the_network(name):
    with torch.device("meta"):
        network = build_network({"name": name})
        again = build_network(network.config)
    assert again.config == network.config and network.config["name"] == name
    assert network.config["block_out_channels"] == [64, 128, 256]
    assert (network.downsample_factor, network.latent_channels) == (4, 4)
    shapes = [tensor.shape for tensor in network.state_dict().values()]
    assert [tensor.shape for tensor in again.state_dict().values()] == shapes


def test_forward_decodes_a_draw_or_the_mean():
    network = pair(CASES["f4"])[0]
    x = torch.rand(2, 3, 12, 20) * 2 - 1
    noise = torch.randn(2, 4, 3, 5)
    mean, logvar = network.encode(x)
    with_noise = network(x, noise)
    assert torch.equal(with_noise[1], mean) and torch.equal(with_noise[2], logvar)
    expected = network.decode(mean + (0.5 * logvar).exp() * noise)
    assert (with_noise[0] - expected).abs().max() < 1e-6
    assert (network(x)[0] - network.decode(mean)).abs().max() < 1e-6
    assert (with_noise[0] - network(x)[0]).abs().max() > 1e-3
    with pytest.raises(ValueError, match="image size 13,20: both must be multiples of 4"):
        network(x[..., :1, :].repeat(1, 1, 13, 1))


@pytest.mark.parametrize("case", CASES)
def test_every_parameter_gets_a_gradient(case):
    network = pair(CASES[case])[0].double()
    x = torch.rand(2, network.in_channels, 16, 24, dtype=torch.float64) * 2 - 1
    x_hat, mean, logvar = network(x)
    x_hat, _, _ = network(x, torch.randn_like(mean))
    ((x_hat - x).square().mean() + logvar.square().mean()).backward()
    for name, parameter in network.named_parameters():
        size = parameter.grad.abs().max()
        if name.endswith("to_k.bias"):
            assert size < 1e-12  # the same shift of all keys changes no attention
        else:
            assert size > 1e-12, name


@pytest.mark.parametrize(
    "option",
    [
        {"in_channels": 0},
        {"latent_channels": True},
        {"latent_channels": 65},
        {"block_out_channels": []},
        {"block_out_channels": 64},
        {"block_out_channels": None},
        {"block_out_channels": "abc"},
        {"block_out_channels": [32] * 9},
        {"block_out_channels": [32, 64.0]},
        {"block_out_channels": [32, 10**9]},
        {"layers_per_block": 0},
        {"layers_per_block": 10**6},
        {"norm_num_groups": 48},  # does not divide 64
        {"norm_num_groups": None},
        {"act_fn": "tanh"},
        {"act_fn": []},
        {"mid_block_add_attention": 1},
        {"use_quant_conv": "no"},
        {"use_post_quant_conv": None},
    ],
)
def test_options_out_of_bounds_are_named(option):
    with pytest.raises(ValueError, match=f"network option .*{next(iter(option))}"):
        build_network({"name": "autoencoder", **option})


def test_groups_that_would_work_are_named():
    with pytest.raises(ValueError, match=r"\[48, 64\], not 32; 16 would work"):
        build_network({"name": "autoencoder", "block_out_channels": [48, 64]})
