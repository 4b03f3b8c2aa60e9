#!/usr/bin/env python3
"""Train a diffusion model on a folder of images.

    python tools/train.py                                             # the demo set, on a laptop
    python tools/train.py --run_name mine --dataset_path my_images --image_size 64 --minutes 30
    python tools/train.py --run_name cifar --dataset_path datasets/cifar10 --image_size 32 --epochs 300
    python tools/train.py --run_name cifar --dataset_path datasets/cifar10 --image_size 32 --epochs 300 --resume
    python tools/train.py --run_name big --dataset_path datasets/big --distributed --world_size 4

Everything goes to results/<run_name>/. Edit the defaults below, or pass flags; a switch takes True or
False.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils import options as opt
from utils.options import Option

if TYPE_CHECKING:  # what runs imports them where it needs them, so that --help answers at once
    from torch import Tensor

    from model.codecs import Codec
    from model.condition import Condition, LabelCondition
    from model.diffusion import GaussianDiffusion
    from utils.data import ImageSet, TrainingSet
    from utils.data.conditions import ConditionedSet
    from utils.data.split import Split
    from utils.devices import Precision
    from utils.generation import ImageGenerator, Sampling
    from utils.ranks import Ranks
    from utils.runs.autoencoders import StoredAutoencoder
    from utils.training.diffused_images import DiffusedImages
    from utils.training.diffusion_task import DiffusionTask
    from utils.training.evaluation import EvaluationPlan, RunEvaluation
    from utils.training.label_guidance import LabelGuidance
    from utils.training.length import RunLength
    from utils.training.previews import PreviewGrid
    from utils.training.recipe_choice import RecipeChoice
    from utils.training.run import TrainingRun
    from utils.training.state import TrainState

USUAL_EPOCHS = 30
USUAL_SAMPLER = "dpmpp2m"

# fmt: off
OPTIONS: opt.Table = {
    "run and data": [
        Option("--run_name",          "demo",          opt.file_name,       "the run writes to <result_path>/<run_name>"),
        Option("--dataset_path",      "datasets/demo", opt.path,            "folder of images, with one folder per class in it"),
        Option("--result_path",       "results",       opt.path,            "folder that holds the runs"),
        Option("--image_size",        "28",            opt.image_size,      "64, or height,width such as 64,96"),
        Option("--mode",              "auto",          opt.IMAGE_MODES,     "auto: L (grey) if all images are grey, else RGB; RGBA: with opacity; I;16: grey of 16 bits"),
        Option("--conditional",       "auto",          opt.switch_or_auto,  "learn the classes; False: ignore the folders; auto: learn them where there are at least two", decides=True),
        Option("--num_classes",       None,            opt.positive,        "expected number of class folders; only checked"),
        Option("--val_fraction",      None,            opt.half,            "share of the images that is held out to measure on; 0: none; not set: 5%, at least 20 and at most 256, none below 200 images"),
        Option("--flip",              False,           opt.switch,          "mirror half of the images left to right", decides=True),
        Option("--balance",           False,           opt.switch,          "show as many images of each class, where some have fewer", decides=True),
        Option("--augment",           None,            opt.probability,     "probability of each change (scale, turn, stretch, shift; half of the images are mirrored) of which the network is told, so that samples show none of them; not set: 0.12 for fewer than 1,000 images, otherwise 0, and on latents", decides=True),
        Option("--resume",            False,           opt.switch,          "resume this run from its last checkpoint"),
        Option("--allow_changes",     False,           opt.switch,          "with --resume: resume even if options or images have changed"),
        Option("--start_epoch",       -1,              opt.minus_one_up,    "with --resume: from ckpt_<epoch>.pt; -1: the last one"),
        Option("--pretrain",          False,           opt.switch,          "start from the weights in --pretrain_path"),
        Option("--pretrain_path",     None,            opt.path,            "a checkpoint, a state_dict or a safetensors file that fits"),
        Option("--autoencoder_path",  None,            opt.path,            "diffuse in the latent space of this autoencoder: a file of train_autoencoder.py, or a folder of diffusers"),
        Option("--condition_path",    None,            opt.path,            "folder of images that steer the images of the same name: label maps, edges, photographs"),
        Option("--condition_kind",    "auto",          opt.CONDITION_KINDS, "labels: each number of a palette or grey file is a label; picture: as it looks; auto: labels where there are few numbers"),
        Option("--joint_masks",       False,           opt.switch,          "make the label maps of --condition_path together with the images, instead of images from them", decides=True),
        Option("--condition_drop",    0.1,             opt.probability,     "fraction of conditions dropped, which guidance needs", decides=True),
        Option("--latent",            None,            opt.switch,          "diffuse in latent space; implied by --autoencoder_path"),
        Option("--seed",              0,               opt.seed,            "random seed"),
        Option("--plan",              False,           opt.switch,          "print what the run would do, and stop"),
    ],
    "network": [  # what is not set here is as in the preset
        Option("--preset",            "auto",          opt.PRESETS,         "network and optimisation; auto: the largest network that gets enough steps"),
        Option("--network",           "unet",          opt.NETWORKS,        "network architecture"),
        Option("--channels",          None,            opt.positive,        "width of the first level"),
        Option("--channel_mult",      None,            opt.whole_numbers,   "width of each level, in multiples of --channels"),
        Option("--blocks_per_level",  None,            opt.positive,        "residual blocks per level"),
        Option("--attention_levels",  None,            opt.whole_numbers,   "levels with attention; 0: full resolution, -1: the lowest"),
        Option("--head_channels",     None,            opt.positive,        "channels per attention head"),
        Option("--norm_groups",       None,            opt.positive,        "groups of each normalisation; where they do not divide the channels, as many as do"),
        Option("--time_embedding",    None,            opt.TIME_EMBEDDINGS, "how the time step and the class condition a block"),
        Option("--act",               None,            opt.ACTIVATIONS,     "activation function"),
        Option("--dropout",           None,            opt.below_one,       "dropout probability in the residual blocks"),
    ],
    "diffusion": [
        Option("--noise_schedule",    "cosine",        opt.NOISE_SCHEDULES, "noise schedule"),
        Option("--noise_shift",       None,            opt.noise_shift,     "multiplies the noise at each time step, as larger images need; not set: for the flow a 64th of the side of the image (or latent), at least 1, otherwise 1, or as before where a run is resumed"),
        Option("--zero_terminal_snr", False,           opt.switch,          "let the last time step be pure noise; not with --prediction eps"),
        Option("--noise_steps",       1000,            opt.noise_steps,     "number of time steps T"),
        Option("--prediction",        "v",             opt.PREDICTIONS,     "what the network predicts"),
        Option("--loss",              "mse",           opt.LOSSES,          "distance between prediction and target; huber and smooth_l1 are the same", decides=True),
        Option("--loss_weight",       None,            opt.LOSS_WEIGHTS,    "weight of the loss at each time step; min_snr: less where there is little noise; lognormal: like that of Karras et al., with more for details; not set: lognormal for drawings on a plain ground, min_snr for photographs and latents", decides=True),
        Option("--time_steps",        None,            opt.TIME_STEPS,      "how time steps are drawn; weighted: in proportion to the weight of their loss; not set: weighted with lognormal, otherwise uniform", decides=True),
        Option("--label_drop",        0.1,             opt.probability,     "fraction of labels dropped, which guidance needs", decides=True),
    ],
    "optimisation": [
        Option("--epochs",            None,            opt.epochs,          f"passes over the images; not set: {USUAL_EPOCHS}, or as before where a run is resumed"),
        Option("--minutes",           None,            opt.minutes,         "instead of --epochs: as many steps as fit into so many minutes, all in all"),
        Option("--batch_size",        None,            opt.positive,        "images per process and forward pass"),
        Option("--grad_accum",        None,            opt.positive,        "forward passes per optimizer step; not set: 1, or as few as bring a preset's batch into memory"),
        Option("--optim",             None,            opt.OPTIMIZERS,      "optimizer; muon: for matrices, and adamw for the rest", decides=True),
        Option("--lr",                None,            opt.rate,            "peak learning rate", decides=True),
        Option("--lr_func",           "warmup_cosine", opt.LR_SCHEDULES,    "learning rate schedule", decides=True),
        Option("--warmup_steps",      None,            opt.natural,         "steps of warm-up, at most a tenth of the run; not set: a twentieth of it, at most 5000", decides=True),
        Option("--weight_decay",      0.01,            opt.probability,     "weight decay of adamw, muon and sgd", decides=True),
        Option("--grad_clip",         1.0,             opt.not_negative,    "maximum gradient norm; 0: no clipping", decides=True),
        Option("--ema_length",        None,            opt.ema_length,      "width of the EMA, as a share of the steps so far", decides=True),
        Option("--ema_decay",         None,            opt.below_one,       "instead, a fixed width: the EMA averages about the last 1/(1-decay) steps", decides=True),
        Option("--ema_snapshots",     None,            opt.natural,         "keep two further averages and so many snapshots of them, from which choose_ema.py makes the EMA of the best length; not set: 0, or as before where a run is resumed"),
        Option("--guide_share",       None,            opt.below_one,       "share of the run after which the averaged weights are kept too, to guide sampling by (autoguidance); 0: none; not set: 0.2 from 1,000 images on", decides=True),
        Option("--amp --fp16",        "auto",          opt.switch_or_auto,  "mixed precision (bf16 or fp16) where the hardware benefits; auto: where it has bf16", decides=True),
    ],
    "saving, evaluation and previews": [
        Option("--save_model_interval", False,         opt.switch,          "also keep numbered checkpoints: ckpt_<epoch>.pt"),
        Option("--save_model_interval_epochs", 10,     opt.positive,        "epochs between numbered checkpoints"),
        Option("--start_model_interval", -1,           opt.minus_one_up,    "first epoch that may have a numbered checkpoint"),
        Option("--save_every_steps",  0,               opt.natural,         "also save every N steps; 0: only at ends of epochs (where they are short, not of each one)"),
        Option("--keep",              0,               opt.natural,         "keep only the newest numbered checkpoints; 0: all"),
        Option("--vis",               True,            opt.switch,          "draw previews: grids of samples"),
        Option("--vis_interval_epochs", None,          opt.positive,        "epochs between previews; one is also drawn at the end; not set: at most 10 in a run, in at most 5% of its time"),
        Option("--num_vis",           8,               opt.positive,        "images per preview; with classes, per class"),
        Option("--image_format",      "png",           opt.IMAGE_FORMATS,   "file format of previews"),
        Option("--sample",            None,            opt.SAMPLERS,        f"sampler of previews, and by default of generate.py; not set: {USUAL_SAMPLER}, or as before where a run is resumed"),
        Option("--sample_steps",      15,              opt.positive,        "sampling steps of previews"),
        Option("--timestep_spacing",  None,            opt.TIMESTEP_SPACINGS, "which time steps the sampler of previews visits; not set: as is usual with it"),
        Option("--cfg_scale",         1.5,             opt.not_negative,    "guidance scale of previews; 1: none"),
        Option("--eval_interval_epochs", None,         opt.positive,        "epochs between evaluations on held-out images; not set: about 20 in a run, fewer where they would take more than 2% of its time"),
        Option("--eval_images",       0,               opt.natural,         "images generated at each evaluation to measure their KID; needs requirements-metrics.txt"),
        Option("--log_interval",      10,              opt.positive,        "steps between metric writes"),
    ],
    "machine": [
        Option("--use_gpu",           0,               opt.minus_one_up,    "GPU number; -1, or no GPU: the CPU; with several processes, the GPU of the first one on each machine"),
        Option("--num_workers",       -1,              opt.minus_one_up,    "data-loading workers (-1: automatic)"),
        Option("--cache",             "auto",          opt.CACHES,          "where decoded images (and latents) are cached; none: decode (and encode) at every use"),
        Option("--checkpoint_activations", None,       opt.whole_numbers,   "levels whose activations are computed twice instead of kept: less memory, more time; 0: full resolution; not set: none, or as before where a run is resumed"),
        Option("--compile",           False,           opt.switch,          "torch.compile: a slow start, then faster steps"),
        Option("--cuda_graph",        "auto",          opt.switch_or_auto,  "on a GPU, record the kernels of a step once and launch them together; auto: where that can be done"),
        Option("--distributed",       False,           opt.switch,          "one process per GPU, or several on the CPU"),
        Option("--world_size",        2,               opt.positive,        "number of processes with --distributed"),
        Option("--main_gpu",          0,               opt.natural,         "rank of the process that saves and draws"),
        Option("--timeout",           600.0,           opt.seconds,         "seconds a process waits for the others in a step, or while one saves"),
        Option("--gradient_compression", "none",       opt.GRADIENT_COMPRESSIONS, "number format in which the processes exchange gradients; bf16: half the bytes, rounded", decides=True),
    ],
}
# fmt: on

# Groups and options that only a diffusion has: the other training scripts leave them out.
OF_DIFFUSION = ("network", "diffusion", "conditional", "num_classes", "autoencoder_path", "latent")
OF_DIFFUSION += ("sample", "sample_steps", "timestep_spacing", "cfg_scale", "eval_images")
OF_DIFFUSION += ("checkpoint_activations", "augment", "ema_snapshots", "balance", "guide_share")
OF_DIFFUSION += ("condition_path", "condition_kind", "condition_drop", "joint_masks")


def build_parser() -> opt.Parser:
    return opt.make_parser(__doc__, OPTIONS)


def check(args: Namespace) -> None:
    """Checks that involve more than one option. Raises UserError before any work."""
    opt.check_training(args)
    opt.choose_average(args, OPTIONS)
    if args.sample_steps > args.noise_steps:
        raise opt.UserError(
            f"--sample_steps {args.sample_steps} is more than --noise_steps {args.noise_steps}"
        )
    check_time_steps(args)
    if args.eval_images > 0:
        opt.check_enough_for_kid("--eval_images", args.eval_images)
    if args.joint_masks and args.condition_path is None:
        raise opt.UserError("--joint_masks needs the masks: name their folder by --condition_path")
    if args.condition_path is not None:
        check_conditions(args)
    if args.conditional is True:
        check_guidance(args)
    if args.num_classes and not args.conditional:
        raise opt.UserError("--num_classes belongs to --conditional True")
    if args.eval_images > 0:
        # The last of all: nobody is to install a package for what is refused anyway
        from utils.evaluation.features import EFFICIENTNET, EFFICIENTNET_PACKAGE, need_package

        need_package(EFFICIENTNET_PACKAGE, EFFICIENTNET)


def check_time_steps(args: Namespace) -> None:
    """Raise UserError where they are to be drawn by weights that are all equal."""
    if args.time_steps == "weighted" and args.loss_weight == "uniform":
        raise opt.UserError(
            "--time_steps weighted draws by --loss_weight, which is uniform: --time_steps uniform "
            "goes with that"
        )


def check_conditions(args: Namespace) -> None:
    """Raise UserError for options that do not go with images that steer images."""
    if args.joint_masks:
        if args.autoencoder_path is not None or args.latent:
            raise opt.UserError("--joint_masks is for pixels: leave --autoencoder_path out")
        return
    if args.eval_images > 0:
        raise opt.UserError("--eval_images makes images without conditions: leave it out")
    if args.condition_drop == 0 and args.vis and args.cfg_scale != 1:
        raise opt.UserError(
            "with --condition_drop 0 nothing is learned without a condition to guide with: add "
            "--cfg_scale 1"
        )


def check_guidance(args: Namespace) -> None:
    """Raise UserError where classes are learned, and images are to be guided with what is not."""
    draws = args.vis or args.eval_images > 0
    if args.label_drop == 0 and draws and args.cfg_scale != 1:
        raise opt.UserError(
            "with --label_drop 0 nothing unconditional is learned to guide with: add --cfg_scale 1"
        )


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    check(args)
    opt.launch_training(partial(train, args), args)


def train(args: Namespace, ranks: Ranks) -> None:
    """One process of the run, in the order of execution."""
    from utils.training.recommendation import keep_recommended
    from utils.training.run import TrainingRun, held_out_data
    from utils.training.work import Work

    # Device, and the folder that this run alone may write
    run = TrainingRun(opt.run_options(args, OPTIONS), "diffusion", ranks, USUAL_EPOCHS)

    # Data
    source = load_images(args, run)
    split = run.split(source.images)
    trained = source.subset(split.training(len(source.images)))

    # What is not given follows the images, the device and the time
    earlier = earlier_network(args, run)
    recommended = recommended_before(args, run)
    run.seconds_ahead = seconds_to_encode(args, run, trained)
    choice = settle(args, run, source, trained, earlier)
    memory = memory_lines(args, run, trained, earlier)

    # What is trained: network, EMA, optimizer
    diffusion = build_diffusion(args, trained.size)
    data = held_out_data(source.images, trained.images, split) | source.data_config()
    state = run.build_state(build_config(args, trained, data, diffusion, earlier))
    check_size(state, source)
    save_memory(args, state)
    keep_autoencoder(args, state, source)

    # Resume or pretrain, before any long work
    run.restore(state, len(trained.images))

    # What the diffusion sees of the images
    codec = build_codec(args, run, trained)
    state.config["codec"] = codec.config
    inputs, latent_lines = build_inputs(args, run, trained, codec)
    task = build_task(args, diffusion, codec, source.condition)

    # How long it takes
    previews = build_previews(args, run, state, task, source, split)
    evaluations_of = partial(plan_evaluations, args, task, trained.images, split)
    length = run.length(state, task, inputs, len(trained.images), previews, evaluations_of)
    dropped = keep_recommended(state, recommended, length)

    # What is measured now and then
    evaluations = evaluations_of(length)
    evaluate = complete = None
    if evaluations is not None and not args.plan:  # a plan needs none of what this reads
        evaluate = build_evaluation(args, run, source, trained, split, evaluations, state, task)
        if state.step < length.total_steps or not recommended:
            complete = build_completion(args, source, evaluate, run.log)

    # Plan, fit
    run.train(
        Work(
            images=source.images,
            split=split,
            dataset=inputs,
            task=task,
            state=state,
            length=length,
            evaluations=evaluations,
            evaluate=evaluate,
            complete=complete,
            previews=previews,
            balance=trained.images.labels.array if args.balance else None,
            plan_lines=[
                *lines_of_options(args, trained),
                *preset_lines(args, run, choice, state, task, inputs, length),
                *memory,
                *latent_lines,
            ],
            remarks=[*plan_remarks(args, source, previews, choice, length), dropped],
        )
    )


# --- Data ---


def load_images(args: Namespace, run: TrainingRun) -> DiffusedImages:
    """All images, as what the diffusion sees them, and with what steers them. Says in `args` whether
    anything is learned beside them.
    """
    from utils.data import load_image_set
    from utils.image_facts import mode_of
    from utils.training.diffused_images import DiffusedImages

    autoencoder = find_autoencoder(args, run)
    quiet = not run.ranks.is_main
    images = load_image_set(
        args.dataset_path,
        args.image_size,
        asked_conditional(args, run),
        mode=image_mode(args, autoencoder),
        cache=args.cache,
        quiet=quiet,
    )
    paired = find_conditions(args, images, quiet, autoencoder)
    if paired is not None:
        images = paired.images
    if autoencoder is not None and autoencoder.in_channels != images.channels:
        fits = mode_of(autoencoder.in_channels)
        raise opt.UserError(
            f"the autoencoder {autoencoder.source} takes images of {autoencoder.in_channels} "
            f"channels, and these have {images.channels}: --mode {fits} makes them fit"
        )
    condition, masks = choose_role(args, paired, autoencoder)
    args.conditional = images.is_labelled
    if args.conditional:
        check_guidance(args)
    return DiffusedImages(images, autoencoder, paired, condition, masks)


def asked_conditional(args: Namespace, run: TrainingRun) -> bool | None:
    """Whether the classes are to be learned; None: where there are some."""
    if args.conditional != opt.AUTO:
        return args.conditional
    return run.before.get("conditional")


def find_autoencoder(args: Namespace, run: TrainingRun) -> StoredAutoencoder | None:
    """The autoencoder whose latents are diffused; None: pixels are.

    A resumed run normalises as before, and where --autoencoder_path is not given or has gone, the
    autoencoder is the checkpoint's own. Raises UserError where --latent says something else.
    """
    from utils.runs.autoencoders import autoencoder_within, read_autoencoder

    before = None if run.resumed is None else autoencoder_within(run.resumed)
    path = args.autoencoder_path
    if path is None or (before is not None and not path.exists()):
        found = before
    else:
        found = read_autoencoder(path)
        if before is not None and before.hash == found.hash:
            found = before
    if found is not None and args.augment:
        raise opt.UserError("--augment changes pixels: it does nothing to latents; leave it out")
    if args.latent and found is None:
        raise opt.UserError(
            "--latent needs --autoencoder_path: train one with tools/train_autoencoder.py first"
        )
    if args.latent is False and found is not None:
        raise opt.UserError(f"--latent False, but the autoencoder {found.source} makes latents")
    return found


def image_mode(args: Namespace, autoencoder: StoredAutoencoder | None) -> str:
    """Where --mode is auto, and the autoencoder takes colour, grey images become RGB. Raises
    UserError for a mode that no autoencoder takes.
    """
    from utils.image_facts import USUAL_MODES

    if autoencoder is not None and args.mode not in ("auto", *USUAL_MODES):
        raise opt.UserError(f"--mode {args.mode} is for pixels: an autoencoder takes grey or RGB")
    if args.mode == "auto" and autoencoder is not None and autoencoder.in_channels > 1:
        return "RGB"
    return args.mode


def find_conditions(
    args: Namespace, images: ImageSet, quiet: bool, autoencoder: StoredAutoencoder | None
) -> ConditionedSet | None:
    """The images that have a condition, with it; None where none steer."""
    from utils.data.conditions import pair

    if args.condition_path is None:
        return None
    mode = "auto" if autoencoder is None else images.mode  # which the autoencoder takes
    return pair(images, args.condition_path, args.condition_kind, args.cache, quiet, mode)


def choose_role(
    args: Namespace, paired: ConditionedSet | None, autoencoder: StoredAutoencoder | None
) -> tuple[Condition | None, LabelCondition | None]:
    """What steers the images, or the masks that are made with them. Raises UserError for masks that
    are no label maps.
    """
    from model.condition import LabelCondition, beside_latents

    if paired is None:
        return None, None
    if not args.joint_masks:
        if autoencoder is not None:
            channels = autoencoder.network["latent_channels"]
            factor = autoencoder.downsample_factor
            paired.condition = beside_latents(paired.condition, channels, factor)
        return paired.condition, None
    if not isinstance(paired.condition, LabelCondition):
        raise opt.UserError(
            f"--joint_masks makes label maps, and {args.condition_path} holds pictures: masks are "
            "palette files, or grey ones with few different numbers"
        )
    return None, paired.condition


# --- The recipe ---


def settle(
    args: Namespace,
    run: TrainingRun,
    source: DiffusedImages,
    trained: DiffusedImages,
    earlier: dict,
) -> RecipeChoice | None:
    """Fill in the options that were left open: as before where the run is resumed (None), else as
    in the `earlier` network that it starts from, or in a preset.
    """
    from utils.training import recipe

    take_from_before(args, run)
    given = {name: getattr(args, name) for name in recipe.OPEN_OPTIONS}
    if args.batch_size is not None and args.grad_accum is None:
        given["grad_accum"] = 1
    choice = None
    if run.resumed is not None:
        values = options_before(args, run, given, earlier, trained.size)
    else:
        choice = choose_recipe(args, run, given, source, trained, earlier)
        args.preset, values = choice.preset, choice.values
    if args.ema_decay is not None:
        values["ema_length"] = None
    vars(args).update(values)
    check_time_steps(args)
    run.take(opt.run_options(args, OPTIONS))
    return choice


def memory_lines(
    args: Namespace, run: TrainingRun, trained: DiffusedImages, earlier: dict
) -> list[str]:
    """Lines of the plan of a resumed run that will hardly fit into memory; before anything of it is
    there. A new run's choice of a recipe says so itself.
    """
    from utils.training.estimates import cost_of
    from utils.training.passes import shortage_lines, usable_memory

    if run.resumed is None:
        return []
    network = network_config(args, trained, earlier)
    try:
        has_averages = bool(run.options.ema_snapshots)
        cost = cost_of(network, trained.size, args.checkpoint_activations, has_averages)
    except ValueError:  # refused later, with its own sentence
        return []
    needed = cost.memory(args.batch_size, run.precision.dtype)
    return shortage_lines(needed, usable_memory(run))


def choose_recipe(
    args: Namespace,
    run: TrainingRun,
    given: dict,
    source: DiffusedImages,
    trained: DiffusedImages,
    earlier: dict,
) -> RecipeChoice:
    """The preset, and what it gives where nothing is given. Raises UserError where none fits."""
    from utils.data.flatness import flat_share
    from utils.training import recipe
    from utils.training.recipe_choice import RecipeChoice

    def network_of(values: dict) -> dict:
        chosen = Namespace(**{**vars(args), **values})
        return network_config(chosen, trained, earlier)

    if given["channel_mult"] is not None:
        check_divisible(trained, 2 ** (len(given["channel_mult"]) - 1))
    if trained.autoencoder is not None and given["augment"] is None:
        given["augment"] = 0.0
    if trained.autoencoder is None and given["loss_weight"] is None:
        given["loss_weight"] = recipe.usual_loss_weight(flat_share(trained.images))
    known = {}
    if args.pretrain:
        known = {name: earlier[name] for name in recipe.NETWORK_OPTIONS if name in earlier}
    return RecipeChoice(
        run,
        args.preset,
        given,
        trained.size,
        len(source.images),
        len(trained.images),
        network_of,
        trained.condition,
        known,
        args.checkpoint_activations,
    )


def take_from_before(args: Namespace, run: TrainingRun) -> None:
    """Fill in what no preset decides: as in the run that is resumed, or as usual."""
    from utils.training.recommendation import usual_sampler
    from utils.training.resume import whole_process

    sampler = recorded = None
    if run.resumed is not None:
        sampler = usual_sampler(run.resumed)
        recorded = run.resumed.args.get("checkpoint_activations")
    if args.sample is None:
        args.sample = sampler or USUAL_SAMPLER
    if args.checkpoint_activations is None:
        args.checkpoint_activations = tuple(recorded) if isinstance(recorded, list) else ()
    if args.noise_shift is None and run.resumed is not None:
        before = whole_process(run.resumed.config["diffusion"])
        if before["noise_schedule"] == args.noise_schedule:
            args.noise_shift = before["noise_shift"]


def recommended_before(args: Namespace, run: TrainingRun) -> dict:
    """How images are recommended to be made with the weights that the run resumes from; empty where
    nothing is recommended, or --sample says otherwise.
    """
    from utils.training.recommendation import recommended_sampling

    if run.resumed is None or args.sample is not None:
        return {}
    return recommended_sampling(run.resumed)


def options_before(
    args: Namespace, run: TrainingRun, given: dict, earlier: dict, size: tuple[int, int]
) -> dict:
    """The open options of the run that is resumed, but for those that are given; its preset and its
    average are filled in. Raises UserError for another preset.
    """
    from utils.training import recipe
    from utils.training.passes import resumed_passes

    resumed = run.resumed
    assert resumed is not None
    before = {**resumed.config, "network": earlier}
    grad_accum = given["grad_accum"] or resumed_passes(run)
    values = recipe.settled(given, recipe.options_before(before, run.ranks.world_size, grad_accum))
    recorded = resumed.args.get("preset", opt.AUTO)
    if args.preset == opt.AUTO:
        args.preset = recorded
    elif args.preset != recorded and not recipe.has_network_of(args.preset, size, values):
        raise opt.UserError(
            f"--preset {args.preset} is another network than that of the run, which {resumed.source} "
            "has saved: leave --preset out"
        )
    if args.ema_decay is None and args.ema_length is None:
        args.ema_decay = run.before.get("ema_decay")
    return values


def earlier_network(args: Namespace, run: TrainingRun) -> dict:
    """The config of the network of the run that is resumed, or of the weights to start from; empty
    where there is none, or bare weights do not say. Raises UserError where it cannot be built.
    """
    from utils.runs.checkpoint import Checkpoint
    from utils.runs.files import read_metadata
    from utils.runs.inference import network_without_weights

    if run.resumed is not None:
        before = run.resumed
        return network_without_weights(before.config["network"], before.source).config
    if not args.pretrain:
        return {}
    try:
        checkpoint = Checkpoint.parse(read_metadata(args.pretrain_path), args.pretrain_path)
        checkpoint.check_kind("diffusion")
    except opt.UserError:  # bare weights, or what is refused later with its own sentence
        return {}
    return network_without_weights(checkpoint.config["network"], args.pretrain_path).config


# --- What is trained ---


def build_diffusion(args: Namespace, size: tuple[int, int]) -> GaussianDiffusion:
    """The diffusion process, for images (or latents) of that height and width."""
    from model.diffusion import GaussianDiffusion
    from model.noise_schedule import usual_shift

    shift = args.noise_shift
    if shift is None:
        shift = usual_shift(args.noise_schedule, size)
    try:
        return GaussianDiffusion(
            noise_steps=args.noise_steps,
            noise_schedule=args.noise_schedule,
            prediction=args.prediction,
            noise_shift=shift,
            zero_terminal_snr=args.zero_terminal_snr,
        )
    except ValueError as error:
        raise opt.UserError(str(error)) from None


def build_config(
    args: Namespace,
    trained: DiffusedImages,
    data: dict,
    diffusion: GaussianDiffusion,
    earlier: dict,
) -> dict:
    """What goes into a checkpoint's config. Raises UserError for classes that were not expected."""
    condition = trained.condition
    classes = len(trained.images.class_names)
    if args.num_classes not in (None, classes):
        what = "class folders" if trained.images.conditions is None else "labels in its labels.csv"
        raise opt.UserError(
            f"--num_classes {args.num_classes}, but {args.dataset_path} has {classes} {what}"
        )
    is_guided = args.label_drop != 0
    if condition is not None:
        is_guided = args.condition_drop != 0 and (is_guided or not args.conditional)
    config = {
        "network": network_config(args, trained, earlier),
        "diffusion": diffusion.config,
        "codec": trained.codec_config(),
        "data": data,
        "sampling": {"sampler": args.sample, "guidance": is_guided},
    }
    if condition is not None:
        config["condition"] = condition.config
    return config


