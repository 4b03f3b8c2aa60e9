"""Steps that are recorded and replayed, with a recording that any device can make.

What a real CUDA graph does is in test_gpu.py.
"""

import contextlib
import gc
import weakref
from dataclasses import replace

import pytest
import torch

from model.codecs import PixelCodec
from model.networks import build_network
from utils.benchmarks.own_steps import build_loop, process
from utils.devices import Precision
from utils.ranks import Ranks
from utils.training import cuda_graph, fit
from utils.training.cuda_graph import RecordedStep, why_not_recorded
from utils.training.diffusion_task import DiffusionTask
from utils.training.prefetch import PreparedBatches

CPU = torch.device("cpu")
NETWORK = {"name": "unet", "in_channels": 1, "num_classes": 3, "channels": 16}
NETWORK |= {"channel_mult": (1, 2), "blocks_per_level": 1, "norm_groups": 8, "augmentation": 9}

RATE = 2.0**-10  # which fp32 holds exactly, as it does its multiples


class Recording:
    """Stands for a CUDAGraph: a replay computes once more on the tensors that were recorded, and
    puts the results where they were.
    """

    step: RecordedStep

    def replay(self):
        result = self.step._result
        again = self.step.compute(self.step._inputs, self.step._lr)
        result.grad_norm.copy_(again.grad_norm)
        for name, pair in result.sums.items():
            pair.copy_(again.sums[name])


@pytest.fixture
def recordings(monkeypatch):
    """How often steps are recorded where there is no GPU; a recording moves no weights."""
    made = []

    @contextlib.contextmanager
    def recording(graph, capture_error_mode):
        assert capture_error_mode == "thread_local"
        step = made[-1][0]
        state = step.compute.__self__.state
        before = state.snapshot()
        yield
        state.put_back(before)
        graph.step = step

    class Watched(RecordedStep):
        def _record(self, compute, batches):
            made.append((self, len(batches)))
            self.compute = compute
            super()._record(compute, batches)

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Recording)
    monkeypatch.setattr(torch.cuda, "graph", recording)
    monkeypatch.setattr("utils.training.fit.RecordedStep", Watched)
    return made


def batch_of(images: int, number: int) -> tuple:
    generator = torch.Generator().manual_seed(number)
    pixels = torch.randint(256, (images, 1, 8, 8), dtype=torch.uint8, generator=generator)
    return pixels, torch.arange(images) % 3, torch.arange(images)


def weights_after(steps: int, recorded: bool, optimizer: str, batches=None, accumulate=1):
    """The weights, and the rows of all steps."""
    torch.manual_seed(0)
    network = build_network(NETWORK)
    task = DiffusionTask(process(), PixelCodec(), conditional=True, flip=True, augment=0.3)
    batches = batches or [batch_of(6, number) for number in range(steps * accumulate)]
    loader = PreparedBatches(batches, task.draw, CPU, 0, 0, accumulate)
    loop = build_loop(task, loader, network, Precision(torch.float32, CPU), optimizer)
    loop.update.accumulate = accumulate
    if recorded:
        loop.recorded = fit.RecordedStep(CPU)
    loop.schedule = replace(loop.schedule, learning_rate=lambda step: RATE * (step + 1))
    for _ in range(steps):
        loop.take_step()
    assert all(group["lr"] == steps * RATE for group in loop.state.optimizer.param_groups)
    rows = loop.meter.flush(10)
    return torch.cat([w.detach().flatten() for w in network.parameters()]), rows, loop.state


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_replayed_steps_are_the_same(recordings, optimizer, accumulate):
    """With a learning rate, images and random numbers that change from step to step. What is
    rounded in a nearly singular gradient is large in Muon's step of it.
    """
    bound = 1e-4 if optimizer == "muon" else 1e-6
    plain, rows, state = weights_after(5, False, optimizer, accumulate=accumulate)
    replayed, others, other = weights_after(5, True, optimizer, accumulate=accumulate)
    assert [count for _, count in recordings] == [accumulate]
    assert (plain - replayed).abs().max() <= bound
    assert plain.std() > 0.01
    for row, found in zip(rows, others, strict=True):
        assert row.keys() == found.keys()
        for name in row.keys() - {"images_per_second"}:
            assert found[name] == pytest.approx(row[name], abs=1e-4, nan_ok=True), name
    for one, two in zip(
        state.ema.network.parameters(), other.ema.network.parameters(), strict=True
    ):
        assert (one - two).abs().max() <= bound


def test_a_batch_of_another_shape_is_computed_as_it_is(recordings):
    batches = [batch_of(count, number) for number, count in enumerate((6, 6, 4, 6, 4))]
    plain, _, _ = weights_after(5, False, "adamw", batches)
    replayed, _, _ = weights_after(5, True, "adamw", batches)
    assert len(recordings) == 1
    assert (plain - replayed).abs().max() <= 1e-6


def test_a_recording_goes_with_its_loop():
    """At once, without waiting for Python's garbage collector: it holds memory of the GPU."""
    task = DiffusionTask(process(), PixelCodec(), conditional=True)
    batches = [batch_of(4, number) for number in range(3)]
    loader = PreparedBatches(batches, task.draw, CPU, 0, 0)
    loop = build_loop(task, loader, build_network(NETWORK), Precision(torch.float32, CPU))
    loop.recorded = RecordedStep(CPU)
    loop.take_step()
    recorded = weakref.ref(loop.recorded)
    gc.disable()
    try:
        del loop
        assert recorded() is None
    finally:
        gc.enable()


def test_nothing_is_recorded_at_first(recordings):
    """The first step builds the optimizer's state, which a recording must find."""
    weights_after(cuda_graph.EAGER_STEPS, True, "muon")
    assert recordings == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, ""),
        ({"optim": "muon"}, ""),
        ({"precision": Precision(torch.float32, CPU)}, "no CUDA device"),
        ({"precision": Precision(torch.float16, torch.device("cuda"))}, "fp16"),
        ({"ranks": Ranks(rank=0, world_size=2)}, "several processes"),
        ({"optim": "sgd"}, "sgd"),
        ({"compiled": True}, "--compile"),
        ({"checkpointed": True}, "--checkpoint_activations"),
    ],
)
def test_what_is_not_recorded(changes, reason):
    usual = {"precision": Precision(torch.bfloat16, torch.device("cuda")), "ranks": Ranks()}
    found = why_not_recorded(**{**usual, "optim": "adamw", **changes})
    assert (reason in found) if reason else found == ""
