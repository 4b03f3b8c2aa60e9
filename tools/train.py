#!/usr/bin/env python3
"""Train a diffusion model on a folder of images.

    python tools/train.py                                             # the demo set, on a laptop
    python tools/train.py --run_name mine --dataset_path my_images --image_size 64 --conditional False
    python tools/train.py --run_name cifar --dataset_path datasets/cifar10 --image_size 32 --epochs 300
    python tools/train.py --run_name cifar --dataset_path datasets/cifar10 --image_size 32 --epochs 300 --resume
    python tools/train.py --run_name big --dataset_path datasets/big --distributed --world_size 4

Everything goes to results/<run_name>/. Edit the defaults below, or pass flags; a switch takes True or
False.
"""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils import options as opt
from utils.options import Option

if TYPE_CHECKING:  # what runs imports them where it needs them, so that --help answers at once
    from torch.nn import Module

    from utils.data import ImageSet
    from utils.data.split import Split
    from utils.devices import Precision
    from utils.generation import ImageGenerator, Sampling
    from utils.ranks import Ranks
    from utils.runs.checkpoint import Checkpoint
    from utils.runs.folder import RunFolder
    from utils.training.diffusion_task import DiffusionTask
    from utils.training.evaluation import EvaluateFunction, EvaluationPlan
    from utils.training.previews import PreviewGrid
    from utils.training.recorder import Recorder
    from utils.training.schedule import Schedule
    from utils.training.state import TrainState