def network_config(args: Namespace, trained: DiffusedImages, earlier: dict) -> dict:
    """The network as the options describe it. Details that have no option are those of the
    `earlier` network that the run begins with.
    """
    from model.augmentation import NUMBERS
    from utils.training.recipe import NETWORK_DETAILS

    images, channels, condition = trained.images, trained.channels, trained.condition
    return {
        **{name: earlier[name] for name in NETWORK_DETAILS if name in earlier},
        "name": args.network,
        "in_channels": channels + (0 if condition is None else condition.channels),
        "out_channels": None if condition is None else channels,
        "num_classes": len(images.class_names) or None,
        "numbers": images.numbers,
        "channels": args.channels,
        "channel_mult": args.channel_mult,
        "blocks_per_level": args.blocks_per_level,
        "attention_levels": args.attention_levels,
        "head_channels": args.head_channels,
        "norm_groups": args.norm_groups,
        "time_embedding": args.time_embedding,
        "act": args.act,
        "dropout": args.dropout,
        "augmentation": NUMBERS if args.augment else 0,
    }


def check_size(state: TrainState, source: DiffusedImages) -> None:
    """Raise UserError for sizes that the network, or the autoencoder before it, does not take."""
    check_divisible(source, state.network.downsample_factor)


def check_divisible(source: DiffusedImages, factor: int) -> None:
    """Raise UserError where a network that divides its sides by `factor` does not take what the
    diffusion sees, in terms of the images.
    """
    from model.networks import check_image_size

    try:
        check_image_size(*source.images.image_size, factor * source.factor)
    except ValueError as error:
        raise opt.UserError(str(error)) from None


