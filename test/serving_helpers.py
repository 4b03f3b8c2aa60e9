"""What the tests of the serving system share: a tiny network as a served weight, and an engine."""

import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from model.codecs import PixelCodec
from model.networks import build_network
from utils.devices import Precision
from utils.editing import Edit
from utils.serving.engine import Engine
from utils.serving.jobs import Client, Job
from utils.serving.limits import Limits
from utils.serving.requests import Asked, resolve
from utils.serving.weights import LoadedDiffusion, Weight, WeightStore

SIDE = 8
CLASSES = ("bag", "boot", "trouser")
NOISE_STEPS = 1000
PROCESS = {
    "noise_steps": NOISE_STEPS,
    "noise_schedule": "linear",
    "beta_start": 1e-4,
    "beta_end": 2e-2,
    "prediction": "eps",
}
NETWORK = {
    "name": "unet",
    "in_channels": 1,
    "num_classes": len(CLASSES),
    "channels": 8,
    "channel_mult": [1, 2],
    "head_channels": 8,
}
CPU = Precision(torch.float32, torch.device("cpu"))
ANYONE = Client("")


class Recorded(nn.Module):
    """A network that counts its calls, and lets a test do something before each."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        self.config = network.config
        self.num_classes = network.num_classes
        self.downsample_factor = network.downsample_factor
        self.rows: list[int] = []
        self.before_call: Callable[[int, Tensor, Tensor, Tensor | None], None] = _nothing

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        self.before_call(len(self.rows), x, t, labels)
        self.rows.append(len(x))
        return self.network(x, t, labels)


def _nothing(number: int, x: Tensor, t: Tensor, labels: Tensor | None) -> None:
    pass


class RecordingCodec(PixelCodec):
    """Keeps what it decodes: finished images before they are rounded."""

    def __init__(self) -> None:
        super().__init__()
        self.decoded: list[Tensor] = []

    def decode(self, x: Tensor) -> Tensor:
        self.decoded += list(x.clone())
        return super().decode(x)


def tiny_network(seed: int = 0) -> nn.Module:
    """Its output is not zero, as that of a new network would be: every image is another."""
    torch.manual_seed(seed)
    network = build_network(NETWORK).eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter += 0.02 * torch.randn_like(parameter)
    return network


def weight_of(name: str = "tiny", side: int = SIDE) -> Weight:
    """A weight without a file."""
    return Weight(
        name=name,
        kind="diffusion",
        path=Path(f"{name}.pt"),
        stem=name,
        run=None,
        stamp=(0, 0, 0),
        classes=CLASSES,
        image_size=(side, side),
        mode="L",
        downsample_factor=2,
        sampler="ddim",
        has_guidance=True,
        noise_steps=NOISE_STEPS,
    )


class Weights(WeightStore):
    """These weights, whatever lies in folders."""

    def __init__(self, *weights: Weight):
        super().__init__([])
        self._weights = {weight.name: weight for weight in weights}


class Bench:
    """An engine with a tiny network whose calls are recorded."""

    def __init__(self, limits: Limits | None = None, weights: WeightStore | None = None):
        self.limits = limits or Limits(max_client_jobs=64)
        self.weights = weights or Weights(weight_of())
        self.network = Recorded(tiny_network().to(torch.get_default_dtype()))
        self.codec = RecordingCodec()
        self.edits: dict[str, Edit | None] = {}  # by the job's id; a finished job has none
        self.engine = Engine(CPU, self.limits, load=self.load)

    def load(self, weight: Weight, use_ema: bool, precision: Precision) -> LoadedDiffusion:
        return LoadedDiffusion(weight, self.network, self.codec, PROCESS, 1, len(CLASSES))

    def submit(self, client: Client = ANYONE, **asked: object) -> Job:
        request = resolve(Asked(**asked), self.weights, self.limits)
        job = self.engine.submit(request, client)
        self.edits[job.id] = request.edit
        return job

    def finish(self, timeout: float = 60) -> None:
        """Start the engine where it has not been, and wait for all jobs."""
        if not self.engine.is_ready:
            self.engine.start()
        wait_until(lambda: not self.engine.jobs.under_way(), timeout)


def wait_until(condition: Callable[[], bool], timeout: float = 60) -> None:
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "it has not come to pass in time"
        time.sleep(0.005)