# fmt: off
OPTIONS: opt.Table = {
    "run and data": [
        Option("--run_name",          "demo",          opt.file_name,       "the run writes to <result_path>/<run_name>"),
        Option("--dataset_path",      "datasets/demo", opt.path,            "folder of images, with one folder per class in it"),
        Option("--result_path",       "results",       opt.path,            "folder that holds the runs"),
        Option("--image_size",        "28",            opt.image_size,      "64, or height,width such as 64,96"),
        Option("--mode",              "auto",          opt.IMAGE_MODES,     "colour channels; auto: L (grey) if all images are grey, else RGB"),
        Option("--conditional",       True,            opt.switch,          "learn the classes; False: ignore the folders", decides=True),
        Option("--num_classes",       None,            opt.positive,        "expected number of class folders; only checked"),
        Option("--val_fraction",      None,            opt.half,            "share of the images that is held out to measure on; 0: none; not set: 5%, at least 20 and at most 256, none below 200 images"),
        Option("--flip",              False,           opt.switch,          "mirror half of the images left to right", decides=True),
        Option("--resume",            False,           opt.switch,          "resume this run from its last checkpoint"),
        Option("--allow_changes",     False,           opt.switch,          "with --resume: resume even if options or images have changed"),
        Option("--start_epoch",       -1,              opt.minus_one_up,    "with --resume: from ckpt_<epoch>.pt; -1: the last one"),
        Option("--pretrain",          False,           opt.switch,          "start from the weights in --pretrain_path"),
        Option("--pretrain_path",     None,            opt.path,            "a checkpoint, a state_dict or a safetensors file that fits"),
        Option("--seed",              0,               opt.seed,            "random seed"),
        Option("--plan",              False,           opt.switch,          "print what the run would do, and stop"),
    ],
    "network": [
        Option("--network",           "unet",          opt.NETWORKS,        "network architecture"),
        Option("--channels",          32,              opt.positive,        "width of the first level"),
        Option("--channel_mult",      "1,2,3",         opt.whole_numbers,   "width of each level, in multiples of --channels"),
        Option("--blocks_per_level",  1,               opt.positive,        "residual blocks per level"),
        Option("--attention_levels",  "-1",            opt.whole_numbers,   "levels with attention; 0: full resolution, -1: the lowest"),
        Option("--head_channels",     32,              opt.positive,        "channels per attention head"),
        Option("--time_embedding",    "additive",      opt.TIME_EMBEDDINGS, "how the time step and the class condition a block"),
        Option("--act",               "silu",          opt.ACTIVATIONS,     "activation function"),
        Option("--dropout",           0.0,             opt.below_one,       "dropout probability in the residual blocks"),
    ],
    "diffusion": [
        Option("--noise_schedule",    "cosine",        opt.NOISE_SCHEDULES, "noise schedule"),
        Option("--noise_steps",       1000,            opt.noise_steps,     "number of time steps T"),
        Option("--prediction",        "v",             opt.PREDICTIONS,     "what the network predicts"),
        Option("--loss",              "mse",           opt.LOSSES,          "distance between prediction and target", decides=True),
        Option("--label_drop",        0.1,             opt.probability,     "fraction of labels dropped, which guidance needs", decides=True),
    ],
    "optimisation": [
        Option("--epochs",            25,              opt.positive,        "passes over the images"),
        Option("--batch_size",        32,              opt.positive,        "images per process and forward pass"),
        Option("--grad_accum",        1,               opt.positive,        "forward passes per optimizer step"),
        Option("--optim",             "adamw",         opt.OPTIMIZERS,      "optimizer", decides=True),
        Option("--lr",                1.5e-3,          opt.rate,            "peak learning rate", decides=True),
        Option("--lr_func",           "warmup_cosine", opt.LR_SCHEDULES,    "learning rate schedule", decides=True),
        Option("--warmup_steps",      100,             opt.natural,         "steps of warm-up, at most a tenth of the run", decides=True),
        Option("--weight_decay",      0.01,            opt.probability,     "weight decay of adamw and sgd", decides=True),
        Option("--grad_clip",         1.0,             opt.not_negative,    "maximum gradient norm; 0: no clipping", decides=True),
        Option("--ema_decay",         0.996,           opt.below_one,       "the EMA averages about the last 1/(1-decay) steps", decides=True),
        Option("--amp --fp16",        False,           opt.switch,          "mixed precision (bf16 or fp16) where the hardware benefits", decides=True),
    ],
    "saving, evaluation and previews": [
        Option("--save_model_interval", False,         opt.switch,          "also keep numbered checkpoints: ckpt_<epoch>.pt"),
        Option("--save_model_interval_epochs", 10,     opt.positive,        "epochs between numbered checkpoints"),
        Option("--start_model_interval", -1,           opt.minus_one_up,    "first epoch that may have a numbered checkpoint"),
        Option("--save_every_steps",  0,               opt.natural,         "also save every N steps; 0: only at the end of each epoch"),
        Option("--keep",              0,               opt.natural,         "keep only the newest numbered checkpoints; 0: all"),
        Option("--vis",               True,            opt.switch,          "draw previews: grids of samples"),
        Option("--vis_interval_epochs", 10,            opt.positive,        "epochs between previews; one is also drawn at the end"),
        Option("--num_vis",           8,               opt.positive,        "images per preview; with classes, per class"),
        Option("--image_format",      "png",           opt.IMAGE_FORMATS,   "file format of previews"),
        Option("--sample",            "ddim",          opt.SAMPLERS,        "sampler of previews, and by default of generate.py"),
        Option("--sample_steps",      25,              opt.positive,        "sampling steps of previews"),
        Option("--timestep_spacing",  "trailing",      opt.TIMESTEP_SPACINGS, "which time steps the sampler of previews visits"),
        Option("--cfg_scale",         1.5,             opt.not_negative,    "guidance scale of previews; 1: none"),
        Option("--eval_interval_epochs", None,         opt.positive,        "epochs between evaluations on held-out images; not set: about 20 in a run, fewer where they would take more than 2% of its time"),
        Option("--eval_images",       0,               opt.natural,         "images generated at each evaluation to measure their KID; needs requirements-metrics.txt"),
        Option("--log_interval",      10,              opt.positive,        "steps between metric writes"),
    ],
    "machine": [
        Option("--use_gpu",           0,               opt.minus_one_up,    "GPU number; -1, or no GPU: the CPU"),
        Option("--num_workers",       -1,              opt.minus_one_up,    "data-loading workers (-1: automatic)"),
        Option("--cache",             "auto",          opt.CACHES,          "where decoded images are cached; none: decode at every use"),
        Option("--compile",           False,           opt.switch,          "torch.compile: a slow start, then faster steps"),
        Option("--distributed",       False,           opt.switch,          "one process per GPU, or several on the CPU"),
        Option("--world_size",        2,               opt.positive,        "number of processes with --distributed"),
        Option("--main_gpu",          0,               opt.natural,         "rank of the process that saves and draws"),
        Option("--timeout",           600.0,           opt.seconds,         "seconds a process waits for the others in a step"),
    ],
}
# fmt: on