def keep_autoencoder(args: Namespace, state: TrainState, source: DiffusedImages) -> None:
    """In the checkpoint, where latents are diffused."""
    if source.autoencoder is None:
        return
    state.codec = source.autoencoder.weights
    state.versions["latents"] = "encoded at each use" if args.cache == "none" else "kept"


def save_memory(args: Namespace, state: TrainState) -> None:
    """Let the network keep less for the backward pass. Raises UserError where it cannot."""
    from model.networks import checkpoint_activations

    try:
        checkpoint_activations(state.network, args.checkpoint_activations)
    except ValueError as error:
        raise opt.UserError(f"--checkpoint_activations: {error}") from None


# --- What the diffusion sees ---


def build_codec(args: Namespace, run: TrainingRun, trained: DiffusedImages) -> Codec:
    """What the diffusion sees of an image: its pixels, or its latents."""
    from utils.training.latent_inputs import first_batch
    from utils.training.latent_statistics import build_latent_codec

    if trained.autoencoder is None:
        return trained.pixel_codec()
    images = trained.images
    if args.plan:
        images = first_batch(images, args.batch_size)
    return build_latent_codec(trained.autoencoder, images, run.precision.device, run.ranks)


def seconds_to_encode(args: Namespace, run: TrainingRun, trained: DiffusedImages) -> float:
    """About how long it takes to encode the images, where a plan or --minutes has to know."""
    from utils.training.latent_inputs import seconds_of_encoding

    if trained.autoencoder is None or not (args.plan or args.minutes is not None):
        return 0.0
    return seconds_of_encoding(
        trained.images,
        trained.autoencoder,
        args.flip,
        args.cache,
        run.precision.device,
        run.ranks,
        trained.paired,
    )


