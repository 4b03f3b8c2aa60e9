#!/usr/bin/env python3
"""Train a network that enlarges images, on a folder of images.

    python tools/train_upscaler.py --dataset_path my_photos --scale 4 --run_name sr
    python tools/train_upscaler.py --dataset_path my_photos --scale 4 --run_name sr --resume
    python tools/upscale.py IN OUT --weight_path results/sr/ema_last.pt

--image_size is the size of the small images, as a diffusion model would make them; the network
learns to make from them the same files at --scale times that size. The options that are not listed
under "upscaling" are those of train.py.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools.train import OF_DIFFUSION
from tools.train import OPTIONS as TRAINING_OPTIONS
from utils import options as opt
from utils.options import Option

if TYPE_CHECKING:
    from utils.data.pairs import PairSet
    from utils.ranks import Ranks
    from utils.training.run import TrainingRun

USUAL_EPOCHS = 100
USUAL_BATCH = 16  # images per process and step

# fmt: off
OWN: opt.Table = {
    "upscaling": [
        Option("--mode",              "auto",          opt.USUAL_IMAGE_MODES, "colour channels; auto: L (grey) if all images are grey, else RGB"),
        Option("--scale",             2,               opt.Number(int, 2, 4),         "factor that each side grows by"),
        Option("--network",           "rdn",           opt.UPSCALERS,       "network architecture"),
        Option("--features",          64,              opt.positive,        "channels of the network"),
        Option("--blocks",            None,            opt.positive,        "blocks of the network; not set: 3, for edsr 16"),
        Option("--layers",            None,            opt.positive,        "rdn: convolutions per block; not set: 6"),
        Option("--growth",            None,            opt.positive,        "rdn: channels that each of them adds; not set: 32"),
        Option("--crop_size",         32,              opt.Number(int, 4),  "side of the crops that training sees, in pixels of the small images", decides=True),
        Option("--degrade",           False,           opt.switch,          "for photos from the web: small images that are blurred, noisy and compressed", decides=True),
        Option("--luma",              False,           opt.switch,          "PSNR and SSIM of Y of BT.601, as in papers, instead of RGB", decides=True),
        Option("--num_vis",           4,               opt.positive,        "images per preview"),
        Option("--epochs",            None,            opt.epochs,          f"passes over the images; not set: {USUAL_EPOCHS}, or as before where a run is resumed"),
        Option("--batch_size",        None,            opt.positive,        f"images per process and forward pass; not set: {USUAL_BATCH}"),
        Option("--grad_accum",        None,            opt.positive,        f"forward passes per optimizer step; not set: 1, or as few as bring {USUAL_BATCH} images into memory"),
    ],
}
# fmt: on

DEFAULTS = {
    "run_name": "upscaler",
    "image_size": "64",
    "lr": 4e-4,
    "weight_decay": 0.0,
    "ema_decay": 0.999,
    "optim": "adamw",
    "warmup_steps": 100,
    "vis_interval_epochs": 10,
    "amp": False,
}
# Of these options of train.py it has its own, or none.
INSTEAD = ("flip", "mode", "num_vis", "epochs", "batch_size", "grad_accum")
OPTIONS = opt.derived_table(TRAINING_OPTIONS, OWN, DEFAULTS, without=(*OF_DIFFUSION, *INSTEAD))


def build_parser() -> opt.Parser:
    return opt.make_parser(__doc__, OPTIONS)


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    opt.check_training(args)
    opt.choose_average(args, OPTIONS)
    if args.network != "rdn" and (args.layers, args.growth) != (None, None):
        raise opt.UserError("--layers and --growth belong to --network rdn")
    opt.launch_training(partial(train, args), args)


def train(args: Namespace, ranks: Ranks) -> None:
    """One process of the run, in the order of execution."""
    from utils.data.pairs import CropSet, load_pairs
    from utils.evaluation.restoration import Convention, baseline_in_words
    from utils.training.restoration import plan_restoration
    from utils.training.run import TrainingRun, held_out_data
    from utils.training.upscaling_measures import build_previews, build_score
    from utils.training.upscaling_task import UpscalingTask
    from utils.training.work import Work

    # Device, and the folder that this run alone may write
    run = TrainingRun(opt.run_options(args, OPTIONS), "upscaler", ranks, USUAL_EPOCHS)

    # Data
    size, scale = args.image_size, args.scale
    pairs = load_pairs(args.dataset_path, size, scale, args.mode, args.cache, not ranks.is_main)
    split = run.split(pairs.large)
    trained = pairs.subset(split.training(len(pairs)))
    dataset = CropSet(trained, args.crop_size)

    # What is trained: task, network, EMA, optimizer
    task = UpscalingTask(scale, args.crop_size, args.degrade)
    data = held_out_data(pairs.large, trained.large, split) | {"image_size": list(size)}
    network = network_config(args, pairs.small.channels)
    memory = settle_batch(args, run, network)
    config = {"network": network, "data": data}
    state = run.build_state(config)

    # Resume or pretrain, before any long work
    run.restore(state, len(dataset))

    # How long it takes
    passes = task.passes(size)
    previews = None
    if args.vis:
        average = state.ema.network
        previews = build_previews(
            pairs, split, args.num_vis, scale, average, run.precision, passes, args.degrade
        )
    evaluations_of = partial(
        plan_restoration,
        split=split,
        passes=passes,
        interval_epochs=args.eval_interval_epochs,
    )
    length = run.length(state, task, dataset, len(dataset), previews, evaluations_of)

    # What is measured now and then
    mode = pairs.large.mode
    convention = Convention(scale, args.luma and mode == "RGB", mode, args.degrade)
    evaluations = evaluations_of(length)
    lines = [
        f"pairs       {size[0]},{size[1]} -> {scale * size[0]},{scale * size[1]}; "
        f"an epoch shows {dataset.per_image:,} crops of each"
    ]
    evaluate = None
    if evaluations is not None:
        evaluate = build_score(pairs, split, evaluations, scale, convention, run.precision, ranks)
        baseline = baseline_in_words(evaluate.baseline)
        lines.append(f"baseline    {baseline} on held-out images ({convention})")

    # Plan, fit
    run.train(
        Work(
            images=pairs.large,
            split=split,
            dataset=dataset,
            task=task,
            state=state,
            length=length,
            evaluations=evaluations,
            evaluate=evaluate,
            previews=previews,
            plan_lines=[*lines, *memory],
            remarks=plan_remarks(args, pairs),
        )
    )


def settle_batch(args: Namespace, run: TrainingRun, network: dict) -> list[str]:
    """Fill in how many crops a step has, and in how many passes; lines of the plan about it. Raises
    UserError for a network that cannot be built.
    """
    from utils.training.estimates import cost_of_upscaler
    from utils.training.passes import settled_batch

    side = min(args.crop_size, *args.image_size)
    try:
        cost = cost_of_upscaler(network, (side, side))
    except ValueError as error:
        raise opt.UserError(str(error)) from None
    args.batch_size, args.grad_accum, lines = settled_batch(
        run, cost, USUAL_BATCH, args.batch_size, args.grad_accum
    )
    run.take(opt.run_options(args, OPTIONS))
    return lines


def network_config(args: Namespace, channels: int) -> dict:
    """The network as the options describe it."""
    config = {
        "name": args.network,
        "in_channels": channels,
        "scale": args.scale,
        "features": args.features,
    }
    optional = {name: getattr(args, name) for name in ("blocks", "layers", "growth")}
    return config | {name: value for name, value in optional.items() if value is not None}


def plan_remarks(args: Namespace, pairs: PairSet) -> list[str]:
    """Legal options and images that cannot give a good result."""
    from utils.data.pairs import enlarged_originals_remark

    remarks = opt.idle_remarks(args, OPTIONS)
    if args.luma and pairs.large.mode == "L":
        remarks.append("--luma has no effect on grey images")
    remark = enlarged_originals_remark(pairs.large)
    if remark:
        remarks.append(remark)
    return remarks


if __name__ == "__main__":
    opt.run_script(main)
