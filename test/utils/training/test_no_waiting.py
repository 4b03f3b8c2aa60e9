"""Inside a training or sampling step nothing waits for the device: no value is read back, no table
lies on the wrong device. The "meta" device has no values, so there every such read is an error; the
CPU counts them; CUDA's sync-debug mode is the same test on a GPU.
"""

import contextlib

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from model.codecs import PixelCodec
from model.diffusion import GaussianDiffusion
from model.ema import EMA
from model.networks import build_network
from model.samplers import SAMPLERS, BaseDiffusion, build_sampler
from utils.devices import Precision
from utils.ranks import Ranks
from utils.training.diffusion_task import DiffusionTask
from utils.training.fit import TrainingLoop, Update
from utils.training.optimizer import build_optimizer
from utils.training.prefetch import PreparedBatches
from utils.training.recorder import SilentRecorder
from utils.training.schedule import Schedule
from utils.training.state import TrainState

NETWORK = {
    "in_channels": 1,
    "num_classes": 3,
    "channels": 8,
    "channel_mult": [1, 2],
    "blocks_per_level": 1,
    "head_channels": 8,
    "dropout": 0.1,
    "augmentation": 9,
}
SIZE = (8, 8)
READS = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero")


class HostReads(TorchDispatchMode):
    """Counts operations that hand a value of a tensor to the host."""

    def __init__(self):
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in READS:
            self.found.append(name)
        return function(*args, **(kwargs or {}))


@contextlib.contextmanager
def host_reads(monkeypatch):
    """Operations, and the methods that read memory without one."""
    counter = HostReads()
    for name in ("tolist", "numpy", "cpu", "item", "__bool__", "__int__", "__float__"):
        original = getattr(torch.Tensor, name)

        def counted(self, *args, _name=name, _original=original, **kwargs):
            counter.found.append(_name)
            return _original(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, counted)
    with counter:
        yield counter.found
    monkeypatch.undo()


def training_loop(device: torch.device, optimizer: str = "adamw") -> TrainingLoop:
    torch.manual_seed(0)
    network = build_network(NETWORK).to(device)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (4, 1, *SIZE), dtype=torch.uint8, generator=generator)
    batch = (pixels, torch.arange(4) % 3, torch.arange(4))
    task = DiffusionTask(
        GaussianDiffusion(noise_schedule="cosine", prediction="v"),
        PixelCodec(),
        conditional=True,
        flip=True,
        augment=0.5,
    )
    precision = Precision(torch.float32, device)
    state = TrainState(
        network=network,
        ema=EMA(network, 0.9),
        optimizer=build_optimizer(optimizer, network, 1e-3, 0.01),
        scaler=precision.scaler(),
        seed=0,
        kind="diffusion",
        config={},
        args={},
        versions={},
    )
    ranks = Ranks()
    return TrainingLoop(
        network,
        PreparedBatches([batch] * 10, task.draw, device, 0, 0, accumulate=2),
        task.loss,
        state,
        Schedule(total_steps=5, steps_per_epoch=5, learning_rate=lambda step: 1e-3),
        SilentRecorder(ranks, has_previews=False),
        Update(precision, ranks, accumulate=2, grad_clip=1.0),
        names_of=lambda step: [],
    )


def six_steps(name: str, device: torch.device) -> BaseDiffusion:
    return build_sampler(name, {}, eta=1.0, sample_steps=6, device=device)


def sampling_steps(sampler: BaseDiffusion, count: int = 3) -> None:
    """A few steps of images with and without guidance, some of them late."""
    network = build_network(NETWORK).to(sampler.device).eval()
    scales = [1.0, 2.0, 0.0]
    trajectory = sampler.start(3, SIZE, 1, [0, 1, 2], scales, seeds=[1, 2, 3])
    with torch.no_grad():
        for _ in range(count):
            trajectory, _ = sampler.update(trajectory, network(*sampler.rows(trajectory)))


