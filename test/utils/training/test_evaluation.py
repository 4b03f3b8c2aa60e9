"""When a run is evaluated, on how much, and what is measured."""

import numpy as np
import pytest
import torch

from model.codecs import LatentCodec, PixelCodec
from model.condition import LatentLabelCondition
from model.diffusion import GaussianDiffusion
from model.networks import build_network
from model.randomness import mix
from utils.devices import Precision
from utils.errors import ReadError
from utils.ranks import PendingSum, Ranks
from utils.training.diffusion_task import DiffusionTask
from utils.training.evaluation import FEWEST_IMAGES, LARGEST_SHARE, plan_evaluations
from utils.training.held_out import HeldOutLoss, SampleOfImages, evaluation_time_steps

# --- When ---


@pytest.mark.parametrize(
    "total_steps, steps_per_epoch, batch, held_out",
    [(1500, 60, 32, 100), (10_000, 10, 16, 20), (1875, 1875, 32, 256), (300, 30, 16, 64)]
    + [(100_000, 500, 128, 256), (40_000, 20_000, 8, 256), (90, 9, 4, 20)],
)
def test_evaluations_take_little_of_the_run(total_steps, steps_per_epoch, batch, held_out):
    plan = plan_evaluations(total_steps, steps_per_epoch, batch, held_out, passes=8)
    assert FEWEST_IMAGES <= plan.images <= held_out
    assert plan.count == -(-total_steps // plan.interval) <= 21
    rows = plan.count * plan.images * 2 * 8
    assert plan.share == pytest.approx(rows / (3 * total_steps * batch))
    assert plan.share <= LARGEST_SHARE * 1.3 or plan.count == 1
    if total_steps >= 1500:
        assert plan.count >= 4


def test_long_runs_have_twenty_evaluations_on_all_that_is_held_out():
    plan = plan_evaluations(100_000, 500, 128, 256, passes=8)
    assert plan.interval == 5000 and plan.count == 20 and plan.images == 256


def test_the_interval_that_is_asked_for():
    plan = plan_evaluations(1500, 60, 32, 100, passes=8, interval_epochs=1)
    assert plan.interval == 60 and plan.count == 25 and plan.images == 24
    assert plan_evaluations(1500, 60, 32, 100, 8, interval_epochs=99).interval == 1500


# --- What ---

PROCESSES = [
    GaussianDiffusion(noise_schedule="cosine", prediction="v"),
    GaussianDiffusion(noise_schedule="linear", noise_steps=300),
]


@pytest.mark.parametrize("diffusion", PROCESSES, ids=["cosine", "linear"])
def test_time_steps_are_evenly_spaced_in_log_snr(diffusion):
    steps = evaluation_time_steps(diffusion)
    assert len(steps) == 8 and steps == sorted(set(steps))
    log_snr = diffusion.levels.log_snr(torch.tensor(steps)).flatten()
    gaps = (log_snr[:-1] - log_snr[1:]).numpy()
    assert np.abs(gaps / gaps.mean() - 1).max() < 0.15
    assert log_snr[0] <= 8.5 and log_snr[-1] >= -6.5


def test_a_process_with_few_steps_has_fewer_of_them():
    few = evaluation_time_steps(GaussianDiffusion(noise_steps=3))
    assert 1 <= len(few) <= 3 and set(few) <= {0, 1, 2}


def small_task(conditional: bool = True) -> DiffusionTask:
    return DiffusionTask(PROCESSES[0], PixelCodec(), conditional)


def small_network() -> torch.nn.Module:
    torch.manual_seed(0)
    network = build_network(
        {
            "in_channels": 1,
            "num_classes": 3,
            "channels": 8,
            "channel_mult": [1, 2],
            "head_channels": 8,
            "dropout": 0.5,
            "norm_groups": 2,  # norms of one channel would take what the label adds away
        }
    )
    for parameter in network.parameters():  # its last layer starts at zero
        torch.nn.init.normal_(parameter, std=0.1)
    return network.double()


def sample(count: int, seed: int) -> SampleOfImages:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return SampleOfImages(pixels, torch.arange(count) % 3, [1000 * seed + i for i in range(count)])


def held_out_loss(ranks: Ranks | None = None, batch_size: int = 7) -> HeldOutLoss:
    precision = Precision(torch.float32, torch.device("cpu"))
    return HeldOutLoss(
        small_task(), sample(5, 1), sample(5, 2), precision, ranks or Ranks(), batch_size, seed=3
    )


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_each_loss_is_that_of_its_image_and_time_step(float64):
    network, measure = small_network(), held_out_loss()
    held_out, training = measure(network)
    assert held_out.shape == training.shape == (5, 8)
    diffusion = measure.task.diffusion
    network.eval()
    for which, table in ((sample(5, 1), held_out), (sample(5, 2), training)):
        for i in range(5):
            x0 = which.pixels[i : i + 1].double() / 127.5 - 1
            for level, t in enumerate(measure.time_steps):
                generator = torch.Generator().manual_seed(mix(3, which.numbers[i], t))
                noise = torch.randn(1, 8, 8, generator=generator)[None]
                abar = diffusion.alphas_cumprod[t]
                x_t = abar.sqrt() * x0 + (1 - abar).sqrt() * noise
                target = abar.sqrt() * noise - (1 - abar).sqrt() * x0
                with torch.no_grad():
                    output = network(x_t, torch.tensor([t]), which.labels[i : i + 1])
                assert abs(float(((output - target) ** 2).mean()) - table[i, level]) < 1e-10


def test_the_network_keeps_its_mode_and_gets_no_gradients(float64):
    network = small_network().train()
    held_out, _ = held_out_loss()(network)
    again, _ = held_out_loss(batch_size=3)(network)
    assert network.training and all(p.grad is None for p in network.parameters())
    assert np.abs(held_out - again).max() < 1e-10  # no dropout, any batch


def test_processes_share_the_work(float64):
    """Each measures its part, and the sum over them is the whole."""
    network, alone = small_network(), held_out_loss()(small_network())
    parts = []

    class OneOfThree(Ranks):
        def start_sum(self, tensor):
            parts.append(tensor.clone())
            return PendingSum(tensor)

    for rank in range(3):
        held_out_loss(OneOfThree(rank=rank, world_size=3))(network)
    assert max(int((part != 0).sum()) for part in parts) == 27  # of 80
    together = torch.stack(parts).sum(0).view(-1, 8).numpy()
    expected = np.concatenate(alone)
    assert np.abs(together - expected).max() < 1e-10


def test_the_gain_of_labels_is_that_of_the_losses_with_and_without(float64):
    network, measure = small_network(), held_out_loss()
    found = measure.gain_of_labels(network)
    diffusion = measure.task.diffusion
    log_snr = diffusion.levels.log_snr(torch.arange(diffusion.noise_steps)).flatten()
    t = int((log_snr + 4).abs().argmin())
    which = sample(5, 1)
    x0 = which.pixels.double() / 127.5 - 1
    noise = torch.stack(
        [
            torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(mix(3, number, t)))
            for number in which.numbers
        ]
    )
    steps = torch.full((5,), t)
    x_t, _ = diffusion.noise_images(x0, steps, noise)
    target = diffusion.target(x0, noise, steps)
    network.eval()
    with torch.no_grad():
        told = ((network(x_t, steps, which.labels) - target) ** 2).mean()
        untold = ((network(x_t, steps, torch.full((5,), 3)) - target) ** 2).mean()
    assert found == pytest.approx(float(untold / told - 1), abs=1e-9) and found != 0


