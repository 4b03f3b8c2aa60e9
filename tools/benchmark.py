#!/usr/bin/env python3
"""Time training steps and sampling side by side: the variants take turns, so that fluctuations of
the machine affect all of them alike.

    python tools/benchmark.py train               # networks and number formats
    python tools/benchmark.py train --peers       # and diffusers' network with the same layers
    python tools/benchmark.py sample              # samplers, guidance on and off
    python tools/benchmark.py save                # how long a checkpoint holds up training
    python tools/benchmark.py latent --image_size 256 --image_channels 3 --batch_size 4 --rounds 3

`latent` compares a training step on pixels with one on latents of a quarter and an eighth of their
size. Prints the median of each variant and its ratio to the first one.
"""

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils import options as opt
from utils.options import Option, shared

WHAT = opt.Choice(("train", "sample", "save", "latent"))

# fmt: off
OPTIONS: opt.Table = {
    "options": [
        Option("what",               None,    WHAT,              "what to time"),
        Option("--image_size",       "28",    opt.image_size,    "64, or height,width such as 64,96"),
        Option("--image_channels",   1,       opt.positive,      "1: grey, 3: RGB"),
        Option("--channels",         32,      opt.positive,      "width of the first level"),
        Option("--channel_mult",     "1,2,3", opt.whole_numbers, "width of each level, in multiples of --channels"),
        Option("--blocks_per_level", 1,       opt.positive,      "residual blocks per level"),
        Option("--batch_size",       32,      opt.positive,      "images per step"),
        Option("--rounds",           10,      opt.positive,      "timed runs of each variant"),
        Option("--peers",            False,   opt.switch,        "with train: diffusers' network too"),
        Option("--compile",          False,   opt.switch,        "with train: torch.compile too"),
        shared("--use_gpu", 0),
    ],
}
# fmt: on

CLASSES = 10
WARM_UP_ROUNDS = 2
SAMPLE_STEPS = 10
LATENT_CHANNELS = 4

Variant = Callable[[], None]


def build_parser() -> opt.Parser:
    return opt.make_parser(__doc__, OPTIONS)


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    import torch

    from utils.devices import choose_device, prepare_for_training
    from utils.ranks import Ranks

    device = choose_device(args.use_gpu, Ranks())
    prepare_for_training(device)  # as train.py does
    makers = {
        "train": train_variants,
        "sample": sample_variants,
        "save": save_variants,
        "latent": latent_variants,
    }
    try:
        variants, between_turns = makers[args.what](args, device)
    except ValueError as error:  # such as widths that do not fit together
        raise opt.UserError(str(error)) from None
    seconds = take_turns(variants, between_turns, args.rounds, device)
    threads = torch.get_num_threads()
    opt.say(f"torch {torch.__version__}, {device}, {threads} threads, batch {args.batch_size}")
    first = statistics.median(next(iter(seconds.values())))
    for name, times in seconds.items():
        median = statistics.median(times)
        speed = "" if args.what == "save" else f"{args.batch_size / median:8.1f} images/s"
        ratio = f"{median / first:5.2f} x the time of the first"
        opt.say(f"{name:34s} {1000 * median:8.1f} ms   {speed}   {ratio}")


def take_turns(
    variants: dict[str, Variant], between_turns: Variant, rounds: int, device
) -> dict[str, list[float]]:
    """Seconds of each variant in each round. `between_turns` is not timed."""
    import torch

    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for round_number in range(rounds + WARM_UP_ROUNDS):
        for name, run in variants.items():
            start = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if round_number >= WARM_UP_ROUNDS:
                seconds[name].append(time.perf_counter() - start)
            between_turns()
    return seconds


def nothing() -> None:
    pass


def network_config(args, name: str) -> dict:
    return {
        "name": name,
        "in_channels": args.image_channels,
        "num_classes": CLASSES,
        "channels": args.channels,
        "channel_mult": args.channel_mult,
        "blocks_per_level": args.blocks_per_level,
    }