def build_inputs(
    args: Namespace, run: TrainingRun, trained: DiffusedImages, codec: Codec
) -> tuple[TrainingSet, list[str]]:
    """What the steps read: the images themselves, with what steers them or is made with them, or
    latents that were encoded before; and lines of the plan.
    """
    from model.codecs import LatentCodec
    from utils.training.latent_inputs import latent_inputs, planned_inputs

    images, paired = trained.images, trained.paired
    if trained.condition is not None:
        trained.condition.use(codec)
    if not isinstance(codec, LatentCodec):
        return (images if paired is None else paired), []
    if args.plan:
        seconds = run.seconds_ahead
        return planned_inputs(
            images, codec, args.flip, args.cache, args.batch_size, seconds, paired
        )
    found = latent_inputs(images, codec, args.flip, args.cache, run.ranks, paired)
    run.seconds_ahead = 0.0  # all is encoded
    return found


def build_task(
    args: Namespace, diffusion: GaussianDiffusion, codec: Codec, condition: Condition | None
) -> DiffusionTask:
    """What is trained: the diffusion's loss."""
    from model.codecs import LatentCodec
    from utils.training.diffusion_task import DiffusionTask, LatentDiffusionTask

    kind = LatentDiffusionTask if isinstance(codec, LatentCodec) else DiffusionTask
    return kind(
        diffusion,
        codec,
        args.conditional,
        args.flip,
        args.loss,
        args.label_drop,
        args.loss_weight,
        args.augment,
        condition,
        args.condition_drop,
        args.time_steps,
    )