def test_processes_share_the_gain_of_labels(float64):
    """Each adds its part of both sums."""
    alone = held_out_loss().gain_of_labels(small_network())
    sums = []

    class OneOfTwo(Ranks):
        def start_sum(self, tensor):
            sums.append(tensor.clone())
            return PendingSum(tensor + 1)

    for rank in range(2):
        held_out_loss(OneOfTwo(rank=rank, world_size=2)).gain_of_labels(small_network())
    told, untold = sums[0] + sums[2], sums[1] + sums[3]
    assert alone == pytest.approx(float(untold.mean() / told.mean() - 1), abs=1e-9)


def test_without_classes(float64):
    measure = held_out_loss()
    measure.task = small_task(conditional=False)
    labels = []

    def network(x, t, label=None):
        labels.append(label)
        return x

    measure(network)
    assert set(labels) == {None}


def test_images_that_cannot_be_read_any_more_are_named():
    images = [(torch.zeros(1, 8, 8), 0, 0), ReadError("a.png has changed")]
    with pytest.raises(ReadError, match=r"a\.png has changed"):
        SampleOfImages.of(images, np.array([0, 1]))


def test_label_maps_beside_latents_are_encoded_a_part_at_a_time():
    """Their pixels take as many numbers as there are labels."""
    network = build_network(
        {
            "name": "autoencoder",
            "in_channels": 1,
            "latent_channels": 2,
            "block_out_channels": [8, 8],
            "layers_per_block": 1,
            "norm_num_groups": 4,
        }
    ).eval()
    condition = LatentLabelCondition([0, 1], factor=2)
    task = small_task()
    task.codec, task.condition = LatentCodec(network, [0.0, 0.0], [1.0, 1.0]), condition
    asked = []
    task.encode = lambda pixels: asked.append(len(pixels)) or DiffusionTask.encode(task, pixels)
    steered = [
        SampleOfImages(torch.cat([each.pixels, each.pixels % 2], dim=1), each.labels, each.numbers)
        for each in (sample(5, 1), sample(5, 2))
    ]
    precision = Precision(torch.float32, torch.device("cpu"))
    measure = HeldOutLoss(task, *steered, precision, Ranks(), 4, seed=3)
    assert asked == [4, 4, 2]
    latents, conditions = measure._latents
    whole = torch.cat([each.pixels for each in steered])
    for found, expected in zip(
        (latents, conditions), DiffusionTask.encode(task, whole), strict=True
    ):
        assert (found - expected).abs().max() < 1e-5