# --- Training steps ---


def train_variants(args, device) -> tuple[dict[str, Variant], Variant]:
    """A step of the training loop: draws, loss, backward, optimizer, EMA."""
    from model.networks import build_network
    from utils.devices import choose_precision

    formats = [choose_precision(amp, device)[0] for amp in (False, True)]
    if formats[0] == formats[1]:
        formats = formats[:1]
    variants = {}
    for name in opt.NETWORKS.values:
        for precision in formats:
            network = precision.place(build_network(network_config(args, name)))
            variants[f"{name} {precision}"] = training_step(args, network, precision)
            if args.compile:
                compiled = precision.place(build_network(network_config(args, name)))
                compiled.compile(dynamic=False)
                variants[f"{name} {precision} compiled"] = training_step(args, compiled, precision)
    if args.peers:
        for precision in formats:
            peer = precision.place(diffusers_network(args))
            variants[f"UNet2DModel {precision}"] = training_step(args, peer, precision)
    return variants, nothing


def training_step(args, network, precision) -> Variant:
    """A step on pixels."""
    import torch

    from model.codecs import PixelCodec
    from utils.training.diffusion_task import DiffusionTask

    generator = torch.Generator().manual_seed(0)
    shape = (args.batch_size, args.image_channels, *args.image_size)
    pixels = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
    task = DiffusionTask(process(), PixelCodec(), conditional=True)
    return step_of(task, pixels, network, precision)


def process():
    from model.diffusion import GaussianDiffusion

    return GaussianDiffusion(noise_schedule="cosine", prediction="v")


def step_of(task, inputs, network, precision) -> Variant:
    """One round of the loop in utils/training/fit.py, on a fixed batch of these inputs (B, ...)."""
    import torch

    from model.ema import EMA
    from utils.ranks import Ranks
    from utils.training.fit import TrainingLoop, Update
    from utils.training.optimizer import build_optimizer
    from utils.training.prefetch import PreparedBatches
    from utils.training.recorder import SilentRecorder
    from utils.training.schedule import Schedule
    from utils.training.state import TrainState

    numbers = torch.arange(len(inputs))
    batch = (inputs, numbers % CLASSES, numbers)
    state = TrainState(
        network=network,
        ema=EMA(network, 0.99),
        optimizer=build_optimizer("adamw", network, 1e-3, 0.01),
        scaler=precision.scaler(),
        seed=0,
        kind="diffusion",
        config={},
        args={},
        versions={},
    )
    ranks = Ranks()
    loop = TrainingLoop(
        network,
        PreparedBatches(forever(batch), task.draw, precision.device, 0, 0),
        task.loss,
        state,
        Schedule(total_steps=10**9, steps_per_epoch=10**9, learning_rate=lambda step: 1e-3),
        SilentRecorder(ranks, has_previews=False),
        Update(precision, ranks, grad_clip=1.0),
        names_of=lambda step: [],
    )

    def step() -> None:
        loop.take_step()
        loop.meter.flush(1)

    return step


def forever(batch: tuple):
    while True:
        yield batch


def diffusers_network(args):
    """diffusers' U-Net with the layers of ours, behind our signature."""
    import torch

    try:
        from diffusers import UNet2DModel
    except ImportError:
        raise opt.UserError("--peers needs diffusers: pip install diffusers") from None
    levels = len(args.channel_mult)

    class Peer(torch.nn.Module):
        num_classes = CLASSES

        def __init__(self):
            super().__init__()
            self.inner = UNet2DModel(
                in_channels=args.image_channels,
                out_channels=args.image_channels,
                num_class_embeds=CLASSES + 1,
                block_out_channels=[args.channels * mult for mult in args.channel_mult],
                layers_per_block=args.blocks_per_level,
                down_block_types=["DownBlock2D"] * (levels - 1) + ["AttnDownBlock2D"],
                up_block_types=["AttnUpBlock2D"] + ["UpBlock2D"] * (levels - 1),
                attention_head_dim=32,
            )

        def forward(self, x, t, labels=None):
            return self.inner(x, t, labels).sample

    return Peer()