@pytest.mark.parametrize("optimizer", ["muon", "adamw", "sgd"])
def test_a_training_step_reads_no_value(optimizer):
    loop = training_loop(torch.device("meta"), optimizer)
    for _ in range(2):
        loop.take_step()
    assert loop.state.step == 2


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampling_step_reads_no_value(name):
    sampling_steps(six_steps(name, torch.device("meta")))


def test_a_training_step_asks_the_host_for_nothing(monkeypatch):
    """Twice: torch's AdamW on the CPU reads its own step count, which lies on the host anyway."""
    loop = training_loop(torch.device("cpu"), "sgd")
    loop.take_step()
    with host_reads(monkeypatch) as found:
        loop.take_step()
    assert found == []


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampling_step_asks_the_host_for_nothing(name, monkeypatch):
    sampler = six_steps(name, torch.device("cpu"))
    with host_reads(monkeypatch) as found:
        sampling_steps(sampler)
    assert found == []


class Copies(TorchDispatchMode):
    """Counts copies of tensors from the CPU to another device."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name == "_to_copy" and args[0].device.type == "cpu":
            self.count += (kwargs or {}).get("device", args[0].device) != args[0].device
        return function(*args, **(kwargs or {}))


def test_a_step_copies_what_is_new_and_no_table():
    """Of a micro-batch: pixels, labels, indices, augmentation, mirrored, t, dropped, noise."""
    loop = training_loop(torch.device("meta"))
    loop.take_step()
    with Copies() as copies:
        loop.take_step()
    assert copies.count == 2 * 8


@pytest.mark.parametrize(("name", "noise"), [("ddpm", 1), ("ddim", 1), ("plms", 0)])
def test_a_sampling_step_copies_numbers_and_noise(name, noise):
    """Places of the rows, (t, t_prev, stage), labels; scales, guided places, and fresh noise."""
    device = torch.device("meta")
    network = build_network(NETWORK).to(device).eval()
    sampler = build_sampler(name, {}, eta=1.0, sample_steps=6, device=device)
    trajectory = sampler.start(3, SIZE, 1, [0, 1, 2], [1.0, 2.0, 0.0], seeds=[1, 2, 3])
    with torch.no_grad():
        trajectory, _ = sampler.update(trajectory, network(*sampler.rows(trajectory)))
        with Copies() as before:
            rows = sampler.rows(trajectory)
        output = network(*rows)
        with Copies() as after:
            sampler.update(trajectory, output)
    assert (before.count, after.count) == (3, 2 + noise)


def test_the_counter_counts(monkeypatch):
    with host_reads(monkeypatch) as found:
        torch.ones(1).item()
        torch.ones(2).tolist()
    assert "item" in found and "tolist" in found


@pytest.mark.gpu
@pytest.mark.parametrize("optimizer", ["muon", "adamw", "sgd"])
def test_a_training_step_never_waits_for_the_gpu(optimizer):
    device = torch.device("cuda")
    loop = training_loop(device, optimizer)
    loop.take_step()  # buffers and kernels of the first step
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            loop.take_step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
        loop.loader.close()


@pytest.mark.gpu
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampling_step_never_waits_for_the_gpu(name):
    device = torch.device("cuda")
    sampling_steps(six_steps(name, device))
    network = build_network(NETWORK).to(device).eval()
    sampler = build_sampler(name, {}, eta=1.0, sample_steps=6, device=device)
    trajectory = sampler.start(3, SIZE, 1, [0, 1, 2], [1.0, 2.0, 0.0], seeds=[1, 2, 3])
    with torch.no_grad():
        trajectory, _ = sampler.update(trajectory, network(*sampler.rows(trajectory)))
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(3):
                trajectory, _ = sampler.update(trajectory, network(*sampler.rows(trajectory)))
        finally:
            torch.cuda.set_sync_debug_mode("default")