WORLD_SIZE = next(row.default for row in OPTIONS["machine"] if row.name == "world_size")

FEWEST_FOR_KID = 3  # images

# Options that do nothing without another: (option, value when it is not set, the other).
NEEDS = [
    ("start_epoch", -1, "resume"),
    ("pretrain_path", None, "pretrain"),
    ("keep", 0, "save_model_interval"),
    ("start_model_interval", -1, "save_model_interval"),
]

# Options that may differ between the machines of a run.
OF_A_MACHINE = ("dataset_path", "result_path", "pretrain_path", "num_workers", "cache")


def build_parser() -> opt.Parser:
    return opt.make_parser(__doc__, OPTIONS)


def check(args: Namespace) -> None:
    """Checks that involve more than one option. Raises UserError before any work."""
    if args.pretrain and not args.pretrain_path:
        raise opt.UserError("--pretrain needs --pretrain_path")
    if args.pretrain and args.resume:
        raise opt.UserError(
            "--pretrain starts a new run and --resume continues one: leave one of them out"
        )
    if args.sample_steps > args.noise_steps:
        raise opt.UserError(
            f"--sample_steps {args.sample_steps} is more than --noise_steps {args.noise_steps}"
        )
    for name, unset, other in NEEDS:
        value = getattr(args, name)
        if value != unset and not getattr(args, other):
            raise opt.UserError(f"--{name} {value} does nothing without --{other}")
    if 0 < args.eval_images < FEWEST_FOR_KID:
        raise opt.UserError(
            f"--eval_images {args.eval_images} is too few for a KID: {FEWEST_FOR_KID} are the fewest"
        )
    if args.eval_images > 0:
        from utils.evaluation.features import EFFICIENTNET, EFFICIENTNET_PACKAGE, need_package

        need_package(EFFICIENTNET_PACKAGE, EFFICIENTNET)
    draws = args.vis or args.eval_images > 0
    if args.conditional and args.label_drop == 0 and draws and args.cfg_scale != 1:
        raise opt.UserError(
            "with --label_drop 0 nothing unconditional is learned to guide with: add --cfg_scale 1"
        )
    if args.num_classes and not args.conditional:
        raise opt.UserError("--num_classes belongs to --conditional True")
    if not args.dataset_path.is_dir():
        found = "is a file" if args.dataset_path.exists() else "does not exist"
        raise opt.UserError(f"--dataset_path {args.dataset_path} {found}; name a folder")


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    check(args)
    from utils.launch import Processes, launch

    processes = Processes(
        distributed=args.distributed,
        world_size=args.world_size,
        main_rank=args.main_gpu,
        timeout=args.timeout,
        on_gpu=args.use_gpu >= 0,
    )
    launch(partial(train, args), processes)


def train(args: Namespace, ranks: Ranks) -> None:
    """One process of the run, in the order of execution."""
    from utils.data import describe, steps_per_epoch
    from utils.devices import (
        choose_device,
        choose_precision,
        prepare_for_training,
        wrap_network,
    )
    from utils.runs.folder import RunFolder
    from utils.training.plan import evaluation_lines

    # Device, and the folder that this run alone may write
    device = choose_device(args.use_gpu, ranks)
    precision, precision_remark = choose_precision(args.amp, device)
    prepare_for_training(device)
    run = None
    if ranks.is_main and not args.plan:
        run = RunFolder(args.result_path / args.run_name, args.resume)

    # Data
    resumed = open_resumed(args)
    all_images, split = load_data(args, ranks, resumed)
    dataset = all_images.subset(split.training(len(all_images)))
    global_batch = args.batch_size * args.grad_accum * ranks.world_size  # images per step
    epoch_steps = steps_per_epoch(len(dataset), global_batch)

    # What is trained: task, network, EMA, optimizer
    task = build_task(args)
    evaluations = plan_evaluations(args, task, dataset, split, epoch_steps, global_batch)
    schedule = build_schedule(args, epoch_steps, evaluations)
    held_out = split.to_record(all_images.checksums, all_images.fingerprint())
    config = build_config(args, dataset, held_out, task, schedule, global_batch)
    state = build_state(args, config, precision)
    evaluate = None
    if not args.plan:  # which needs none of the images and features that this reads
        evaluate = build_evaluation(
            args, ranks, all_images, dataset, split, evaluations, state, task, precision
        )
    previews = build_previews(args, state, task, dataset, precision)

    # Resume or pretrain
    remarks = restore(args, state, schedule, resumed)
    source = None if resumed is None else Path(resumed.source)
    del resumed  # it takes as much memory as the state
    check_agreement(ranks, state)
    network = wrap_network(state.network, ranks, args.compile)

    # The plan
    remarks = [precision_remark, *plan_remarks(args, schedule, previews), *remarks]
    lines = describe(all_images, all_classes=args.plan)
    lines += evaluation_lines(split, len(all_images), evaluations, epoch_steps)
    lines += describe_plan(
        args,
        ranks,
        dataset,
        state,
        precision,
        network,
        task,
        schedule,
        evaluations,
        previews,
        remarks,
    )
    if args.plan:
        opt.say("\n".join(lines))
        return
    if run is not None:
        run.start({"args": state.args, "config": state.config}, state.step, source)
        run.log("\n".join(lines))

    # Fit
    recorder = build_recorder(args, run, ranks, previews, state, schedule)
    start_fit(args, ranks, dataset, state, precision, network, task, schedule, recorder, evaluate)


