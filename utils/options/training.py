"""What the training scripts share of their options: tables made from train.py's, checks, values."""

from argparse import Namespace
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields, replace
from typing import Any, NoReturn

from utils.errors import UserError
from utils.options.table import Option, Table, checked_default, options_of, plain_values
from utils.options.types import PathType
from utils.processes_of_others import is_one_of_several, joins_others, number_of
from utils.training.run_options import RunOptions

WITH_WARMUP = "warmup_cosine"  # the learning-rate schedule that has a warm-up

# Options that do nothing without another: (option, value when it is not set, the other).
NEEDS = [
    ("start_epoch", -1, "resume"),
    ("pretrain_path", None, "pretrain"),
    ("keep", 0, "save_model_interval"),
    ("start_model_interval", -1, "save_model_interval"),
]

# Options that have no effect without another, which then is worth a remark: (option, the others,
# of which one is enough).
IDLE_WITHOUT = [
    ("allow_changes", ["resume"]),
    ("save_model_interval_epochs", ["save_model_interval"]),
    ("vis_interval_epochs", ["vis"]),
    ("num_vis", ["vis"]),
    ("image_format", ["vis"]),
    ("sample_steps", ["vis", "eval_images"]),
    ("timestep_spacing", ["vis", "eval_images"]),
    ("cfg_scale", ["vis", "eval_images"]),
    ("condition_kind", ["condition_path"]),
    ("condition_drop", ["condition_path"]),
    ("label_drop", ["conditional"]),
]

OF_THE_OUTPUT = "saving, evaluation and previews"  # a group of each table

# Besides paths, the options that may differ between the machines of a run.
OF_A_MACHINE = ("num_workers", "cache")


def derived_table(
    table: Table, own: Table, defaults: Mapping[str, Any], without: Collection[str] = ()
) -> Table:
    """The options of another training script: those of `table` without the groups and options named
    in `without`, with other defaults, and its own groups behind the first one.

    Raises KeyError for a name that `table` does not have.
    """
    names = {option.name for option in options_of(table)}
    unknown = [name for name in defaults if name not in names]
    unknown += [name for name in without if name not in names and name not in table]
    if unknown:
        raise KeyError(f"no such option or group: {', '.join(unknown)}")
    groups: Table = {}
    for title, options in table.items():
        if title not in without:
            kept = [option for option in options if option.name not in without]
            groups[title] = [_with_default(option, defaults) for option in kept]
    first, *others = groups
    return {first: groups[first], **own, **{title: groups[title] for title in others}}


def _with_default(option: Option, defaults: Mapping[str, Any]) -> Option:
    if option.name not in defaults:
        return option
    return replace(option, default=defaults[option.name])


def run_options(args: Namespace, table: Table) -> RunOptions:
    """The parsed options that every training script has, as plain values; where one has not, as
    RunOptions has it.
    """
    of_the_script = {"record", "of_a_machine", "decisions", "of_the_output"}
    names = [field.name for field in fields(RunOptions) if field.name not in of_the_script]
    options = options_of(table)
    paths = [option.name for option in options if isinstance(option.type, PathType)]
    return RunOptions(
        **{name: getattr(args, name) for name in names if hasattr(args, name)},
        record=plain_values(args),
        of_a_machine=(*paths, *OF_A_MACHINE),
        decisions={option.name: getattr(args, option.name) for option in options if option.decides},
        of_the_output=tuple(option.name for option in table[OF_THE_OUTPUT]),
    )


def check_training(args: Namespace) -> None:
    """Checks that involve more than one option. Raises UserError before any work."""
    if args.pretrain and not args.pretrain_path:
        raise UserError("--pretrain needs --pretrain_path")
    if args.pretrain and args.resume:
        raise UserError(
            "--pretrain starts a new run and --resume continues one: leave one of them out"
        )
    for name, unset, other in NEEDS:
        value = getattr(args, name)
        if value != unset and not getattr(args, other):
            raise UserError(f"--{name} {value} does nothing without --{other}")
    if not args.dataset_path.is_dir():
        found = "is a file" if args.dataset_path.exists() else "does not exist"
        raise UserError(f"--dataset_path {args.dataset_path} {found}; name a folder")


def choose_average(args: Namespace, table: Table) -> None:
    """With --ema_length, the usual --ema_decay of a script does not count. Raises UserError where
    another one is given too.
    """
    usual = {option.name: checked_default(option) for option in options_of(table)}
    if args.ema_length is None or args.ema_decay is None:
        return
    if args.ema_decay != usual["ema_decay"]:
        raise UserError(
            "--ema_length and --ema_decay both set how long the average is: leave one of them out"
        )
    args.ema_decay = None


def idle_remarks(args: Namespace, table: Table) -> list[str]:
    """Remarks on options that do nothing beside others."""
    usual = {option.name: checked_default(option) for option in options_of(table)}
    remarks = _without_others(args, usual)
    if args.warmup_steps != usual["warmup_steps"] and args.lr_func != WITH_WARMUP:
        remarks.append(
            f"--warmup_steps {args.warmup_steps} has no effect with --lr_func {args.lr_func}"
        )
    if args.weight_decay != usual["weight_decay"] and args.optim == "adam":
        remarks.append(f"--weight_decay {args.weight_decay:g} has no effect with --optim adam")
    if args.minutes is not None and args.epochs is not None:
        remarks.append(f"--epochs {args.epochs} has no effect: --minutes sets the length")
    joins, started = joins_others(args.distributed), number_of("WORLD_SIZE")
    processes = started if joins else args.world_size if args.distributed else 1
    if args.gradient_compression != "none" and processes == 1:
        remarks.append(
            f"--gradient_compression {args.gradient_compression} has no effect: one process "
            "exchanges no gradients"
        )
    if joins:
        if args.world_size not in (usual["world_size"], started):
            remarks.append(
                f"--world_size {args.world_size} has no effect: {started} processes were started"
            )
        return remarks
    if args.distributed:
        return remarks
    if is_one_of_several():
        remarks.append(
            f"RANK and WORLD_SIZE in the environment say that this is one of "
            f"{number_of('WORLD_SIZE')} processes: --distributed joins them, and without it each "
            "trains alone"
        )
    if args.world_size != usual["world_size"] or args.main_gpu != 0:
        remarks.append(
            f"--world_size {args.world_size} and --main_gpu {args.main_gpu} have no effect without "
            "--distributed"
        )
    return remarks


def _without_others(args: Namespace, usual: Mapping[str, Any]) -> list[str]:
    """Remarks on options that need another one, which is not set."""
    remarks = []
    for name, others in IDLE_WITHOUT:
        if name not in usual or getattr(args, name) == usual[name]:
            continue
        if not any(getattr(args, other, None) for other in others):
            needed = " or ".join(f"--{other}" for other in others)
            remarks.append(f"--{name} {getattr(args, name)} has no effect without {needed}")
    return remarks


def launch_training(worker: Callable, args: Namespace) -> NoReturn:
    """Call worker(ranks) in the processes that the options ask for, and exit; see
    `utils.launch.launch`.
    """
    from utils.launch import Processes, launch  # which import torch

    processes = Processes(
        distributed=args.distributed,
        world_size=args.world_size,
        main_rank=args.main_gpu,
        timeout=args.timeout,
        first_gpu=args.use_gpu,
    )
    launch(worker, processes)
