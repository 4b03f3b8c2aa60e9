#!/usr/bin/env python3
"""Train a diffusion model on a folder of images.

    python tools/train.py                                                          # the demo set, on a laptop
    python tools/train.py --run_name mine --dataset_path my_images --image_size 64 --conditional False
    python tools/train.py --run_name cifar --dataset_path datasets/cifar10 --image_size 32 --epochs 300
    python tools/train.py --run_name cifar --dataset_path datasets/cifar10 --image_size 32 --epochs 300 --resume
    python tools/train.py --run_name big --dataset_path datasets/big --distributed --world_size 4    # four GPUs

Everything goes to results/<run_name>/. Defaults are edited below or overridden by flags; a switch
takes True or False.
"""

import sys
import time
from datetime import timedelta
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils import options as opt

# fmt: off
OPTIONS = {
    "run and data": [
        ("--run_name",          "demo",          opt.file_name,       "the run writes to <result_path>/<run_name>"),
        ("--dataset_path",      "datasets/demo", opt.path,            "folder of images, one folder per class in it"),
        ("--result_path",       "results",       opt.path,            "folder that holds the runs"),
        ("--image_size",        "28",            opt.image_size,      "64, or height,width as 64,96"),
        ("--conditional",       True,            opt.switch,          "learn the classes; False: any folder of images"),
        ("--num_classes",       None,            opt.positive,        "checked against the folders; not needed"),
        ("--flip",              False,           opt.switch,          "mirror half of the images left to right"),
        ("--resume",            False,           opt.switch,          "go on from a checkpoint of this run"),
        ("--allow_changes",     False,           opt.switch,          "with --resume: although options or data differ"),
        ("--start_epoch",       -1,              opt.minus_one_up,    "with --resume: from ckpt_<epoch>.pt; -1: last"),
        ("--pretrain",          False,           opt.switch,          "start from the weights in --pretrain_path"),
        ("--pretrain_path",     None,            opt.path,            "a checkpoint, or a bare state_dict that fits"),
        ("--seed",              0,               opt.seed,            "of the weights and of all that is drawn"),
        ("--plan",              False,           opt.switch,          "say what the run would do, and stop"),
    ],
    "network": [
        ("--network",           "unet",          opt.NETWORKS,        "kind of network"),
        ("--channels",          32,              opt.positive,        "width of the first level"),
        ("--channel_mult",      "1,2,3",         opt.whole_numbers,   "width of each level in multiples of --channels"),
        ("--blocks_per_level",  1,               opt.positive,        "residual blocks per level"),
        ("--attention_levels",  "-1",            opt.whole_numbers,   "0: full resolution, -1: the lowest; =1,2: two"),
        ("--head_channels",     32,              opt.positive,        "channels per attention head"),
        ("--time_embedding",    "additive",      opt.TIME_EMBEDDINGS, "how time and class enter a block"),
        ("--act",               "silu",          opt.ACTIVATIONS,     "activation"),
        ("--dropout",           0.0,             opt.below_one,       "in the blocks; drawn per process"),
    ],
    "diffusion": [
        ("--noise_schedule",    "cosine",        opt.NOISE_SCHEDULES, "noise schedule"),
        ("--noise_steps",       1000,            opt.noise_steps,     "time steps T"),
        ("--prediction",        "v",             opt.PREDICTIONS,     "what the network predicts"),
        ("--loss",              "mse",           opt.LOSSES,          "distance of prediction and target"),
        ("--label_drop",        0.1,             opt.probability,     "share of images that lose their label"),
    ],
    "optimisation": [
        ("--epochs",            25,              opt.positive,        "passes over the images"),
        ("--batch_size",        32,              opt.positive,        "images per process and forward pass"),
        ("--grad_accum",        1,               opt.positive,        "forward passes per optimizer step"),
        ("--optim",             "adamw",         opt.OPTIMIZERS,      "optimizer"),
        ("--lr",                1.5e-3,          opt.rate,            "learning rate, the highest of the schedule"),
        ("--lr_func",           "warmup_cosine", opt.LR_SCHEDULES,    "learning rate over the steps"),
        ("--warmup_steps",      100,             opt.natural,         "steps over which warmup_cosine rises"),
        ("--weight_decay",      0.01,            opt.probability,     "of adamw and sgd"),
        ("--grad_clip",         1.0,             opt.not_negative,    "largest norm of the gradient; 0: no limit"),
        ("--ema_decay",         0.996,           opt.below_one,       "averages about the last 1/(1-decay) steps"),
        ("--amp --fp16",        False,           opt.switch,          "16 bits where the hardware gains from it"),
    ],
    "saving and previews": [
        ("--save_model_interval", False,         opt.switch,          "keep numbered checkpoints too: ckpt_<epoch>.pt"),
        ("--save_model_interval_epochs", 10,     opt.positive,        "a numbered checkpoint every so many epochs"),
        ("--start_model_interval", -1,           opt.minus_one_up,    "no numbered checkpoint before this epoch"),
        ("--save_every_steps",  0,               opt.natural,         "checkpoints inside epochs too; 0: at ends"),
        ("--keep",              0,               opt.natural,         "keep the newest numbered checkpoints; 0: all"),
        ("--vis",               True,            opt.switch,          "draw previews: grids of samples"),
        ("--vis_interval_epochs", 10,            opt.positive,        "one every so many epochs, and at the end"),
        ("--num_vis",           8,               opt.positive,        "images in a preview, or of each class in it"),
        ("--image_format",      "png",           opt.IMAGE_FORMATS,   "of the previews"),
        ("--sample",            "ddim",          opt.SAMPLERS,        "of previews and, by default, generate.py"),
        ("--sample_steps",      25,              opt.positive,        "steps of the preview sampler"),
        ("--timestep_spacing",  "trailing",      opt.TIMESTEP_SPACINGS, "grid of the preview sampler"),
        ("--cfg_scale",         1.5,             opt.not_negative,    "guidance of previews; 1: none"),
        ("--log_interval",      10,              opt.positive,        "write the metrics every so many steps"),
    ],
    "machine": [
        ("--use_gpu",           0,               opt.minus_one_up,    "number of the GPU; -1, or none there: the CPU"),
        ("--num_workers",       -1,              opt.minus_one_up,    "that read images; -1: as many as help"),
        ("--compile",           False,           opt.switch,          "torch.compile: slow to start, faster steps"),
        ("--distributed",       False,           opt.switch,          "one process per GPU; on CPUs, gloo"),
        ("--world_size",        2,               opt.positive,        "with --distributed: number of processes"),
        ("--main_gpu",          0,               opt.natural,         "the process that saves and draws"),
        ("--timeout",           600.0,           opt.seconds,         "seconds that a process waits for the others"),
    ],
}
# fmt: on


