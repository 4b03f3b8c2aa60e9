"""The loss of an autoencoder: its terms, what is drawn for it, and that it trains."""

import pytest
import torch
from helpers import DEMO
from torch.distributions import Normal, kl_divergence

from model.metrics import ms_ssim, ssim
from model.metrics.efficientnet_lite import EfficientNetLite0
from model.networks import build_network
from utils.data import read_image
from utils.errors import UserError
from utils.evaluation.perceptual import PerceptualFeatures, perceptual_features
from utils.ranks import Ranks
from utils.training.autoencoder_task import AutoencoderTask, feature_distances
from utils.training.prefetch import draw_batch

CPU = torch.device("cpu")


def small_network(channels: int = 3) -> torch.nn.Module:
    torch.manual_seed(0)
    options = {"block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 4}
    return build_network({"name": "autoencoder", "in_channels": channels, **options})


def batch_of(size: tuple[int, int] = (24, 28), count: int = 3):
    files = sorted(DEMO.glob("*/*.png"))[::300][:count]
    pixels = torch.stack([torch.tensor(read_image(file, size)) for file in files])
    pixels = pixels.permute(0, 3, 1, 2).contiguous()
    return pixels, torch.zeros(count, dtype=torch.long), torch.arange(count)


def small_task(**options) -> AutoencoderTask:
    return AutoencoderTask(latent_channels=4, downsample_factor=2, **options)


def drawn(task: AutoencoderTask, batch, seed: int = 0) -> dict:
    return draw_batch(batch, task.draw, seed, 5, 0, Ranks()).draws


@pytest.mark.parametrize("multiscale", [False, True])
def test_the_loss_is_the_sum_of_its_terms(multiscale):
    """Against the figures of evaluation and torch's own divergence, from the network's outputs."""
    task = small_task(ssim_weight=0.3, kl_weight=0.01, ms_ssim=multiscale)
    network, batch = small_network(), batch_of()
    draws = drawn(task, batch)
    found = task.loss(network, batch, draws)

    x = batch[0].double() / 127.5 - 1
    with torch.no_grad():
        mean, logvar = network.encode(x.float())
        x_hat = network.decode(mean + (logvar / 2).exp() * draws["noise"]).double()
    posterior = Normal(mean.double(), (logvar.double() / 2).exp())
    kl = kl_divergence(posterior, Normal(0.0, 1.0)).flatten(1).sum(1)
    l1 = (x_hat - x).abs().flatten(1).mean(1)
    measure = ms_ssim if multiscale else ssim
    similarity = measure((x_hat + 1) / 2, (x + 1) / 2)
    expected = l1 + 0.3 * (1 - similarity) + 0.01 * kl / (3 * 24 * 28)
    assert abs(found["loss"].item() - expected.mean().item()) < 1e-5
    name = "ms_ssim" if multiscale else "ssim"
    assert set(found) == {"loss", "l1", name, "kl"}
    for key, values in {"l1": l1, name: similarity, "kl": kl}.items():
        total, count = found[key].tolist()
        assert count == 3 and total == pytest.approx(values.sum().item(), rel=1e-4, abs=1e-5)
        assert not found[key].requires_grad


def test_the_divergence_in_closed_form():
    """A posterior N(2, e^2) on each of the 2 x 3 x 1 numbers: KL = (4 + e^2 - 1 - 2) / 2."""
    task = small_task(ssim_weight=0)
    x = torch.zeros(1, 3, 6, 2)
    mean, logvar = torch.full((2, 2, 3, 1), 2.0), torch.full((2, 2, 3, 1), 2.0)
    kl = task.terms(x, x, mean, logvar)["kl"]
    assert (kl - 6 * (4 + 7.38905609893 - 3) / 2).abs().max() < 1e-4
    nothing = task.terms(x, x, 0 * mean, 0 * logvar)
    assert nothing["kl"].abs().max() == 0 and nothing["l1"].abs().max() == 0


def test_what_is_drawn_depends_on_seed_step_and_place_alone():
    task, batch = small_task(flip=True), batch_of(count=6)
    draws = drawn(task, batch)
    assert draws["noise"].shape == (6, 4, 12, 14) and draws["mirrored"].shape == (6,)
    assert draws["mirrored"].dtype == torch.bool
    again, other = drawn(task, batch), drawn(task, batch, seed=1)
    assert all(torch.equal(draws[key], again[key]) for key in draws)
    assert not torch.equal(draws["noise"], other["noise"])
    tail = draw_batch(tuple(part[4:] for part in batch), task.draw, 0, 5, 4, Ranks()).draws
    assert all(torch.equal(draws[key][4:], tail[key]) for key in draws)
    network = small_network()
    assert torch.equal(
        task.loss(network, batch, draws)["loss"], task.loss(network, batch, again)["loss"]
    )


def test_mirroring_is_of_the_image_and_its_reconstruction():
    task, batch, network = small_task(flip=True), batch_of(), small_network()
    draws = drawn(task, batch)
    for mirrored in (False, True):
        draws["mirrored"] = torch.full((3,), mirrored)
        found = task.loss(network, batch, draws)["loss"]
        pixels = batch[0].flip(3) if mirrored else batch[0]
        plain = small_task().loss(network, (pixels, *batch[1:]), draws)["loss"]
        assert torch.equal(found, plain)


@pytest.mark.parametrize("term", ["l1", "ssim", "kl", "features"])
def test_each_term_reaches_the_weights(term):
    """The gradient changes with the weight of each term, and L1 alone reaches both halves."""

    def gradient(**options):
        network = small_network()
        task = small_task(**{"ssim_weight": 0.0, "kl_weight": 0.0, **options})
        batch = batch_of()
        task.loss(network, batch, drawn(task, batch))["loss"].backward()
        return [network.encoder.conv_in.weight.grad, network.decoder.conv_out.weight.grad]

    torch.manual_seed(0)
    features = PerceptualFeatures(EfficientNetLite0(), CPU)
    changes = {
        "l1": {},
        "ssim": {"ssim_weight": 1.0},
        "kl": {"kl_weight": 1.0},
        "features": {"features": features, "feature_weight": 1.0},
    }
    base, changed = gradient(), gradient(**changes[term])
    for gradient_of_half in changed:
        assert gradient_of_half.isfinite().all() and gradient_of_half.abs().max() > 0
    if term != "l1":
        assert (base[0] - changed[0]).abs().max() > 1e-6
    assert all(parameter.grad is None for parameter in features.network.parameters())


def test_it_learns_a_picture():
    network, task, batch = small_network(), small_task(), batch_of((16, 16))
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    losses = []
    for step in range(40):
        draws = draw_batch(batch, task.draw, 0, step, 0, Ranks()).draws
        out = task.loss(network, batch, draws)
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
        losses.append(out["loss"].item())
    assert losses[-1] < 0.6 * losses[0]


def test_half_precision_does_not_reach_the_terms():
    task, batch, network = small_task(), batch_of(), small_network()
    draws = drawn(task, batch)
    with torch.autocast("cpu", torch.bfloat16):
        found = task.loss(network, batch, draws)
    assert all(value.dtype == torch.float32 for value in found.values())
    assert found["loss"].item() == pytest.approx(
        task.loss(network, batch, draws)["loss"].item(), rel=0.05
    )


def test_the_loss_reads_no_value():
    """On the meta device there are none."""
    torch.manual_seed(0)
    features = PerceptualFeatures(EfficientNetLite0(), torch.device("meta"))
    for multiscale in (False, True):
        task = small_task(flip=True, ms_ssim=multiscale, features=features, feature_weight=1.0)
        batch = batch_of()
        draws = {name: value.to("meta") for name, value in drawn(task, batch).items()}
        on_meta = tuple(part.to("meta") for part in batch)
        task.loss(small_network().to("meta"), on_meta, draws)["loss"].backward()


def test_images_that_are_too_small():
    with pytest.raises(ValueError, match="image size 10,28: SSIM needs sides of 11 pixels"):
        small_task().check_image_size(10, 28)
    with pytest.raises(ValueError, match="SSIM needs sides of 11 pixels"):
        drawn(small_task(), batch_of((10, 28)))
    with pytest.raises(ValueError, match="image size 13,28: both must be multiples of 2"):
        small_task().check_image_size(13, 28)
    task, batch = small_task(ssim_weight=0.0), batch_of((2, 2))
    assert task.loss(small_network(), batch, drawn(task, batch))["loss"].isfinite()


# --- Features ---


def test_activations_are_those_on_the_way_to_the_features():
    torch.manual_seed(0)
    network = EfficientNetLite0().eval()
    x = torch.randn(2, 3, 40, 64)
    found = network.activations(x)
    sizes = [tuple(a.shape[1:]) for a in found]
    assert sizes == [(16, 20, 32), (24, 10, 16), (40, 5, 8), (112, 3, 4), (320, 2, 2)]
    pooled = torch.nn.functional.relu6(network.head(found[-1])).mean(dim=(2, 3))
    assert torch.equal(pooled, network(x))


def test_distances_of_features():
    a = [torch.randn(2, 8, 5, 6), torch.randn(2, 3, 2, 2)]
    assert feature_distances(a, [3 * layer for layer in a]).abs().max() < 1e-12
    opposite = feature_distances(a, [-layer for layer in a])
    assert (opposite - 4).abs().max() < 1e-5  # |u - (-u)|^2
    zero = torch.zeros(1, 4, 2, 2, requires_grad=True)
    feature_distances([zero], [torch.ones(1, 4, 2, 2)]).sum().backward()
    assert zero.grad.isfinite().all()


@pytest.mark.metrics
def test_published_features_see_a_blur():
    for channels in (1, 3):
        features = perceptual_features(CPU, channels)
        x = batch_of((28, 28))[0][:, :channels] / 127.5 - 1
        blurred = [torch.nn.functional.avg_pool2d(x, k, 1, k // 2) for k in (1, 3, 5)]
        distances = [feature_distances(features(b), features(x)).mean() for b in blurred]
        assert distances[0] == 0 and distances[2] > distances[1] > 0.01


def test_features_of_other_images_are_refused():
    with pytest.raises(UserError, match="1 or 3 channels .* not 2"):
        perceptual_features(CPU, 2)
