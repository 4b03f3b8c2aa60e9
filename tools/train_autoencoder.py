#!/usr/bin/env python3
"""Train the autoencoder of latent diffusion, on a folder of images.

    python tools/train_autoencoder.py --dataset_path datasets/df --image_size 256 --run_name ae
    python tools/train_autoencoder.py --dataset_path datasets/df --image_size 256 --run_name ae --resume
    python tools/train.py --dataset_path datasets/df --image_size 256 --autoencoder_path results/ae/ema_last.pt --run_name latent

Each entry of --block_out_channels but the first halves height and width. The options that are not
listed under "autoencoder" are those of train.py.
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
    from utils.devices import Precision
    from utils.ranks import Ranks
    from utils.training.autoencoder_task import AutoencoderTask
    from utils.training.run import TrainingRun
    from utils.training.state import TrainState

USUAL_EPOCHS = 100
USUAL_BATCH = 16  # images per process and step

# fmt: off
OWN: opt.Table = {
    "autoencoder": [
        Option("--mode",              "auto",          opt.USUAL_IMAGE_MODES, "colour channels; auto: L (grey) if all images are grey, else RGB"),
        Option("--block_out_channels", "64,128,256",   opt.whole_numbers,   "width of each level; three levels make a side of the latent a quarter of the image's"),
        Option("--latent_channels",   4,               opt.positive,        "channels of the latent"),
        Option("--layers_per_block",  1,               opt.positive,        "residual blocks per level on the way down; one more on the way up"),
        Option("--norm_num_groups",   32,              opt.positive,        "groups of the group norms"),
        Option("--mid_block_add_attention", True,      opt.switch,          "attention at the lowest level"),
        Option("--ssim_weight",       0.5,             opt.not_negative,    "weight of 1 - SSIM in the loss, beside the mean absolute error; 0: none", decides=True),
        Option("--ms_ssim",           False,           opt.switch,          "SSIM over several scales", decides=True),
        Option("--kl_weight",         1e-6,            opt.not_negative,    "weight of the latent's KL divergence, both it and the error summed over an image", decides=True),
        Option("--feature_weight",    0.0,             opt.not_negative,    "weight of the distance of an image network's features; needs requirements-metrics.txt", decides=True),
        Option("--num_vis",           8,               opt.positive,        "images per preview"),
        Option("--epochs",            None,            opt.epochs,          f"passes over the images; not set: {USUAL_EPOCHS}, or as before where a run is resumed"),
        Option("--batch_size",        None,            opt.positive,        f"images per process and forward pass; not set: {USUAL_BATCH}"),
        Option("--grad_accum",        None,            opt.positive,        f"forward passes per optimizer step; not set: 1, or as few as bring {USUAL_BATCH} images into memory"),
    ],
}
# fmt: on

DEFAULTS = {
    "run_name": "autoencoder",
    "image_size": "64",
    "lr": 5e-4,
    "weight_decay": 0.0,
    "ema_decay": 0.999,
    "optim": "adamw",
    "warmup_steps": 100,
    "vis_interval_epochs": 10,
    "amp": False,
}
INSTEAD = ("mode", "num_vis", "epochs", "batch_size", "grad_accum")  # it has its own of these
OPTIONS = opt.derived_table(TRAINING_OPTIONS, OWN, DEFAULTS, without=(*OF_DIFFUSION, *INSTEAD))

# Options that describe the network.
OF_THE_NETWORK = (
    "block_out_channels",
    "latent_channels",
    "layers_per_block",
    "norm_num_groups",
    "mid_block_add_attention",
)


def build_parser() -> opt.Parser:
    return opt.make_parser(__doc__, OPTIONS)


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    opt.check_training(args)
    opt.choose_average(args, OPTIONS)
    if args.ms_ssim and args.ssim_weight == 0:
        raise opt.UserError("--ms_ssim does nothing with --ssim_weight 0")
    if args.feature_weight > 0:
        from utils.evaluation.features import EFFICIENTNET, EFFICIENTNET_PACKAGE, need_package

        need_package(EFFICIENTNET_PACKAGE, EFFICIENTNET)
    opt.launch_training(partial(train, args), args)


def train(args: Namespace, ranks: Ranks) -> None:
    """One process of the run, in the order of execution."""
    from utils.data import load_image_set
    from utils.data.pairs import enlarged_originals_remark
    from utils.evaluation.restoration import Convention
    from utils.training.autoencoder_measures import build_previews, build_score
    from utils.training.latent_statistics import LatentStatistics
    from utils.training.restoration import plan_restoration
    from utils.training.run import TrainingRun, held_out_data
    from utils.training.work import Work

    # Device, and the folder that this run alone may write
    run = TrainingRun(opt.run_options(args, OPTIONS), "autoencoder", ranks, USUAL_EPOCHS)

    # Data
    images = load_image_set(
        args.dataset_path,
        args.image_size,
        conditional=False,
        mode=args.mode,
        cache=args.cache,
        quiet=not ranks.is_main,
    )
    split = run.split(images)
    dataset = images.subset(split.training(len(images)))

    # What is trained: network, EMA, optimizer, task
    network = {"name": "autoencoder", "in_channels": images.channels}
    network |= {name: getattr(args, name) for name in OF_THE_NETWORK}
    memory = settle_batch(args, run, network)
    config = {"network": network, "data": held_out_data(images, dataset, split)}
    state = run.build_state(config)
    task = build_task(args, state, run.precision)

    # Resume or pretrain, before any long work
    run.restore(state, len(dataset))

    # How long it takes
    previews = None
    if args.vis:
        previews = build_previews(images, split, args.num_vis, state.ema.network, run.precision)
    evaluations_of = partial(
        plan_restoration, split=split, passes=1, interval_epochs=args.eval_interval_epochs
    )
    statistics = LatentStatistics(dataset, run.precision.device, ranks)
    rows_at_the_end = statistics.network_rows(run.precision)
    length = run.length(
        state, task, dataset, len(dataset), previews, evaluations_of, rows_at_the_end
    )

    # What is measured now and then, and at the end
    convention = Convention(mode=images.mode)
    evaluations = evaluations_of(length)
    evaluate = None
    if evaluations is not None and not args.plan:
        evaluate = build_score(images, split, evaluations, convention, run.precision, ranks)

    # Plan, fit
    small_images = filter(None, [enlarged_originals_remark(images)])
    run.train(
        Work(
            images=images,
            split=split,
            dataset=dataset,
            task=task,
            state=state,
            length=length,
            evaluations=evaluations,
            evaluate=evaluate,
            complete=statistics,
            rows_at_the_end=rows_at_the_end,
            previews=previews,
            plan_lines=[latent_line(args, state), *memory],
            remarks=[*opt.idle_remarks(args, OPTIONS), *small_images],
        )
    )


def settle_batch(args: Namespace, run: TrainingRun, network: dict) -> list[str]:
    """Fill in how many images a step has, and in how many passes; lines of the plan about it.
    Raises UserError for a network that cannot be built, or does not take the images.
    """
    from utils.training.estimates import cost_of_autoencoder
    from utils.training.passes import settled_batch

    try:
        cost = cost_of_autoencoder(network, args.image_size)
    except ValueError as error:
        raise opt.UserError(str(error)) from None
    args.batch_size, args.grad_accum, lines = settled_batch(
        run, cost, USUAL_BATCH, args.batch_size, args.grad_accum
    )
    run.take(opt.run_options(args, OPTIONS))
    return lines


def build_task(args: Namespace, state: TrainState, precision: Precision) -> AutoencoderTask:
    """The loss. Raises UserError for an image size that network or loss do not take."""
    from utils.training.autoencoder_task import AutoencoderTask

    features = None
    if args.feature_weight > 0:
        from utils.evaluation.perceptual import perceptual_features

        features = perceptual_features(precision.device, state.config["network"]["in_channels"])
    task = AutoencoderTask(
        args.latent_channels,
        state.network.downsample_factor,
        args.flip,
        args.ssim_weight,
        args.ms_ssim,
        args.kl_weight,
        features,
        args.feature_weight,
    )
    try:
        task.check_image_size(*args.image_size)
    except ValueError as error:
        raise opt.UserError(str(error)) from None
    return task


def latent_line(args: Namespace, state: TrainState) -> str:
    """A line of the plan: how much smaller the latents are."""
    height, width = args.image_size
    factor = state.network.downsample_factor
    channels = state.config["network"]["in_channels"]
    small = (height // factor, width // factor)
    numbers = args.latent_channels * small[0] * small[1]
    return (
        f"latents     {args.latent_channels} x {small[0]},{small[1]}: one number for "
        f"{channels * height * width / numbers:g} of the image's"
    )


if __name__ == "__main__":
    opt.run_script(main)