def build_parser() -> opt.Parser:
    return opt.make_parser(__doc__, OPTIONS)


def check(args) -> None:
    """What the options cannot tell one by one; UserError before any work."""
    if args.pretrain and not args.pretrain_path:
        raise opt.UserError("--pretrain needs --pretrain_path")
    if args.pretrain and args.resume:
        raise opt.UserError(
            "--pretrain starts a new run and --resume goes on with one: leave one of them out"
        )
    if args.sample_steps > args.noise_steps:
        raise opt.UserError(
            f"--sample_steps {args.sample_steps} is more than --noise_steps {args.noise_steps}"
        )
    for name, needed, unset in [("start_epoch", "resume", -1), ("pretrain_path", "pretrain", None),
                                ("keep", "save_model_interval", 0),
                                ("start_model_interval", "save_model_interval", -1)]:  # fmt: skip
        if getattr(args, name) != unset and not getattr(args, needed):
            raise opt.UserError(f"--{name} {getattr(args, name)} does nothing without --{needed}")
    if args.conditional and args.label_drop == 0 and args.vis and args.cfg_scale != 1:
        raise opt.UserError(
            "with --label_drop 0 nothing unconditional is learned to guide with: add --cfg_scale 1"
        )
    if args.num_classes and not args.conditional:
        raise opt.UserError("--num_classes belongs to --conditional True")
    if not (folder := args.dataset_path).is_dir():
        raise opt.UserError(
            f"--dataset_path {folder} is {'a file' if folder.exists() else 'not there'}; name a folder"
        )


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    check(args)
    from utils.distributed import launch

    launch(train, args, args.distributed, args.world_size, args.main_gpu, args.timeout)


