"""Networks: the U-Net against diffusers' UNet2DModel with the same weights, and what holds for
every network.
"""

import diffusers
import pytest
import torch

from model.ema import EMA
from model.modules.attention import attend
from model.networks import DENOISERS, UNet, build_network
from utils.exchange.diffusers_names import diffusers_state

SMALL = {
    "channels": 8,
    "channel_mult": [1, 2],
    "blocks_per_level": 1,
    "head_channels": 8,
    "norm_groups": 4,
}


CIFAR = (  # the network of google/ddpm-cifar10-32
    {
        "channels": 128,
        "channel_mult": [1, 2, 2, 2],
        "blocks_per_level": 2,
        "attention_levels": [1],
        "head_channels": None,
        "norm_eps": 1e-6,
        "asymmetric_padding": True,
        "freq_shift": 1.0,
        "cos_first": False,
    },
    {
        "block_out_channels": (128, 256, 256, 256),
        "layers_per_block": 2,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": None,
        "norm_eps": 1e-6,
        "downsample_padding": 0,
        "freq_shift": 1,
        "flip_sin_to_cos": False,
    },
)
CLASSES = (
    {
        "in_channels": 1,
        "num_classes": 9,
        "channels": 32,
        "channel_mult": [1, 2, 3],
        "blocks_per_level": 1,
        "act": "gelu",
    },
    {
        "in_channels": 1,
        "out_channels": 1,
        "num_class_embeds": 10,
        "block_out_channels": (32, 64, 96),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        "attention_head_dim": 32,
        "act_fn": "gelu",
    },
)
SCALE_SHIFT = (
    {
        "out_channels": 6,
        "channels": 32,
        "channel_mult": [1, 2],
        "attention_levels": [0, 1],
        "head_channels": 16,
        "time_embedding": "scale_shift",
        "norm_groups": 8,
    },
    {
        "out_channels": 6,
        "block_out_channels": (32, 64),
        "layers_per_block": 2,
        "down_block_types": ("AttnDownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D"),
        "attention_head_dim": 16,
        "resnet_time_scale_shift": "scale_shift",
        "norm_num_groups": 8,
        "attn_norm_num_groups": 8,  # or else their middle attention has no norm under scale_shift
    },
)


@pytest.mark.parametrize(
    ("ours", "theirs"), [CIFAR, CLASSES, SCALE_SHIFT], ids=["cifar10", "classes", "scale_shift"]
)
def test_unet_equals_diffusers(ours, theirs):
    torch.manual_seed(0)
    network = UNet(**ours).eval()
    for parameter in network.parameters():  # the zero-initialised layers too
        torch.nn.init.normal_(
            parameter, std=parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1
        )
    reference = diffusers.UNet2DModel(sample_size=32, **theirs).eval()
    reference.load_state_dict(diffusers_state(network))  # strict: every weight of theirs is covered
    x, t = torch.randn(2, network.config["in_channels"], 16, 24), torch.tensor([3, 700])
    labels = None if network.num_classes is None else torch.tensor([0, 9])
    with torch.no_grad():
        a, b = network(x, t, labels), reference(x, t, labels).sample
    assert a.abs().mean() > 0.01
    assert (a - b).abs().max() < 1e-5 * max(1, b.abs().max())


def test_the_cifar10_network_has_the_published_size():
    assert round(sum(p.numel() for p in UNet(**CIFAR[0]).parameters()) / 1e6, 1) == 35.7


@pytest.mark.parametrize("name", DENOISERS)
def test_config_rebuilds_the_network(name):
    network = build_network({"name": name, **SMALL, "num_classes": 3, "act": "relu"})
    again = build_network(network.config)
    again.load_state_dict(network.state_dict())
    assert again.config == network.config == build_network(network.config).config
    default = build_network({"name": name})
    assert default.config["name"] == name and default.num_classes is None
    assert not list(network.buffers())  # EMA follows parameters only


@pytest.mark.parametrize("name", DENOISERS)
@pytest.mark.parametrize("time_embedding", ["additive", "scale_shift"])
def test_every_parameter_receives_a_gradient(name, time_embedding):
    torch.manual_seed(0)
    network = build_network(
        {"name": name, **SMALL, "num_classes": 3, "time_embedding": time_embedding}
    )
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    x, t, labels = (
        torch.randn(4, 3, 8, 8),
        torch.tensor([0, 100, 500, 999]),
        torch.tensor([0, 1, 2, 3]),
    )
    for _ in range(4):  # the zero-initialised layers let gradients through from the second step on
        optimizer.zero_grad()
        (network(x, t, labels) - torch.randn(4, 3, 8, 8)).square().mean().backward()
        optimizer.step()
    silent = [
        key for key, p in network.named_parameters() if p.grad is None or p.grad.abs().max() == 0
    ]
    assert not silent