# --- What is measured and drawn ---


def plan_evaluations(
    args: Namespace,
    task: DiffusionTask,
    dataset: ImageSet,
    split: Split,
    length: RunLength,
) -> EvaluationPlan | None:
    """When the run is evaluated and on how much; None where there is nothing to measure."""
    from model.guidance import needs_null
    from utils.training.evaluation import plan_evaluations
    from utils.training.held_out import evaluation_time_steps

    if len(split.held_out) == 0 and args.eval_images == 0:
        return None
    is_guided = dataset.is_labelled and needs_null(args.cfg_scale)
    calls = len(sampling_of(args).build(task.diffusion.config, "cpu").calls())
    return plan_evaluations(
        total_steps=length.total_steps,
        steps_per_epoch=length.steps_per_epoch,
        global_batch=length.global_batch,
        held_out=len(split.held_out),
        passes=len(evaluation_time_steps(task.diffusion)),
        interval_epochs=args.eval_interval_epochs,
        generated=args.eval_images,
        rows_per_generated=calls * (2 if is_guided else 1),
    )


def build_evaluation(
    args: Namespace,
    run: TrainingRun,
    source: DiffusedImages,
    trained: DiffusedImages,
    split: Split,
    evaluations: EvaluationPlan,
    state: TrainState,
    task: DiffusionTask,
) -> RunEvaluation:
    """What measures the averaged network."""
    from utils.data.split import lowest_numbers
    from utils.evaluation.features import EFFICIENTNET, build_features
    from utils.training.evaluation import RunEvaluation
    from utils.training.held_out import HeldOutLoss, SampleOfImages
    from utils.training.sample_score import SampleScore

    ranks, precision = run.ranks, run.precision
    held_out_loss = sample_score = None
    if evaluations.images > 0:
        everything = source.images if source.paired is None else source.paired
        learned = trained.images if trained.paired is None else trained.paired
        held_out = SampleOfImages.of(everything, split.held_out[: evaluations.images])
        chosen = lowest_numbers(learned.checksums, evaluations.images)
        training = SampleOfImages.of(learned, chosen)
        held_out_loss = HeldOutLoss(
            task, held_out, training, precision, ranks, args.batch_size, args.seed
        )
    if args.eval_images > 0:
        features = build_features(EFFICIENTNET, None, None, precision.device)
        generator = build_generator(args, state, task, source.images, precision)
        sample_score = SampleScore(
            generator, features, trained.images, args.eval_images, args.batch_size, ranks
        )
    return RunEvaluation(held_out_loss, sample_score)