def train(args, ranks) -> int:
    """One process of the run, in the order of execution. Returns its exit status."""
    from utils.data import StepSampler, build_loader, load_image_set, steps_per_epoch
    from utils.distributed import choose_device, choose_precision, wrap_network
    from utils.run_folder import RunFolder
    from utils.trainer import fit, learning_rate

    # Device, and the folder that this run alone may write
    device = choose_device(args.use_gpu, ranks)
    precision, remark = choose_precision(args.amp, device)
    run = (
        RunFolder(args.result_path / args.run_name, args.resume)
        if ranks.is_main and not args.plan
        else None
    )

    # Data
    dataset = load_image_set(
        args.dataset_path, args.image_size, args.conditional, quiet=not ranks.is_main
    )
    global_batch = args.batch_size * args.grad_accum * ranks.world_size  # images per step
    epoch_steps = steps_per_epoch(len(dataset), global_batch)
    total_steps = args.epochs * epoch_steps

    # Network, EMA, optimizer; what is to be learned
    state, diffusion = build_state(args, dataset, precision, global_batch)
    source = restore(state, args, total_steps)
    ranks.check_agreement(
        {**state.args, **OF_A_MACHINE, **state.config["data"], "step": state.step}
    )
    network = wrap_network(state.network, ranks, args.compile)
    loss_fn = loss_function(diffusion, device, args)

    # The plan
    lines = describe_plan(
        args, ranks, dataset, state, precision, remark, network, loss_fn, epoch_steps, total_steps
    )
    if args.plan:
        print("\n".join(lines))
        return 0
    if run:
        run.start({"args": state.args, "config": state.config}, state.step, source)
        run.log("\n".join(lines))

    # Fit
    order = partial(StepSampler, dataset, global_batch, state.seed)
    sampler = order(state.step, total_steps, ranks.rank, ranks.world_size)
    every, first = args.save_model_interval_epochs, args.start_model_interval
    return fit(
        network,
        build_loader(
            dataset, sampler, args.batch_size, args.num_workers, pin=device.type == "cuda"
        ),
        loss_fn,
        preview_function(diffusion, dataset, precision, args) if args.vis else None,
        state,
        run=run,
        ranks=ranks,
        precision=precision,
        lr_at=lambda step: learning_rate(
            step, total_steps, args.lr, args.lr_func, args.warmup_steps
        ),
        total_steps=total_steps,
        steps_per_epoch=epoch_steps,
        accumulate=args.grad_accum,
        grad_clip=args.grad_clip,
        log_interval=args.log_interval,
        save_steps=args.save_every_steps,
        preview_epochs=args.vis_interval_epochs,
        numbered=lambda epoch: args.save_model_interval and epoch % every == 0 and epoch >= first,
        keep=args.keep,
        image_format=args.image_format,
        batch_names=lambda step: [dataset.files[i] for i in order(step, step + 1)],
    )