def latent_variants(args, device) -> tuple[dict[str, Variant], Variant]:
    """The same network on pixels, and on latents with 4 channels; says the memory of each."""
    from model.networks import build_network
    from utils.devices import choose_precision

    precision, _ = choose_precision(False, device)
    steps = {}
    for factor in (8, 4, 1):
        config = network_config(args, "unet")
        if factor > 1:
            config["in_channels"] = LATENT_CHANNELS
        network = precision.place(build_network(config))
        if factor == 1:
            steps["pixels"] = training_step(args, network, precision)
        else:
            steps[f"latents, 1/{factor}"] = latent_step(args, factor, network, precision)
    before = highest_memory(device)
    for name, step in steps.items():  # smallest first: the highest until then is the last one's
        step()
        used = highest_memory(device) - before
        opt.say(f"{name:34s} {used / 2**20:8.0f} MiB more than before the first step")
    return dict(reversed(steps.items())), nothing


def latent_step(args, factor: int, network, precision) -> Variant:
    """A step on cached latents whose sides are those of the images divided by `factor`."""
    import torch

    from model.codecs import LatentCodec
    from model.networks import build_network
    from utils.training.diffusion_task import LatentDiffusionTask

    levels = {4: [8, 8, 8], 8: [8, 8, 8, 8]}[factor]
    config = {"name": "autoencoder", "block_out_channels": levels, "norm_num_groups": 8}
    autoencoder = build_network({**config, "in_channels": args.image_channels})
    means, stds = [0.0] * LATENT_CHANNELS, [1.0] * LATENT_CHANNELS
    codec = LatentCodec(autoencoder, means, stds).to(precision.device)
    shape = codec.shape(args.image_size, args.image_channels)
    moments = torch.rand(args.batch_size, 1, 2, *shape)  # one view, mean and standard deviation
    task = LatentDiffusionTask(process(), codec, conditional=True)
    return step_of(task, moments, network, precision)


def highest_memory(device) -> int:
    """Bytes: the most that was in use until now, of the GPU or of this process."""
    import resource

    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # Linux counts in KiB


# --- Sampling ---


def sample_variants(args, device) -> tuple[dict[str, Variant], Variant]:
    """One batch of images in 10 steps."""
    from model.networks import build_network
    from model.samplers import build_sampler
    from utils.devices import choose_precision

    precision, _ = choose_precision(False, device)
    network = precision.place(build_network(network_config(args, "unet"))).eval()
    labels = [i % CLASSES for i in range(args.batch_size)]

    def sampling(name: str, scale: float) -> Variant:
        sampler = build_sampler(name, {}, sample_steps=SAMPLE_STEPS, device=device)

        def run() -> None:
            sampler.sample(
                network,
                args.batch_size,
                args.image_size,
                args.image_channels,
                labels,
                scale,
                seeds=range(args.batch_size),
            )

        return run

    variants = {}
    for scale in (1.0, 2.0):
        for name in opt.SAMPLERS.values:
            variants[f"{name}, guidance {scale:g}"] = sampling(name, scale)
    return variants, nothing


# --- Saving ---


def save_variants(args, device) -> tuple[dict[str, Variant], Variant]:
    """A checkpoint's copy to host memory alone, and the call that the training loop waits for."""
    import tempfile

    import torch

    from model.ema import EMA
    from model.networks import build_network
    from utils.runs.files import snapshot
    from utils.runs.folder import RunFolder
    from utils.training.optimizer import build_optimizer

    network = build_network(network_config(args, "unet")).to(device)
    optimizer, ema = build_optimizer("adamw", network, 1e-3, 0.01), EMA(network, 0.99)
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

    def copy_alone(_keep=folder) -> None:
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


if __name__ == "__main__":
    opt.run_script(main)