def build_completion(
    args: Namespace,
    source: DiffusedImages,
    evaluation: RunEvaluation,
    log: Callable[[str], None] = opt.say,
) -> LabelGuidance | None:
    """What finds out after the last step how images are to be guided; None where there is nothing
    to choose, or to measure on.
    """
    from utils.training.label_guidance import MANY_IMAGES, LabelGuidance

    knows_both = args.conditional and args.label_drop > 0 and source.condition is None
    may_be_untold = knows_both and args.guide_share > 0 and len(source.images) >= MANY_IMAGES
    if not may_be_untold or evaluation.held_out_loss is None:
        return None
    return LabelGuidance(evaluation.held_out_loss, log)


def preview_conditions(args: Namespace, paired: ConditionedSet, split: Split) -> Tensor:
    """What steers the images of previews, (n,P,H,W) uint8: conditions of held-out images, and where
    there are too few of others; with classes, of each in turn.
    """
    import numpy as np

    from utils.data.image_set import stacked_pixels
    from utils.training.previews import MOST_ROWS

    places = np.concatenate([split.held_out, split.training(len(paired))])
    images = paired.images
    if images.class_names and images.conditions is None:
        labels = images.labels.array[places]
        rows = range(min(MOST_ROWS, len(images.class_names)))
        of_rows = [np.resize(places[labels == row], args.num_vis) for row in rows]
        places = np.concatenate(of_rows)
    else:
        places = places[: args.num_vis]
    return stacked_pixels(paired.conditions, places)