def build_state(args, dataset, precision, global_batch: int):
    """The network, its EMA and optimizer as the options describe them, untrained, and the diffusion
    process.
    """
    import torch

    from model.ema import EMA
    from model.networks import build_network, check_image_size
    from model.samplers import build_sampler
    from utils.trainer import TrainState, build_optimizer

    classes = len(dataset.class_names) or None
    if args.num_classes not in (None, classes):
        raise opt.UserError(
            f"--num_classes {args.num_classes}, but {args.dataset_path} has {classes} class folders"
        )
    shape = {"name": args.network, "in_channels": dataset.channels, "num_classes": classes}
    shape |= {
        key: getattr(args, key)
        for key in (option[0].removeprefix("--") for option in OPTIONS["network"][1:])
    }
    process = {key: getattr(args, key) for key in ("noise_steps", "noise_schedule", "prediction")}
    sampling = {"sample_steps": args.sample_steps, "timestep_spacing": args.timestep_spacing}
    torch.manual_seed(args.seed)
    try:
        network = build_network(shape)
        check_image_size(*args.image_size, network.downsample_factor)
        diffusion = build_sampler(args.sample, process, device=precision.device, **sampling)
    except ValueError as error:
        raise opt.UserError(str(error)) from None
    network = precision.place(network)
    optimizer = build_optimizer(args.optim, network, args.lr, args.weight_decay)
    config = {"network": network.config, "diffusion": diffusion.config, "data": dataset.metadata()}
    plain = {
        name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()
    }
    plain["global_batch"] = global_batch
    state = TrainState(
        network,
        EMA(network, args.ema_decay),
        optimizer,
        precision.scaler(),
        args.seed,
        config,
        plain,
    )
    return state, diffusion


def restore(state, args, total_steps: int) -> Path | None:
    """The state of the checkpoint that --resume goes on from, and its file; or the weights of
    --pretrain.
    """
    from utils.checkpoint import load_weights, read_checkpoint
    from utils.run_folder import find_checkpoint

    if not (args.resume or args.pretrain):
        return None
    if args.resume:
        contents, file = find_checkpoint(args.result_path / args.run_name, args.start_epoch)
    else:
        contents, file = read_checkpoint(args.pretrain_path), args.pretrain_path
    try:
        if args.pretrain:
            theirs, ours = contents.get("config", state.config), state.config
            if (
                theirs["diffusion"] != ours["diffusion"]
                or theirs["data"]["class_names"] != ours["data"]["class_names"]
            ):
                print(
                    f"warning: {file} is from {theirs['diffusion']}, classes {theirs['data']['class_names']}"
                )
            for network in (state.network, state.ema.network):
                load_weights(network, contents.get("ema") or contents.get("network"), file)
            return None
        changed = changes(contents, state)
        if changed and not args.allow_changes:
            raise opt.UserError(
                f"{file} was made with other settings: {'; '.join(changed)}; --allow_changes goes on"
            )
        state.restore(contents, file)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise opt.UserError(
            f"{file} is no checkpoint of train.py to go on from: {error!r}"
        ) from None
    if state.step > total_steps:
        raise opt.UserError(
            f"{file} has done {state.step} steps; --epochs {args.epochs} is only {total_steps}"
        )
    return file


# What decides the result of a run; the rest may differ when it is resumed.
DECISIVE = (
    "conditional flip seed loss label_drop global_batch optim lr lr_func warmup_steps".split()
)
DECISIVE += "weight_decay grad_clip ema_decay amp".split()
OF_A_MACHINE = dict.fromkeys(
    ("dataset_path", "result_path", "pretrain_path", "num_workers")
)  # may differ between them


def changes(contents: dict, state) -> list[str]:
    """How the decisive settings of this run differ from those of the checkpoint. Warns of another
    machine.
    """

    def decisive(args: dict, config: dict) -> dict:
        facts = (
            {key: args.get(key) for key in DECISIVE}
            | config["network"]
            | config["diffusion"]
            | config["data"]
        )
        return {
            "the images" if key == "fingerprint" else key: value for key, value in facts.items()
        }

    before, now = contents["versions"], state.versions()
    if before != now:
        print(
            f"warning: the checkpoint was made with {before}, this is {now}: equal to rounding, dropout apart"
        )
    before = decisive(contents["args"] | contents["state"], contents["config"])
    now = decisive(state.args, state.config)
    return [
        f"{key} {before.get(key)} before, {now[key]} now"
        for key in now
        if now[key] != before.get(key)
    ]


