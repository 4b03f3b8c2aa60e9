"""What is trained where nobody says: presets, and which one is chosen."""

import pytest
import torch

from model.networks import build_network
from utils.training.estimates import cost_of, cost_of_autoencoder
from utils.training.recipe import (
    OPEN_OPTIONS,
    PRESETS,
    largest_affordable,
    nearest_preset,
    neighbours,
    network_options,
    options_before,
    options_of,
)

OPEN = dict.fromkeys(OPEN_OPTIONS)

# Published counts; the others were counted when the presets were written.
PARAMETERS = {
    "tiny": 1_905_347,
    "small": 7_597_443,
    "medium": 24_703_107,
    "base": 35_746_307,  # google/ddpm-cifar10-32
    "large": 113_673_219,  # google/ddpm-celebahq-256
    "adm": 276_421_059,
}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_s_network_has_the_parameters_that_are_said(name):
    preset = PRESETS[name]
    size = (preset.reference_side, preset.reference_side)
    network = {"name": "unet", "in_channels": 3, **network_options(preset, size)}
    cost = cost_of(network, size)
    assert cost.parameters == PARAMETERS[name]
    assert cost.parameters / 1e6 == pytest.approx(preset.parameters, abs=0.06)


@pytest.mark.parametrize(
    ("name", "size", "mult", "attention"),
    [
        ("tiny", (28, 28), (1, 2, 3), (2,)),
        ("tiny", (32, 32), (1, 2, 3), (2,)),
        ("tiny", (64, 64), (1, 2, 3, 4), (3,)),
        ("tiny", (64, 96), (1, 2, 3, 4), (3,)),
        ("tiny", (27, 27), (1,), (0,)),
        ("tiny", (512, 512), (1, 2, 3, 4, 4, 4, 4), (6,)),
        ("base", (32, 32), (1, 2, 2, 2), (1,)),
        ("base", (28, 28), (1, 2, 2), (1,)),
        ("large", (256, 256), (1, 1, 2, 2, 4, 4), (4,)),
        ("adm", (64, 64), (1, 2, 3, 4), (1, 2, 3)),
    ],
)
def test_the_levels_follow_the_size(name, size, mult, attention):
    options = options_of(name, size)
    assert (options["channel_mult"], options["attention_levels"]) == (mult, attention)
    factor = 2 ** (len(mult) - 1)
    assert all(side % factor == 0 for side in size)


def test_what_is_given_wins():
    given = {**OPEN, "channels": 48, "channel_mult": (1, 4), "lr": 3e-4, "dropout": 0.0}
    options = options_of("base", (32, 32), given)
    assert (options["channels"], options["channel_mult"]) == (48, (1, 4))
    assert (options["lr"], options["dropout"]) == (3e-4, 0.0)
    assert options["batch_size"] == PRESETS["base"].batch_size
    assert options["attention_levels"] == (1,)  # of the two levels that there are
    network = {
        key: value
        for key, value in options.items()
        if key in network_options(PRESETS["tiny"], (8, 8))
    }
    build_network({"name": "unet", **network})


@pytest.mark.parametrize(
    ("given", "loss_weight", "time_steps"),
    [
        ({}, "min_snr", "uniform"),
        ({"time_steps": "weighted"}, "min_snr", "weighted"),
        ({"loss_weight": "lognormal"}, "lognormal", "weighted"),
        ({"loss_weight": "lognormal", "time_steps": "uniform"}, "lognormal", "uniform"),
        ({"loss_weight": "uniform"}, "uniform", "uniform"),
    ],
)
def test_time_steps_are_drawn_as_suits_the_weight(given, loss_weight, time_steps):
    options = options_of("tiny", (32, 32), {**OPEN, **given})
    assert (options["loss_weight"], options["time_steps"]) == (loss_weight, time_steps)


def test_heads_divide_a_width_that_was_given():
    options = options_of("tiny", (32, 32), {**OPEN, "channels": 48})
    assert options["head_channels"] == 16
    assert options_of("tiny", (32, 32))["head_channels"] == 32


def test_a_run_goes_on_as_before():
    """Also one of an earlier version, whose checkpoints do not say all."""
    network = network_options(PRESETS["tiny"], (32, 32))
    training = {"global_batch": 64, "optim": "adamw", "lr": 1e-3, "ema_decay": 0.996}
    options = options_before({"network": {**network, "dropout": 0.1}, "training": training}, 2, 2)
    assert options["batch_size"] == 16 and options["grad_accum"] == 2
    assert options["optim"] == "adamw"
    assert options["loss_weight"] == "uniform" and options["dropout"] == 0.1


