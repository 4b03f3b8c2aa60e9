#!/usr/bin/env python3
"""Time training steps and sampling side by side: the variants take turns, so the machine's moods
hit all alike.

    python tools/benchmark.py train               # networks and number formats
    python tools/benchmark.py train --peers       # and diffusers' network with the same layers
    python tools/benchmark.py sample              # samplers, guidance on and off
    python tools/benchmark.py save                # how long a checkpoint holds up training

Prints the median of each variant and its ratio to the first one.
"""

import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils import options as opt

# fmt: off
OPTIONS = {
    "options": [
        ("--image_size",        "28",            opt.image_size,      "64 or 64,96"),
        ("--image_channels",    1,               opt.positive,        "1 grey, 3 RGB"),
        ("--channels",          32,              opt.positive,        "width of the first level"),
        ("--channel_mult",      "1,2,3",         opt.whole_numbers,   "width of each level"),
        ("--blocks_per_level",  1,               opt.positive,        "residual blocks per level"),
        ("--batch_size",        32,              opt.positive,        "images per step"),
        ("--rounds",            10,              opt.positive,        "counted turns of each variant"),
        ("--peers",             False,           opt.switch,          "with train: diffusers' network too"),
        ("--compile",           False,           opt.switch,          "with train: torch.compile too"),
        ("--use_gpu",           0,               opt.minus_one_up,    "number of the GPU; -1, or none there: the CPU"),
    ],
}
# fmt: on


def build_parser() -> opt.Parser:
    parser = opt.make_parser(__doc__, OPTIONS)
    parser.add_argument("what", choices=("train", "sample", "save"), help="what to time")
    return parser


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    import torch

    from utils.distributed import Ranks, choose_device

    device = choose_device(args.use_gpu, Ranks())
    makers = {"train": train_variants, "sample": sample_variants, "save": save_variants}
    variants = makers[args.what](args, device)
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for round_number in range(args.rounds + 2):  # two to warm up
        for name, run in variants.items():
            start = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if round_number >= 2:
                seconds[name].append(time.perf_counter() - start)
            getattr(run, "settle", lambda: None)()
    first = statistics.median(next(iter(seconds.values())))
    print(
        f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads, batch {args.batch_size}"
    )
    for name, times in seconds.items():
        median = statistics.median(times)
        speed = f"{args.batch_size / median:8.1f} images/s" if args.what != "save" else ""
        print(
            f"{name:34s} {1000 * median:8.1f} ms   {speed}   {median / first:5.2f} x the time of the first"
        )


def network_config(args, name: str) -> dict:
    shape = {
        "channels": args.channels,
        "channel_mult": args.channel_mult,
        "blocks_per_level": args.blocks_per_level,
    }
    return {"name": name, "in_channels": args.image_channels, "num_classes": 10, **shape}


def train_variants(args, device) -> dict:
    """A step: loss, backward, optimizer, EMA."""
    import torch

    from model.ema import EMA
    from model.networks import build_network
    from model.samplers import DDIM
    from utils.distributed import Ranks, choose_precision
    from utils.trainer import image_generators

    x0 = torch.randn(args.batch_size, args.image_channels, *args.image_size, device=device).clamp(
        -1, 1
    )
    labels = torch.arange(args.batch_size, device=device) % 10
    diffusion = DDIM(noise_schedule="cosine", prediction="v")

    def step_of(network, precision, called=None):
        optimizer, ema = torch.optim.AdamW(network.parameters()), EMA(network, 0.99)

        def step():
            with precision.autocast():
                loss = diffusion.loss(
                    called or network, x0, labels, image_generators(0, 0, 0, len(x0), Ranks())
                )
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            ema.update(network, 1000)

        return step

    formats = [choose_precision(amp, device)[0] for amp in (False, True)]
    formats = formats[:1] if formats[0] == formats[1] else formats
    variants = {}
    for name in opt.NETWORKS:
        for precision in formats:
            network = precision.place(build_network(network_config(args, name)))
            variants[f"{name} {precision}"] = step_of(network, precision)
            if args.compile:
                variants[f"{name} {precision} compiled"] = step_of(
                    network, precision, torch.compile(network)
                )
    if args.peers:
        peer = diffusers_network(args).to(device)
        for precision in formats:
            variants[f"UNet2DModel {precision}"] = step_of(peer, precision)
    return variants


def diffusers_network(args):
    """diffusers' U-Net with the layers of ours, behind our signature."""
    import torch

    try:
        from diffusers import UNet2DModel
    except ImportError:
        raise opt.UserError("--peers needs diffusers: pip install diffusers") from None
    levels = len(args.channel_mult)

    class Peer(torch.nn.Module):
        num_classes = 10

        def __init__(self):
            super().__init__()
            self.inner = UNet2DModel(
                in_channels=args.image_channels,
                out_channels=args.image_channels,
                num_class_embeds=11,
                block_out_channels=[args.channels * m for m in args.channel_mult],
                layers_per_block=args.blocks_per_level,
                down_block_types=["DownBlock2D"] * (levels - 1) + ["AttnDownBlock2D"],
                up_block_types=["AttnUpBlock2D"] + ["UpBlock2D"] * (levels - 1),
                attention_head_dim=32,
            )

        def forward(self, x, t, labels=None):
            return self.inner(x, t, labels).sample

    return Peer()


def sample_variants(args, device) -> dict:
    """One batch of images in 10 steps."""
    from model.networks import build_network
    from model.samplers import build_sampler
    from utils.distributed import choose_precision

    network = choose_precision(False, device)[0].place(build_network(network_config(args, "unet")))
    labels, size = [i % 10 for i in range(args.batch_size)], args.image_size

    def run_of(name, scale):
        diffusion = build_sampler(name, {}, sample_steps=10, device=device)
        seeds = range(args.batch_size)
        return lambda: diffusion.sample(
            network, args.batch_size, size, args.image_channels, labels, scale, seeds
        )

    return {
        f"{name}, guidance {scale}": run_of(name, scale)
        for scale in (1, 2)
        for name in opt.SAMPLERS
    }


def save_variants(args, device) -> dict:
    """A checkpoint's copy to host memory alone, and the call that the training loop waits for."""
    import tempfile

    import torch

    from model.ema import EMA
    from model.networks import build_network
    from utils.checkpoint import snapshot
    from utils.run_folder import RunFolder

    network = build_network(network_config(args, "unet")).to(device)
    optimizer, ema = torch.optim.AdamW(network.parameters()), EMA(network, 0.99)
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

    def copy_alone(_keep=folder):
        snapshot(contents)

    def synchronous():
        run.write_checkpoint(contents, None, 0)
        run.finish_saving()

    def background():
        run.write_checkpoint(contents, None, 0)

    background.settle = run.finish_saving  # not timed
    return {
        "copy to host memory": copy_alone,
        "what training waits for": background,
        "the whole save": synchronous,
    }


if __name__ == "__main__":
    opt.run_script(main)
