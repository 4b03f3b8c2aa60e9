#!/usr/bin/env python3
"""Time training steps and sampling side by side: the variants take turns, so that fluctuations of
the machine affect all of them alike.

    python tools/benchmark.py peers               # ours beside other libraries: tables, JSON, a picture
    python tools/benchmark.py peers --quick       # the same in less than 3 minutes
    python tools/benchmark.py train               # our networks and number formats
    python tools/benchmark.py sample              # samplers, guidance on and off
    python tools/benchmark.py save                # how long a checkpoint holds up training
    python tools/benchmark.py latent --image_size 256 --image_channels 3 --batch_size 4 --rounds 3

`latent` compares a training step on pixels with one on latents of a quarter and an eighth of their
size. All but `peers` print the median of each variant and its ratio to the first one.
"""

from __future__ import annotations

import statistics
import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils import options as opt
from utils.options import Option, shared

if TYPE_CHECKING:  # what runs imports them where it needs them, so that --help answers at once
    import torch

    from utils.benchmarks.own import Timed

PEERS = "peers"
WHAT = opt.Choice((PEERS, "train", "sample", "save", "latent"))
NETWORK_PRESETS = opt.Choice(tuple(name for name in opt.PRESETS.values if name != opt.AUTO))

# fmt: off
OPTIONS: opt.Table = {
    "options": [
        Option("what",               None,    WHAT,              "what to time"),
        Option("--batch_size",       32,      opt.positive,      "images per step"),
        Option("--rounds",           None,    opt.positive,      "timed runs of each variant; not set: 10, with --quick 4"),
        Option("--sample_steps",     None,    opt.positive,      "of a sampling, with peers and sample; not set: 10, with --quick 5"),
        shared("--use_gpu", 0),
    ],
    "peers": [
        Option("--cases",            None,    opt.image_shapes,  "side and channels of the images; not set: 28x1,32x3,64x3, with --quick 28x1"),
        Option("--preset",           "tiny",  NETWORK_PRESETS,   "the network: as train.py's preset for such images"),
        Option("--quick",            False,   opt.switch,        "less of everything"),
        Option("--out",              "results/benchmark", opt.path, "folder for benchmark.md, .json and .png"),
    ],
    "train, sample, save and latent": [
        Option("--image_size",       "28",    opt.image_size,    "64, or height,width such as 64,96"),
        Option("--image_channels",   1,       opt.positive,      "1: grey, 3: RGB"),
        Option("--channels",         32,      opt.positive,      "width of the first level"),
        Option("--channel_mult",     "1,2,3", opt.whole_numbers, "width of each level, in multiples of --channels"),
        Option("--blocks_per_level", 1,       opt.positive,      "residual blocks per level"),
        Option("--compile",          False,   opt.switch,        "with train: torch.compile too"),
    ],
}
# fmt: on

CASES = ((28, 1), (32, 3), (64, 3))  # side and channels
QUICK_CASES = CASES[:1]
ROUNDS, QUICK_ROUNDS = 10, 4
SAMPLE_STEPS, QUICK_SAMPLE_STEPS = 10, 5
OVERHEAD_ROUNDS, QUICK_OVERHEAD_ROUNDS = 5, 2
PROCESSES, QUICK_PROCESSES = 3, 1  # of each contender, whose start-up is timed
LOADER_STEPS, QUICK_LOADER_STEPS = 60, 12
IMAGES = opt.ROOT / "datasets" / "demo"


def build_parser() -> opt.Parser:
    return opt.make_parser(__doc__, OPTIONS)