def build_previews(
    args: Namespace,
    run: TrainingRun,
    state: TrainState,
    task: DiffusionTask,
    source: DiffusedImages,
    split: Split,
) -> PreviewGrid | None:
    """What draws previews, or None without."""
    if not args.vis:
        return None
    from utils.training.previews import PreviewGrid

    images, shown = source.images, None
    if source.paired is not None and source.condition is not None:
        shown = preview_conditions(args, source.paired, split)
    generator = build_generator(args, state, task, images, run.precision)
    return PreviewGrid(generator, images.class_names, args.num_vis, args.batch_size, shown)


def build_generator(
    args: Namespace, state: TrainState, task: DiffusionTask, dataset: ImageSet, precision: Precision
) -> ImageGenerator:
    """What turns seeds into images with the averaged network, for previews and evaluations."""
    from utils.generation import ImageGenerator

    return ImageGenerator(
        state.ema.network,
        sampling_of(args).build(task.diffusion.config, precision.device, task.codec.is_bounded),
        task.codec,
        args.image_size,
        dataset.channels,
        precision,
        args.cfg_scale,
        condition=task.condition,
    )


def sampling_of(args: Namespace) -> Sampling:
    """How previews and evaluations make images."""
    from utils.generation import Sampling

    return Sampling(args.sample, args.sample_steps, args.timestep_spacing, cfg_scale=args.cfg_scale)