def start_fit(
    args: Namespace,
    ranks: Ranks,
    dataset: ImageSet,
    state: TrainState,
    precision: Precision,
    network: Module,
    task: DiffusionTask,
    schedule: Schedule,
    recorder: Recorder,
    evaluate: EvaluateFunction | None,
) -> None:
    """Train from the state's step to the end of the schedule."""
    from utils.data import StepSampler, build_loader
    from utils.training.fit import Update, fit
    from utils.training.prefetch import PreparedBatches

    order = partial(StepSampler, dataset, state.config["training"]["global_batch"], state.seed)
    sampler = order(state.step, schedule.total_steps, ranks.rank, ranks.world_size)
    device = precision.device
    on_gpu = device.type == "cuda"
    batches = iter(build_loader(dataset, sampler, args.batch_size, args.num_workers, pin=on_gpu))
    prepared = PreparedBatches(
        batches, task.draw, device, state.seed, state.step, args.grad_accum, ranks
    )
    try:
        fit(
            network,
            prepared,
            task.loss,
            state,
            schedule,
            recorder,
            Update(precision, ranks, args.grad_accum, args.grad_clip),
            names_of=lambda step: [dataset.files[i] for i in order(step, step + 1)],
            evaluate=evaluate,
        )
    finally:
        prepared.close()
        batches.close()  # otherwise an error would wait for the workers forever


def open_resumed(args: Namespace) -> Checkpoint | None:
    """The checkpoint that the run resumes from, if it does."""
    if not args.resume:
        return None
    from utils.training import resume

    return resume.open_resumed("diffusion", args.result_path / args.run_name, args.start_epoch)


def load_data(args: Namespace, ranks: Ranks, resumed: Checkpoint | None) -> tuple[ImageSet, Split]:
    """The images, and which of them are held out. Returns when every process has them: decoding is
    exempt from --timeout.
    """
    from utils.data import load_image_set

    images = load_image_set(
        args.dataset_path,
        args.image_size,
        args.conditional,
        mode=args.mode,
        cache=args.cache,
        quiet=not ranks.is_main,
    )
    split = choose_split(args, images, resumed) if ranks.is_main else None
    ranks.wait_for_all()
    return images, ranks.gather(split)[ranks.main_rank]


def choose_split(args: Namespace, images: ImageSet, resumed: Checkpoint | None) -> Split:
    """Which images are held out; for a run that is resumed, the same as before."""
    from utils.data.near_copies import near_copy_finder
    from utils.data.split import recorded_split, split_set

    share = args.val_fraction
    record = None if resumed is None else resumed.held_out
    if resumed is not None and share is None:
        share = record["share"] if record else 0.0  # earlier versions held nothing out
    if record and share == record["share"]:
        split = recorded_split(record, len(images), images.fingerprint())
        if split is not None:
            return split
    finder = near_copy_finder(images)
    is_asked_for = args.val_fraction is not None
    return split_set(images.checksums, images.labels.array, share, finder, is_asked_for)