@pytest.mark.parametrize("name", DENOISERS)
def test_sizes_channels_and_labels(name):
    network = build_network({"name": name, **SMALL, "in_channels": 1, "num_classes": 3}).eval()
    t = torch.zeros(2, dtype=torch.long)
    assert network.downsample_factor == 2
    assert network(torch.randn(2, 1, 8, 12), t, torch.tensor([0, 2])).shape == (2, 1, 8, 12)
    with pytest.raises(
        ValueError, match=r"8,9: both must be multiples of 2; 8,8 and 8,10 would work"
    ):
        network(torch.randn(2, 1, 8, 9), t)
    torch.nn.init.normal_(network.conv_out.weight)
    torch.nn.init.normal_(network.condition.label.weight)
    x = torch.randn(2, 1, 8, 8)
    null = torch.full((2,), 3)
    for _, block in network.named_modules():  # zero-initialised branches would hide the condition
        if hasattr(block, "conv2"):
            torch.nn.init.normal_(block.conv2.weight, std=0.1)
    assert torch.equal(network(x, t), network(x, t, null))
    assert (network(x, t, torch.tensor([0, 1])) - network(x, t, null)).abs().max() > 1e-3
    unconditional = build_network({"name": name, **SMALL})
    with pytest.raises(ValueError, match="without classes"):
        unconditional(torch.randn(2, 3, 8, 8), t, null)


@pytest.mark.parametrize("name", DENOISERS)
def test_bad_configs_are_named(name):
    for config, word in [
        ({"name": "vit"}, "vit"),
        ({"name": name, "width": 3}, "width"),
        ({"name": name, "channels": 10**9}, "channels"),
        ({"name": name, "channels": 7}, "even"),
        ({"name": name, "channel_mult": []}, "channel_mult"),
        ({"name": name, "channel_mult": [1] * 40}, "channel_mult"),
        ({"name": name, "num_classes": 0}, "num_classes"),
        ({"name": name, "act": "tanh"}, "tanh"),
        ({"name": name, "attention_levels": [4]}, "level 4"),
        ({"name": name, "head_channels": 48}, "48"),
        ({"name": name, "time_embedding": "film"}, "film"),
        ({"name": name, "dropout": 1.0}, "dropout"),
    ]:
        with pytest.raises(ValueError, match=word):
            build_network(config)


def test_untrained_networks_predict_zero():
    for name in DENOISERS:
        network = build_network({"name": name, **SMALL})
        assert network(torch.randn(1, 3, 8, 8), torch.zeros(1, dtype=torch.long)).abs().max() == 0


def test_ema_follows_the_closed_form():
    network = torch.nn.Linear(2, 2)
    ema = EMA(network, 0.9)
    expected = network.weight.detach().double().clone()
    for step in range(50):
        with torch.no_grad():
            network.weight.add_(torch.randn(2, 2, generator=torch.Generator().manual_seed(step)))
        ema.update(network, step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * network.weight.detach().double()
    assert (ema.network.weight - expected).abs().max() < 1e-5
    assert not ema.network.weight.requires_grad


@pytest.mark.parametrize("positions", [1, 49, 144, 145, 256, 257, 400])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_trained", [True, False])
def test_attention_is_softmax_of_products(positions, dtype, is_trained):
    """However it is computed: written out for few positions, else by torch's kernel."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(2, 3, positions, 8, generator=generator, dtype=torch.float64).to(dtype)
        for _ in range(3)
    )
    q64, k64, v64 = (value.double() for value in (q, k, v))
    expected = (q64 @ k64.mT / 8**0.5).softmax(-1) @ v64
    with torch.set_grad_enabled(is_trained):
        found = attend(q, k, v)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.05}[dtype]
    assert found.dtype == dtype
    assert (found.double() - expected).abs().max() < tolerance


def test_attention_over_many_positions_keeps_no_square_matrix():
    length, kept = 1024, []

    def keep(value):
        kept.append(value.numel())
        return value

    q = torch.randn(1, 1, length, 8, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        attend(q, q, q)
    assert max(kept) < length * length


@pytest.mark.parametrize("name", DENOISERS)
@pytest.mark.parametrize("levels", [[0], [-1], [0, 1, 2]])
def test_recomputed_activations_give_the_same_gradients(name, levels):
    """To the bit, with dropout too; and less is kept for the backward pass."""
    config = {**SMALL, "name": name, "channel_mult": [1, 2, 2], "dropout": 0.3, "in_channels": 2}
    torch.manual_seed(0)
    network = build_network(config).train()
    for parameter in network.parameters():  # what starts at zero would hide the inside of a block
        torch.nn.init.normal_(parameter, std=0.1)
    x, t = torch.randn(2, 2, 16, 16), torch.tensor([3, 500])

    def gradients():
        kept = []

        def keep(value):
            kept.append(value.numel())
            return value

        network.zero_grad()
        torch.manual_seed(1)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
            out = network(x, t)
        out.square().mean().backward()
        return [parameter.grad.clone() for parameter in network.parameters()], sum(kept)

    plain, all_kept = gradients()
    network.checkpoint_activations(levels)
    recomputed, some_kept = gradients()
    assert all(torch.equal(a, b) for a, b in zip(plain, recomputed, strict=True))
    assert some_kept < (0.8 if 0 in levels else 0.99) * all_kept
    with pytest.raises(ValueError, match="level 3 does not exist"):
        network.checkpoint_activations([3])
