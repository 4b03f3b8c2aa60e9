"""Our networks, samplers, savings and latents beside each other."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from model.codecs import LatentCodec, PixelCodec
from model.ema import EMA
from model.networks import DENOISERS, build_network, check_image_size
from model.samplers import SAMPLERS, build_sampler
from utils.benchmarks.memory import highest_memory
from utils.benchmarks.own_steps import process, random_pixels, step_of
from utils.benchmarks.turns import Variant, nothing
from utils.console import say
from utils.devices import Precision, choose_precision, formats_of
from utils.runs.files import snapshot
from utils.runs.folder import RunFolder
from utils.training.diffusion_task import DiffusionTask, LatentDiffusionTask
from utils.training.optimizer import build_optimizer

CLASSES = 10
LATENT_CHANNELS = 4
AUTOENCODER_LEVELS = {4: [8, 8, 8], 8: [8, 8, 8, 8]}  # by the factor between image and latent

# What is timed, and what happens between two turns.
Timed = tuple[dict[str, Variant], Variant]


@dataclass(frozen=True)
class Shapes:
    """Of the network and its batches."""

    image_size: tuple[int, int]
    image_channels: int
    channels: int
    channel_mult: tuple[int, ...]
    blocks_per_level: int
    batch_size: int

    def network(self, name: str = "unet", in_channels: int | None = None) -> dict:
        """The config of a network with classes."""
        return {
            "name": name,
            "in_channels": in_channels or self.image_channels,
            "num_classes": CLASSES,
            "channels": self.channels,
            "channel_mult": self.channel_mult,
            "blocks_per_level": self.blocks_per_level,
        }


# --- Training steps ---


def train_variants(shapes: Shapes, device: torch.device, compiled: bool) -> Timed:
    """A step of the training loop for each network and number format, also compiled."""
    variants = {}
    for name in DENOISERS:
        for precision in formats_of(device):
            network = precision.place(build_network(shapes.network(name)))
            variants[f"{name} {precision}"] = training_step(shapes, network, precision)
            if compiled:
                network = precision.place(build_network(shapes.network(name)))
                network.compile(dynamic=False)
                # as train.py, which records no compiled network
                step = training_step(shapes, network, precision, recorded=False)
                variants[f"{name} {precision} compiled"] = step
    return variants, nothing


def training_step(
    shapes: Shapes, network: nn.Module, precision: Precision, recorded: bool = True
) -> Variant:
    """A step on pixels. Raises ValueError for a size that the network does not take."""
    check_image_size(*shapes.image_size, network.downsample_factor)  # type: ignore[arg-type]
    pixels = random_pixels((shapes.batch_size, shapes.image_channels, *shapes.image_size))
    task = DiffusionTask(process(), PixelCodec(), conditional=True)
    return step_of(task, pixels, network, precision, classes=CLASSES, recorded=recorded)


def latent_variants(shapes: Shapes, device: torch.device) -> Timed:
    """The same network on pixels, and on latents with 4 channels; says the memory of each."""
    precision, _ = choose_precision(False, device)
    steps = {}
    for factor in (8, 4):
        network = precision.place(build_network(shapes.network(in_channels=LATENT_CHANNELS)))
        steps[f"latents, 1/{factor}"] = latent_step(shapes, factor, network, precision)
    network = precision.place(build_network(shapes.network()))
    steps["pixels"] = training_step(shapes, network, precision)
    before = highest_memory(device)
    for name, step in steps.items():  # smallest first: the highest until then is the last one's
        step()
        used = highest_memory(device) - before
        say(f"{name:34s} {used / 2**20:8.0f} MiB more than before the first step")
    return dict(reversed(steps.items())), nothing


def latent_step(shapes: Shapes, factor: int, network: nn.Module, precision: Precision) -> Variant:
    """A step on cached latents whose sides are those of the images divided by `factor`. Raises
    ValueError for a size that does not go with both.
    """
    check_image_size(*shapes.image_size, factor * network.downsample_factor)  # type: ignore[arg-type, operator]
    levels = AUTOENCODER_LEVELS[factor]
    config = {"name": "autoencoder", "block_out_channels": levels, "norm_num_groups": 8}
    autoencoder: Any = build_network({**config, "in_channels": shapes.image_channels})
    means, stds = [0.0] * LATENT_CHANNELS, [1.0] * LATENT_CHANNELS
    codec = LatentCodec(autoencoder, means, stds).to(precision.device)
    shape = codec.shape(shapes.image_size, shapes.image_channels)
    moments = torch.rand(shapes.batch_size, 1, 2, *shape)  # one view, mean and standard deviation
    task = LatentDiffusionTask(process(), codec, conditional=True)
    return step_of(task, moments, network, precision, classes=CLASSES)


# --- Sampling ---


def sample_variants(shapes: Shapes, device: torch.device, sample_steps: int) -> Timed:
    """One batch of images by each sampler, with and without guidance."""
    precision, _ = choose_precision(False, device)
    network = precision.place(build_network(shapes.network())).eval()
    check_image_size(*shapes.image_size, network.downsample_factor)  # type: ignore[arg-type]
    labels = [i % CLASSES for i in range(shapes.batch_size)]

    def sampling(name: str, scale: float) -> Variant:
        sampler = build_sampler(name, {}, sample_steps=sample_steps, device=device)

        def run() -> None:
            sampler.sample(
                network,
                shapes.batch_size,
                shapes.image_size,
                shapes.image_channels,
                labels,
                scale,
                seeds=range(shapes.batch_size),
            )

        return run

    variants = {}
    for scale in (1.0, 2.0):
        for name in SAMPLERS:
            variants[f"{name}, guidance {scale:g}"] = sampling(name, scale)
    return variants, nothing


# --- Saving ---


def save_variants(shapes: Shapes, device: torch.device) -> Timed:
    """A checkpoint's copy to host memory alone, and the call that the training loop waits for."""
    network = build_network(shapes.network()).to(device)
    optimizer, ema = build_optimizer("adamw", network, 1e-3, 0.01), EMA(network)
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    contents = {
        "network": network.state_dict(),
        "ema": ema.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    folder = tempfile.TemporaryDirectory()
    run = RunFolder(Path(folder.name) / "run", resume=False)

    def copy_alone(_keep: object = folder) -> None:  # the folder lives as long as its variants
        snapshot(contents)

    def background() -> None:
        run.write_checkpoint(contents, None, 0)

    def synchronous() -> None:
        run.write_checkpoint(contents, None, 0)
        run.finish_saving()

    def wait_for_save() -> None:
        run.finish_saving()

    variants = {
        "copy to host memory": copy_alone,
        "what training waits for": background,
        "the whole save": synchronous,
    }
    return variants, wait_for_save