def check_agreement(ranks: Ranks, state: TrainState) -> None:
    """Raise UserError where another machine was given other options or images."""
    may_differ = dict.fromkeys(OF_A_MACHINE)
    ranks.check_agreement({**state.args, **may_differ, **state.config["data"], "step": state.step})


# --- What is trained ---


def build_task(args: Namespace) -> DiffusionTask:
    """The diffusion process and its loss."""
    from model.codecs import PixelCodec
    from model.diffusion import GaussianDiffusion
    from utils.training.diffusion_task import DiffusionTask

    diffusion = GaussianDiffusion(
        noise_steps=args.noise_steps,
        noise_schedule=args.noise_schedule,
        prediction=args.prediction,
    )
    return DiffusionTask(
        diffusion, PixelCodec(), args.conditional, args.flip, args.loss, args.label_drop
    )


def build_config(
    args: Namespace,
    dataset: ImageSet,
    held_out: dict,
    task: DiffusionTask,
    schedule: Schedule,
    global_batch: int,
) -> dict:
    """What goes into a checkpoint's config. Raises UserError for classes that were not expected."""
    classes = len(dataset.class_names) or None
    if args.num_classes not in (None, classes):
        raise opt.UserError(
            f"--num_classes {args.num_classes}, but {args.dataset_path} has {classes} class folders"
        )
    decides = [option.name for option in opt.options_of(OPTIONS) if option.decides]
    training = {name: getattr(args, name) for name in decides}
    return {
        "network": {
            "name": args.network,
            "in_channels": dataset.channels,
            "num_classes": classes,
            "channels": args.channels,
            "channel_mult": args.channel_mult,
            "blocks_per_level": args.blocks_per_level,
            "attention_levels": args.attention_levels,
            "head_channels": args.head_channels,
            "time_embedding": args.time_embedding,
            "act": args.act,
            "dropout": args.dropout,
        },
        "diffusion": task.diffusion.config,
        "codec": task.codec.config,
        "data": {**dataset.metadata(), "held_out": held_out},
        "sampling": {"sampler": args.sample, "guidance": args.label_drop != 0},
        "training": {**training, "global_batch": global_batch},
        "length": {"epochs": args.epochs, "total_steps": schedule.total_steps},
    }


def build_state(args: Namespace, config: dict, precision: Precision) -> TrainState:
    """The network, its EMA and optimizer as the options describe them, untrained."""
    import torch

    from model.ema import EMA
    from model.networks import build_network, check_image_size
    from utils.training.optimizer import build_optimizer
    from utils.training.state import TrainState

    torch.manual_seed(args.seed)
    try:
        network = build_network(config["network"])
        check_image_size(*args.image_size, network.downsample_factor)
    except ValueError as error:
        raise opt.UserError(str(error)) from None
    network = precision.place(network)
    return TrainState(
        network=network,
        ema=EMA(network, args.ema_decay),
        optimizer=build_optimizer(args.optim, network, args.lr, args.weight_decay),
        scaler=precision.scaler(),
        seed=args.seed,
        kind="diffusion",
        config={**config, "network": network.config},
        args={**opt.plain_values(args), "global_batch": config["training"]["global_batch"]},
        versions={
            "torch": str(torch.__version__),
            "threads": torch.get_num_threads(),
            "device": precision.device.type,
            "batch_size": args.batch_size,
            "grad_accum": args.grad_accum,
            "compile": args.compile,
        },
    )


def plan_evaluations(
    args: Namespace,
    task: DiffusionTask,
    dataset: ImageSet,
    split: Split,
    epoch_steps: int,
    global_batch: int,
) -> EvaluationPlan | None:
    """When the run is evaluated and on how much; None where there is nothing to measure."""
    from model.guidance import needs_null
    from utils.training.evaluation import plan_evaluations
    from utils.training.held_out import evaluation_time_steps

    if len(split.held_out) == 0 and args.eval_images == 0:
        return None
    is_guided = bool(dataset.class_names) and needs_null(args.cfg_scale)
    calls = len(sampling_of(args).build(task.diffusion.config, "cpu").calls())
    return plan_evaluations(
        total_steps=args.epochs * epoch_steps,
        steps_per_epoch=epoch_steps,
        global_batch=global_batch,
        held_out=len(split.held_out),
        levels=len(evaluation_time_steps(task.diffusion)),
        interval_epochs=args.eval_interval_epochs,
        generated=args.eval_images,
        rows_per_generated=calls * (2 if is_guided else 1),
    )