def loss_function(diffusion, device, args):
    """The loss of a batch, and for the log the loss by quarter of the time steps (q1 the least
    noisy).
    """
    import torch

    from model.randomness import draw_uniform
    from utils.images import to_unit

    def loss_fn(network, batch, generators):
        pixels, labels, _ = batch
        x0 = to_unit(pixels.to(device, non_blocking=True))
        if args.flip:
            mirrored = draw_uniform(len(x0), generators) < 0.5
            x0 = torch.where(mirrored.to(device).view(-1, 1, 1, 1), x0.flip(3), x0)
        labels = labels.to(device) if args.conditional else None
        losses, t = diffusion.losses(network, x0, labels, generators, args.loss, args.label_drop)
        quarter = torch.nn.functional.one_hot(4 * t // args.noise_steps, 4).to(losses)  # (B,4)
        sums = torch.stack([losses.detach()[:, None] * quarter, quarter], dim=2).sum(0)  # (4,2)
        return {"loss": losses.mean()} | {f"loss_q{i + 1}": pair for i, pair in enumerate(sums)}

    return loss_fn


def preview_function(diffusion, dataset, precision, args):
    """A grid of samples: --num_vis of each class, a row per class (20 rows at most), or --num_vis
    images.
    """
    import torch

    from utils.images import image_grid

    names = [name[:24] for name in dataset.class_names[:20]]
    labels = [label for label in range(len(names)) for _ in range(args.num_vis)] if names else None
    count = args.num_vis * max(1, len(names))

    def preview_fn(network, callback):
        images, shape = [], (dataset.image_size, dataset.channels)
        with precision.autocast():
            for start in range(0, count, args.batch_size):
                seeds = range(
                    start, min(start + args.batch_size, count)
                )  # the same noise in every preview
                part = labels and labels[start : start + args.batch_size]
                options = {
                    "labels": part,
                    "cfg_scale": args.cfg_scale,
                    "seeds": seeds,
                    "callback": callback,
                }
                images.append(diffusion.sample(network, len(seeds), *shape, **options))
        return image_grid(torch.cat(images).cpu(), args.num_vis if names else min(8, count), names)

    return preview_fn


def describe_plan(
    args, ranks, dataset, state, precision, remark, network, loss_fn, epoch_steps, total_steps
):
    """What the run will do, in lines. The seconds per step are measured."""
    from torch.utils.data import default_collate

    from utils.data import describe
    from utils.trainer import time_step

    batch = default_collate([dataset[i % len(dataset)] for i in range(args.batch_size)])
    seconds = time_step(network, loss_fn, batch, precision, ranks) * args.grad_accum
    left = total_steps - state.step
    previews = args.epochs // args.vis_interval_epochs + 1 if args.vis else 0
    shown = args.num_vis * max(1, min(20, len(dataset.class_names)))
    passes = args.sample_steps * (1 if args.cfg_scale in (0, 1) or not args.conditional else 2)
    per_image = (
        seconds / 3 / (args.batch_size * args.grad_accum)
    )  # a forward pass is about a third of a step
    finish = left * seconds + previews * shown * passes * per_image
    count = sum(p.numel() for p in state.network.parameters())
    full = (
        4 * count * (3 if args.optim == "sgd" else 4)
    )  # network, EMA, and the optimizer's one or two moments
    kept = args.epochs // args.save_model_interval_epochs
    kept = min(kept, args.keep or kept) if args.save_model_interval else 0
    return [
        *describe(dataset),
        f"network     {args.network}, {count / 1e6:.2f} M parameters, {precision}",
        f"steps       {total_steps:,} = {args.epochs} epochs x {epoch_steps}, {state.step:,} done; "
        f"{state.args['global_batch']} images per step on {ranks.world_size} process{'es' * (ranks.world_size > 1)}",
        f"time        {seconds:.3f} s per step, about {timedelta(seconds=round(finish))} left: until "
        f"{time.strftime('%a %H:%M', time.localtime(time.time() + finish))}",
        f"disk        {((2 + kept) * full + 4 * count) / 1e6:,.0f} MB of checkpoints below {args.result_path}",
        *([f"warning     {remark}"] if remark else []),
    ]


if __name__ == "__main__":
    opt.run_script(main)