# --- The plan ---


def lines_of_options(args: Namespace, trained: DiffusedImages) -> list[str]:
    """Lines of the plan on what was settled."""
    from utils.training import diffusion_plan as plan

    return [
        *plan.class_lines(args.conditional),
        *plan.condition_lines(trained, args.condition_path),
        plan.optimizer_line(args.optim, args.lr, args.dropout, args.ema_length, args.ema_decay),
        plan.loss_line(args.loss_weight, args.time_steps),
        *plan.augmentation_lines(trained.images, args.augment, args.flip),
    ]


def preset_lines(
    args: Namespace,
    run: TrainingRun,
    choice: RecipeChoice | None,
    state: TrainState,
    task: DiffusionTask,
    inputs: TrainingSet,
    length: RunLength,
) -> list[str]:
    """Lines of the plan on the preset, and those beside it."""
    if choice is None:
        return [] if args.preset == opt.AUTO else [f"preset      {args.preset}, as before"]
    return choice.lines(run.stepping.seconds(state, task, inputs), length)


def plan_remarks(
    args: Namespace,
    source: DiffusedImages,
    previews: PreviewGrid | None,
    choice: RecipeChoice | None,
    length: RunLength,
) -> list[str]:
    """Legal options, and images, that cannot give a good result."""
    from utils.data.pairs import enlarged_originals_remark
    from utils.generation import sampling_remarks

    remarks = opt.idle_remarks(args, OPTIONS)
    remarks += filter(None, [enlarged_originals_remark(source.images)])
    if choice is not None:
        remarks += choice.remarks(length, source.factor)
    of_data = opt.changed_options(args, OPTIONS["run and data"])
    if args.joint_masks and "condition_drop" in of_data:
        remarks.append(
            f"--condition_drop {args.condition_drop:g} has no effect with --joint_masks: masks are "
            "made, and steer nothing"
        )
    if args.balance and not args.conditional:
        remarks.append("--balance has no effect: no classes are learned")
    if args.conditional and args.label_drop == 1:
        remarks.append(
            "with --label_drop 1 no image keeps its label, so the classes are not learned"
        )
    path = args.autoencoder_path
    if path is not None and source.autoencoder is not None and not path.exists():
        remarks.append(f"--autoencoder_path {path} is not there: the run's own is used")
    if previews is not None:
        remarks += sampling_remarks(previews.generator.sampler)
    return remarks


if __name__ == "__main__":
    opt.run_script(main)