def build_evaluation(
    args: Namespace,
    ranks: Ranks,
    images: ImageSet,
    dataset: ImageSet,
    split: Split,
    evaluations: EvaluationPlan | None,
    state: TrainState,
    task: DiffusionTask,
    precision: Precision,
) -> EvaluateFunction | None:
    """What measures the averaged network, or None where there is nothing to measure."""
    if evaluations is None:
        return None
    from utils.evaluation.features import EFFICIENTNET, build_features
    from utils.training.evaluation import RunEvaluation
    from utils.training.held_out import HeldOutLoss, SampleOfImages, first_by_content
    from utils.training.sample_score import SampleScore

    held_out_loss = sample_score = None
    if evaluations.images > 0:
        held_out = SampleOfImages.of(images, split.held_out[: evaluations.images])
        places = first_by_content(dataset, evaluations.images)
        training = SampleOfImages.of(dataset, places)
        held_out_loss = HeldOutLoss(
            task, held_out, training, precision, ranks, args.batch_size, args.seed
        )
    if args.eval_images > 0:
        features = build_features(EFFICIENTNET, None, None, precision.device)
        generator = build_generator(args, state, task, dataset, precision)
        sample_score = SampleScore(
            generator, features, dataset, args.eval_images, args.batch_size, ranks
        )
    return RunEvaluation(held_out_loss, sample_score)


def build_schedule(
    args: Namespace, epoch_steps: int, evaluations: EvaluationPlan | None
) -> Schedule:
    """The length of the run, its learning rate, and what is due when."""
    from utils.training.schedule import Schedule

    total_steps = args.epochs * epoch_steps
    return Schedule(
        total_steps=total_steps,
        steps_per_epoch=epoch_steps,
        learning_rate=partial(rate_at, args, total_steps),
        log_interval=args.log_interval,
        save_steps=args.save_every_steps,
        preview_epochs=args.vis_interval_epochs,
        numbered_epochs=args.save_model_interval_epochs if args.save_model_interval else 0,
        first_numbered_epoch=args.start_model_interval,
        evaluation_steps=evaluations.interval if evaluations else 0,
    )


def rate_at(args: Namespace, total_steps: int, step: int) -> float:
    """The learning rate at a step of a run of this length."""
    from utils.training.learning_rate import allowed_warmup, learning_rate

    warmup = allowed_warmup(args.warmup_steps, total_steps)
    return learning_rate(step, total_steps, args.lr, args.lr_func, warmup)


def build_previews(
    args: Namespace,
    state: TrainState,
    task: DiffusionTask,
    dataset: ImageSet,
    precision: Precision,
) -> PreviewGrid | None:
    """What draws previews, or None without."""
    if not args.vis:
        return None
    from utils.training.previews import PreviewGrid

    generator = build_generator(args, state, task, dataset, precision)
    return PreviewGrid(generator, dataset.class_names, args.num_vis, args.batch_size)


def build_generator(
    args: Namespace, state: TrainState, task: DiffusionTask, dataset: ImageSet, precision: Precision
) -> ImageGenerator:
    """What turns seeds into images with the averaged network, for previews and evaluations."""
    from utils.generation import ImageGenerator

    return ImageGenerator(
        state.ema.network,
        sampling_of(args).build(task.diffusion.config, precision.device),
        task.codec,
        args.image_size,
        dataset.channels,
        precision,
        args.cfg_scale,
    )


def sampling_of(args: Namespace) -> Sampling:
    """How previews and evaluations make images."""
    from utils.generation import Sampling

    return Sampling(args.sample, args.sample_steps, args.timestep_spacing, cfg_scale=args.cfg_scale)


def build_recorder(
    args: Namespace,
    run: RunFolder | None,
    ranks: Ranks,
    previews: PreviewGrid | None,
    state: TrainState,
    schedule: Schedule,
) -> Recorder:
    """The recorder: it writes on the main process, and is silent on the others."""
    from utils.training.recorder import RunRecorder, SilentRecorder

    if run is None:
        return SilentRecorder(ranks, has_previews=previews is not None)
    return RunRecorder(
        run,
        ranks,
        previews.draw if previews else None,
        schedule.total_steps,
        state.step,
        args.keep,
        args.image_format,
        args.epochs,
        holds_out=bool(state.config["data"]["held_out"]["images"]),
    )


