"""Where images are guided, and what leads them."""

from functools import partial

import pytest
import torch
from torch import nn

from model.guidance import Autoguided
from model.networks.unet import UNet
from model.samplers import SAMPLERS, build_sampler

CONFIG = {"noise_schedule": "cosine", "prediction": "v"}
CLASSES = 3


class Labelled(nn.Module):
    """Answers with its label, and counts its rows."""

    num_classes = CLASSES

    def __init__(self, factor=1.0):
        super().__init__()
        self.factor = factor
        self.rows = []

    def forward(self, x, t, labels=None):
        self.rows.append((t.tolist(), None if labels is None else labels.tolist()))
        value = torch.full((len(x),), float(CLASSES)) if labels is None else labels.float()
        return self.factor * (0.1 * x + 0.05 * value.view(-1, 1, 1, 1))


def sample(sampler, network, **options):
    return sampler.sample(network, 2, (4, 4), 1, labels=[0, 1], seeds=[1, 2], **options)


# --- An interval of noise levels ---


@pytest.mark.parametrize("name", SAMPLERS)
def test_guidance_costs_nothing_outside_its_interval(name):
    sampler = build_sampler(name, CONFIG, sample_steps=10)
    network = Labelled()
    sample(sampler, network, cfg_scale=3.0, cfg_interval=(0.3, 3.0))
    levels = sampler.levels
    seen = 0
    for steps, _ in network.rows:
        t = torch.tensor(steps[:1])
        ratio = (levels.sigma(t) / levels.alpha(t)).item()
        is_guided = 0.3 <= ratio <= 3.0
        assert len(steps) == (4 if is_guided else 2), ratio
        seen += is_guided
    assert 0 < seen < len(network.rows)


def test_an_interval_of_everything_changes_nothing():
    sampler = build_sampler("ddim", CONFIG, sample_steps=10)
    everywhere = sample(sampler, Labelled(), cfg_scale=3.0, cfg_interval=(0.0, 1e9))
    assert torch.equal(everywhere, sample(sampler, Labelled(), cfg_scale=3.0))
    nowhere = sample(sampler, Labelled(), cfg_scale=3.0, cfg_interval=(1e6, 1e7))
    assert torch.equal(nowhere, sample(sampler, Labelled(), cfg_scale=1.0))
    assert not torch.equal(nowhere, everywhere)


def test_an_interval_leaves_unguided_scales_alone():
    """Scale 0 asks for no label: it does not get one outside the interval."""
    sampler = build_sampler("ddim", CONFIG, sample_steps=5)
    network = Labelled()
    sample(sampler, network, cfg_scale=0.0, cfg_interval=(0.5, 1.0))
    assert all(labels is None for _, labels in network.rows)


def test_images_with_and_without_an_interval_share_a_batch():
    sampler = build_sampler("ddim", CONFIG, sample_steps=6)
    network = Labelled()
    options = {"labels": [1], "cfg_scale": 2.0, "null_label": CLASSES}
    both = [
        sampler.start(1, (4, 4), 1, seeds=[1], cfg_interval=(0.3, 3.0), **options),
        sampler.start(1, (4, 4), 1, seeds=[2], **options),
    ]
    trajectory = type(both[0]).cat(both)
    while not trajectory.all_done:
        trajectory, _ = sampler.update(trajectory, network(*sampler.rows(trajectory)))
    together = sampler.finished_images(trajectory)
    for place, part in enumerate(both):
        while not part.all_done:
            part, _ = sampler.update(part, network(*sampler.rows(part)))
        assert (sampler.finished_images(part)[0] - together[place]).abs().max() < 1e-6


@pytest.mark.parametrize("interval", [(2.0, 1.0), (-1.0, 1.0), (1.0, 1.0)])
def test_a_wrong_interval_is_named(interval):
    with pytest.raises(ValueError, match="cfg_interval"):
        sample(build_sampler("ddim", CONFIG), Labelled(), cfg_interval=interval)


# --- Autoguidance ---


def test_autoguidance_leads_away_from_the_worse_network():
    good, worse = Labelled(), Labelled(factor=0.5)
    x = torch.randn(2, 1, 4, 4)
    t = torch.tensor([5, 500])
    labels = torch.tensor([0, 2])
    guided = Autoguided(good, worse, 3.0)
    expected = worse(x, t, labels) + 3.0 * (good(x, t, labels) - worse(x, t, labels))
    assert (guided(x, t, labels) - expected).abs().max() < 1e-6
    assert guided.num_classes == CLASSES
    alone = Autoguided(good, worse, 1.0)(x, t, labels)
    assert (alone - good(x, t, labels)).abs().max() < 1e-6


def test_autoguidance_in_16_bits_combines_in_32():
    """The difference of two near values would be rounding."""

    class Says(torch.nn.Module):
        def __init__(self, value):
            super().__init__()
            self.value = value

        def forward(self, x, t, labels=None):
            return torch.full_like(x, self.value, dtype=torch.float32)

    x = torch.zeros(1, 1, 2, 2, dtype=torch.bfloat16)
    found = Autoguided(Says(1.0), Says(1.003), 3.0)(x, torch.tensor([5]))
    assert found.dtype == torch.float32 and (found - 0.994).abs().max() < 1e-6


def test_what_both_networks_divide_sides_by():
    small = {"channels": 8, "norm_groups": 4, "attention_levels": (), "mid_attention": False}
    good, worse = UNet(1, channel_mult=(1, 2), **small), UNet(1, channel_mult=(1, 1, 1), **small)
    assert (good.downsample_factor, worse.downsample_factor) == (2, 4)
    assert Autoguided(good, worse, 2.0).downsample_factor == 4


@pytest.mark.parametrize("numbers", [0, 1])
def test_a_guide_that_is_not_told_the_labels(numbers):
    """It answers as for the null label, which for rows of labels is a row of nothing."""
    torch.manual_seed(0)
    small = {"channels": 8, "channel_mult": (1, 2), "norm_groups": 4, "attention_levels": ()}
    make = partial(UNet, 1, num_classes=3, numbers=numbers, mid_attention=False, **small)
    good, worse = make().eval(), make().eval()
    with torch.no_grad():
        for weights in (*good.parameters(), *worse.parameters()):
            weights.normal_(0, 0.3)
        x = torch.randn(2, 1, 8, 8)
        t = torch.tensor([5, 500])
        labels, nothing = torch.tensor([0, 2]), torch.tensor([3, 3])
        if numbers:
            labels = torch.tensor([[0.5, 0.0], [float("nan"), 2.0]])
            nothing = torch.full((2, 2), float("nan"))
        told, untold = worse(x, t, labels), worse(x, t, nothing)
        assert (told - untold).abs().max() > 1e-3
        expected = untold + 3.0 * (good(x, t, labels) - untold)
        found = Autoguided(good, worse, 3.0, guide_labels=False)(x, t, labels)
        assert (found - expected).abs().max() < 1e-5
        # Images without a label are led away from the guide alone
        expected = untold + 3.0 * (good(x, t) - untold)
        found = Autoguided(good, worse, 3.0, guide_labels=False)(x, t)
        assert (found - expected).abs().max() < 1e-5


def test_autoguidance_is_evaluated_as_a_whole():
    """Sampling puts both networks into evaluation mode, and back."""
    modes = []

    class Watching(Labelled):
        def forward(self, x, t, labels=None):
            modes.append(self.training)
            return super().forward(x, t, labels)

    guided = Autoguided(Watching(), Watching(0.5), 2.0)
    sample(build_sampler("ddim", CONFIG, sample_steps=2), guided)
    assert modes == [False] * 4
    assert guided.network.training and guided.guide.training
