#!/usr/bin/env python3
"""Time the same training on one process with all threads of the CPU, and on two with half of them
each: the same global batch, in turns, so that fluctuations of the machine affect both alike.

    python tools/benchmark_processes.py                                   # the demo's network and batch
    python tools/benchmark_processes.py --gradient_compression bf16 --optim adamw

Prints the median images per second of each side and their ratio. Nothing else should run meanwhile.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils import options as opt
from utils.options import Option, shared

# fmt: off
OPTIONS: opt.Table = {
    "options": [
        Option("--image_size",       "28",      opt.image_size,    "64, or height,width such as 64,96"),
        Option("--image_channels",   1,         opt.positive,      "1: grey, 3: RGB"),
        Option("--channels",         32,        opt.positive,      "width of the first level"),
        Option("--channel_mult",     "1,2,3",   opt.whole_numbers, "width of each level, in multiples of --channels"),
        Option("--blocks_per_level", 1,         opt.positive,      "residual blocks per level"),
        Option("--optim",            "muon",    opt.OPTIMIZERS,    "optimizer"),
        Option("--gradient_compression", "none", opt.GRADIENT_COMPRESSIONS, "number format in which the processes exchange gradients"),
        shared("--batch_size",       32,        "images per step, on all processes together"),
        Option("--processes",        2,         opt.positive,      "processes of the second side"),
        Option("--threads",          None,      opt.positive,      "threads of each side; not set: as many as torch takes"),
        Option("--rounds",           10,        opt.positive,      "turns of each side"),
        Option("--steps",            10,        opt.positive,      "steps of a turn"),
    ],
}
# fmt: on

CLASSES = 10


def build_parser() -> opt.Parser:
    return opt.make_parser(__doc__, OPTIONS)


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    if args.processes < 2:
        raise opt.UserError(f"--processes {args.processes} is what the first side has: from 2 on")
    import torch

    from utils.benchmarks.processes import Training, compare

    training = Training(
        network={
            "name": "unet",
            "in_channels": args.image_channels,
            "num_classes": CLASSES,
            "channels": args.channels,
            "channel_mult": args.channel_mult,
            "blocks_per_level": args.blocks_per_level,
        },
        image_size=args.image_size,
        global_batch=args.batch_size,
        optim=args.optim,
        compression=args.gradient_compression,
        steps_per_turn=args.steps,
    )
    threads = args.threads or torch.get_num_threads()
    one, several = compare(training, args.processes, threads, args.rounds)
    opt.say(f"torch {torch.__version__}, {args.optim}, global batch {args.batch_size}")
    for side in (one, several):
        ratio = side.images_per_second / one.images_per_second
        opt.say(
            f"processes {side.processes}, threads of each {side.threads} "
            f"{side.images_per_second:8.1f} images/s   {ratio:5.2f} x the first"
        )


if __name__ == "__main__":
    opt.run_script(main)