def check(args: Namespace) -> None:
    """Raise UserError for options that belong to something else."""
    is_peers = args.what == PEERS
    group = "train, sample, save and latent" if is_peers else PEERS
    for option in OPTIONS[group]:
        if getattr(args, option.name) != opt.checked_default(option):
            raise opt.UserError(f"{option.flag} belongs to {group}: it does nothing to {args.what}")
    if args.compile and args.what != "train":
        raise opt.UserError(f"--compile belongs to train: it does nothing to {args.what}")
    if args.sample_steps is not None and args.what not in (PEERS, "sample"):
        raise opt.UserError(
            f"--sample_steps belongs to peers and sample: it does nothing to {args.what}"
        )


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    check(args)
    from utils.devices import choose_device, prepare_for_training
    from utils.ranks import Ranks

    device = choose_device(args.use_gpu, Ranks())
    prepare_for_training(device)  # as train.py does
    if args.what == PEERS:
        compare_with_peers(args, device)
    else:
        time_our_own(args, device)


# --- Ours beside others ---


def compare_with_peers(args: Namespace, device: torch.device) -> None:
    """Print the tables, and write them, a JSON file and a picture into a folder."""
    from utils.benchmarks.case import NOISE_STEPS, Case
    from utils.benchmarks.comparison import Plan, compare
    from utils.benchmarks.report import as_markdown, prepare_folder, write_report

    quick = args.quick
    sides = args.cases or (QUICK_CASES if quick else CASES)
    sample_steps = args.sample_steps or (QUICK_SAMPLE_STEPS if quick else SAMPLE_STEPS)
    if sample_steps > NOISE_STEPS:
        raise opt.UserError(
            f"--sample_steps {sample_steps} is more than the {NOISE_STEPS} steps of training"
        )
    cases = [
        Case(args.preset, side, channels, args.batch_size, sample_steps) for side, channels in sides
    ]
    plan = Plan(
        cases=tuple(cases),
        rounds=args.rounds or (QUICK_ROUNDS if quick else ROUNDS),
        overhead_rounds=QUICK_OVERHEAD_ROUNDS if quick else OVERHEAD_ROUNDS,
        processes=QUICK_PROCESSES if quick else PROCESSES,
        loader_steps=QUICK_LOADER_STEPS if quick else LOADER_STEPS,
        images=IMAGES,
    )
    prepare_folder(args.out)
    found = compare(plan, device)
    opt.say(as_markdown(found))
    write_report(found, args.out)
    opt.say(f"written to {args.out}")


# --- Ours alone ---


def time_our_own(args: Namespace, device: torch.device) -> None:
    """Print a line for each variant."""
    import torch

    from utils.benchmarks.turns import take_turns, timer_of

    try:
        variants, between_turns = own_variants(args, device)
    except ValueError as error:  # such as widths that do not fit together
        raise opt.UserError(str(error)) from None
    timers = {name: timer_of(run, device) for name, run in variants.items()}
    seconds = take_turns(timers, args.rounds or ROUNDS, between_turns)
    threads = torch.get_num_threads()
    opt.say(f"torch {torch.__version__}, {device}, {threads} threads, batch {args.batch_size}")
    first = statistics.median(next(iter(seconds.values())))
    for name, times in seconds.items():
        median = statistics.median(times)
        speed = "" if args.what == "save" else f"{args.batch_size / median:8.1f} images/s"
        ratio = f"{median / first:5.2f} x the time of the first"
        opt.say(f"{name:34s} {1000 * median:8.1f} ms   {speed}   {ratio}")


def own_variants(args: Namespace, device: torch.device) -> Timed:
    """What is timed. Raises ValueError for shapes that do not fit together."""
    from utils.benchmarks import own

    shapes = own.Shapes(
        image_size=args.image_size,
        image_channels=args.image_channels,
        channels=args.channels,
        channel_mult=args.channel_mult,
        blocks_per_level=args.blocks_per_level,
        batch_size=args.batch_size,
    )
    if args.what == "train":
        return own.train_variants(shapes, device, args.compile)
    if args.what == "sample":
        return own.sample_variants(shapes, device, args.sample_steps or SAMPLE_STEPS)
    if args.what == "save":
        return own.save_variants(shapes, device)
    return own.latent_variants(shapes, device)


if __name__ == "__main__":
    opt.run_script(main)