def restore(
    args: Namespace, state: TrainState, schedule: Schedule, resumed: Checkpoint | None
) -> list[str]:
    """Bring the state to where the run resumes or starts; remarks for the plan."""
    from utils.training.resume import learning_rate_remark, pretrain, resume

    if args.pretrain:
        return pretrain(state, args.pretrain_path)
    if resumed is None:
        return []
    remarks = resume(state, resumed, args.allow_changes)
    if state.step > schedule.total_steps:
        raise opt.UserError(
            f"{resumed.source} has done {state.step} steps; "
            f"--epochs {args.epochs} is only {schedule.total_steps}"
        )
    length = resumed.config.get("length", {})
    before = length.get("total_steps")
    if before is None and length.get("epochs"):
        before = length["epochs"] * schedule.steps_per_epoch
    remark = learning_rate_remark(
        before, schedule.total_steps, state.step, lambda step, total: rate_at(args, total, step)
    )
    return remarks + ([remark] if remark else [])


# --- The plan ---


def plan_remarks(args: Namespace, schedule: Schedule, previews: PreviewGrid | None) -> list[str]:
    """Legal options that cannot give a good result."""
    from utils.generation import sampling_remarks
    from utils.training.learning_rate import allowed_warmup
    from utils.training.plan import length_remarks

    remarks = idle_option_remarks(args)
    if args.eval_interval_epochs is not None and schedule.evaluation_steps == 0:
        remarks.append(
            f"--eval_interval_epochs {args.eval_interval_epochs} has no effect: no images are held "
            "out to measure on (--val_fraction), and --eval_images is 0"
        )
    asked = args.warmup_steps if args.lr_func == "warmup_cosine" else 0
    used = allowed_warmup(asked, schedule.total_steps)
    remarks += length_remarks(schedule.total_steps, asked, used)
    if previews is not None:
        remarks += sampling_remarks(previews.generator.sampler)
    return remarks


def idle_option_remarks(args: Namespace) -> list[str]:
    """Options that have no effect, or not the one that is expected, beside the others."""
    remarks = []
    alone = not args.distributed and "TORCHELASTIC_RUN_ID" not in os.environ
    if alone and (args.world_size != WORLD_SIZE or args.main_gpu != 0):
        remarks.append(
            f"--world_size {args.world_size} and --main_gpu {args.main_gpu} have no effect without "
            "--distributed"
        )
    if args.conditional and args.label_drop == 1:
        remarks.append(
            "with --label_drop 1 no image keeps its label, so the classes are not learned"
        )
    return remarks


def describe_plan(
    args: Namespace,
    ranks: Ranks,
    dataset: ImageSet,
    state: TrainState,
    precision: Precision,
    network: Module,
    task: DiffusionTask,
    schedule: Schedule,
    evaluations: EvaluationPlan | None,
    previews: PreviewGrid | None,
    remarks: list[str],
) -> list[str]:
    """What the run will do, in lines. The seconds per step are measured."""
    from utils.training.plan import (
        Cost,
        PreviewCost,
        plan_lines,
        remark_lines,
        sample_batch,
        time_step,
    )

    batch = sample_batch(dataset, args.batch_size)
    seconds = time_step(network, task.loss, task.draw, batch, precision, ranks)
    kept = schedule.numbered_checkpoints()
    if args.keep:
        kept = min(kept, args.keep)
    cost = Cost(
        seconds_per_step=seconds * args.grad_accum,
        images_per_step=args.batch_size * args.grad_accum,
        steps_left=schedule.total_steps - state.step,
        previews=PreviewCost.of(previews, schedule.previews_left(state.step)),
        checkpoints_kept=kept,
        evaluation_share=evaluations.share if evaluations else 0.0,
        has_best=evaluations is not None,
    )
    lines = plan_lines(
        state,
        precision,
        ranks,
        cost,
        args.epochs,
        schedule.steps_per_epoch,
        state.config["training"]["global_batch"],
        args.result_path,
    )
    return lines + remark_lines(remarks)


if __name__ == "__main__":
    opt.run_script(main)