def test_the_widest_preset_that_is_not_wider():
    assert nearest_preset(8, (32, 32)) == "tiny"
    assert nearest_preset(32, (256, 256)) == "tiny"
    assert nearest_preset(100, (32, 32)) == "medium"
    assert nearest_preset(128, (32, 48)) == "base"
    assert nearest_preset(128, (64, 64)) == "base"
    assert nearest_preset(128, (128, 192)) == "large"
    assert nearest_preset(512, (256, 256)) == "adm"


def test_the_largest_preset_that_gets_enough_steps():
    enough = {name: preset.fewest_steps for name, preset in PRESETS.items()}
    assert largest_affordable(PRESETS, lambda name: 0) == "tiny"
    assert largest_affordable(PRESETS, lambda name: 10**9) == list(PRESETS)[-1]
    assert largest_affordable(PRESETS, lambda name: enough["small"]) == "small"
    # One that does not get enough ends the search, even if the next one would.
    assert largest_affordable(PRESETS, lambda name: 0 if name == "small" else 10**9) == "tiny"


def test_presets_grow():
    costs = []
    for name in ("tiny", "small", "medium", "base"):
        network = {"name": "unet", "in_channels": 3, **network_options(PRESETS[name], (32, 32))}
        costs.append(cost_of(network, (32, 32)).operations)
    assert costs == sorted(costs)
    steps = [preset.fewest_steps for preset in PRESETS.values()]
    assert steps == sorted(steps) and steps[0] == 0


def test_neighbours():
    assert neighbours("tiny") == ["tiny", "small"]
    assert neighbours("base") == ["medium", "base", "large"]


def test_operations_grow_with_the_pixels():
    config = {"name": "unet", "in_channels": 3, "channels": 8, "channel_mult": [1]}
    config |= {"attention_levels": [], "mid_attention": False}
    small, large = (cost_of(config, (side, side)) for side in (8, 16))
    assert small.parameters == large.parameters
    ratio = large.operations / small.operations
    assert 3.5 < ratio < 4.01  # embeddings do not grow
    assert large.activations > 3 * small.activations


def bytes_kept(network, *inputs):
    """What autograd keeps of a call, counted on real tensors by their addresses."""
    own = {parameter.data_ptr() for parameter in network.parameters()}
    kept = {}

    def keep(value):
        storage = value.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), value)  # held, so that none is reused
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        network(*inputs)
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize(
    ("side", "attention_levels"),
    [(16, [1]), (48, [0])],  # of 2,304 positions, all pairs would be 42 MB for each head
)
def test_the_memory_that_is_reckoned_is_about_what_is_kept(side, attention_levels):
    config = {"name": "unet", "in_channels": 3, "channels": 16, "channel_mult": [1, 2]}
    config |= {"head_channels": 16, "attention_levels": attention_levels}
    counted = bytes_kept(
        build_network(config), torch.zeros(1, 3, side, side), torch.zeros(1, dtype=torch.long)
    )
    assert cost_of(config, (side, side)).activations == pytest.approx(counted, rel=0.1)


def test_the_memory_of_an_autoencoder():
    config = {"name": "autoencoder", "in_channels": 1, "block_out_channels": [8, 16]}
    config |= {"latent_channels": 2, "norm_num_groups": 4}
    network = build_network(config)
    counted = bytes_kept(network, torch.zeros(1, 1, 96, 64), torch.zeros(1, 2, 48, 32))
    cost = cost_of_autoencoder(config, (96, 64))
    assert cost.activations == pytest.approx(counted, rel=0.1)
    assert cost.parameters == sum(parameter.numel() for parameter in network.parameters())
    with pytest.raises(ValueError, match="95"):
        cost_of_autoencoder(config, (95, 64))


def test_checkpointed_levels_keep_less():
    config = {"name": "unet", "in_channels": 3, "channels": 16, "channel_mult": [1, 2]}
    config |= {"attention_levels": [], "mid_attention": False}
    plain, less = (cost_of(config, (32, 32), levels) for levels in ((), (0,)))
    assert less.activations < 0.8 * plain.activations
    assert (less.parameters, less.operations) == (plain.parameters, plain.operations)


def test_as_many_images_as_fit():
    config = {"name": "unet", "in_channels": 1, "channels": 8, "channel_mult": [1]}
    cost = cost_of({**config, "head_channels": 8}, (8, 8))
    for dtype in (torch.float32, torch.bfloat16):
        memory = cost.memory(12, dtype)
        assert cost.most_images(memory, dtype) == pytest.approx(12)
        assert cost.most_images(cost.memory(0, dtype) / 2, dtype) < 0
    assert cost.memory(12, torch.bfloat16) < cost.memory(12, torch.float32)
