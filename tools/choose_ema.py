#!/usr/bin/env python3
"""Which length of the EMA makes the best images of a run that was trained with --ema_snapshots.

    python tools/train.py --run_name mine --dataset_path my_images --ema_snapshots 8
    python tools/choose_ema.py results/mine my_images
    python tools/choose_ema.py results/mine my_images --lengths 0.03 0.05 0.07 --num_images 2000

An average of each length is put together from the snapshots of two, and makes the same images from
the same seeds. The best becomes ema_chosen.pt in the run's folder. It needs requirements-metrics.txt.
"""

import math
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils import options as opt
from utils.options import Option, shared

USUAL_BATCH = 64  # images per network call

# fmt: off
OPTIONS: opt.Table = {
    "what": [
        Option("run",            None,                            opt.path,       "the run's folder"),
        Option("real",           None,                            opt.path,       "folder of real images to compare with, best such that it was not trained on"),
        Option("--lengths",      "0.01 0.02 0.04 0.07 0.1 0.15 0.2 0.25", opt.ema_length, "lengths to try, as shares of the run", several=True),
        shared("--num_images", 500),
        shared("--seed", 0),
        shared("--sample", None),
        shared("--sample_steps", None),
        shared("--timestep_spacing", None),
        shared("--cfg_scale", None),
    ],
    "output": [
        Option("--choose_name",  "ema",                           opt.file_name,  "table and picture go to <result_path>/<choose_name>"),
        shared("--result_path", "results"),
        Option("--num_shown",    8,                               opt.positive,   "images of each in the picture"),
    ],
    "machine": [
        shared("--batch_size", None, f"images per network call; not set: {USUAL_BATCH}, or as many as fit into memory"),
        shared("--amp --fp16", "auto"),
        shared("--use_gpu", 0),
    ],
}
# fmt: on


def build_parser() -> opt.Parser:
    return opt.make_parser(__doc__, OPTIONS)


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    opt.check_seeds(args.seed, args.num_images)
    opt.check_enough_for_kid("--num_images", args.num_images)
    args.num_shown = min(args.num_shown, args.num_images)
    from utils.runs.folder import results_folder

    if args.run.is_dir() and not os.access(args.run, os.W_OK):
        raise opt.UserError(f"{args.run} cannot be written, and the chosen average goes there")
    with results_folder(args.result_path, args.choose_name) as folder:
        choose(args, folder)


def choose(args, folder: Path) -> None:
    """All lengths, the table, the picture, the file."""
    from utils.devices import choose_device, choose_precision
    from utils.evaluation.averages import average_of, snapshots_of, write_chosen
    from utils.evaluation.features import EFFICIENTNET, build_features
    from utils.evaluation.from_weights import labels_like
    from utils.evaluation.image_folder import open_folder
    from utils.evaluation.same_seeds import Questions, answer, features_of_real
    from utils.generation import ImageGenerator, Sampling, choose_batch, unguided
    from utils.ranks import Ranks
    from utils.runs.checkpoint import Checkpoint
    from utils.runs.names import SLIM

    # What is wrong is said before any long work
    device = choose_device(args.use_gpu, Ranks())
    precision, remark = choose_precision(args.amp, device)
    snapshots = snapshots_of(args.run)
    checkpoint = Checkpoint.read(args.run / SLIM)
    checkpoint.check_kind("diffusion")
    checkpoint.check_unsteered()
    features = build_features(EFFICIENTNET, None, None, device)
    folder_of_real = open_folder(args.real, "REAL")
    sampling = Sampling.of_checkpoint(
        checkpoint,
        sampler=args.sample,
        sample_steps=args.sample_steps,
        timestep_spacing=args.timestep_spacing,
        eta=0.0,
        clip_sample=True,
        cfg_scale=args.cfg_scale,
    )
    generator = ImageGenerator.from_checkpoint(checkpoint, sampling, precision)
    labels, label_remark = labels_like(folder_of_real, checkpoint.class_names, args.num_images)
    for text in (remark, label_remark):
        if text:
            opt.say(f"warning: {text}")
    most = min(USUAL_BATCH, args.num_images)
    args.batch_size, batch_remark = choose_batch([generator], args.batch_size, most)
    if batch_remark:
        opt.say(batch_remark)

    # The averages
    real = features_of_real(
        folder_of_real, features, checkpoint.image_size, checkpoint.channels, args.batch_size
    )
    questions = Questions(args.num_images, args.seed, labels, args.batch_size, args.num_shown)
    batches = math.ceil(args.num_images / args.batch_size)
    total = len(args.lengths) * batches * generator.calls
    answers = {}
    with opt.Progress(total, title="sampling", unit="call", leave=False) as progress:
        for length in args.lengths:
            unguided(generator.network).load_state_dict(average_of(snapshots, length))
            answers[length] = answer(generator, questions, features, real, progress.update)

    # What people read
    best = min(answers, key=lambda length: answers[length].kid)
    report(args, answers, best, folder)
    file = write_chosen(args.run, average_of(snapshots, best), best)
    opt.say(f"the average of length {best:g} is in {file}")


def report(args, answers: dict, best: float, folder: Path) -> None:
    """The table on the terminal and in a file, and the picture."""
    import torch

    from utils.pictures import image_grid, save_image

    lines = ["| EMA length | KID x 1000 |", "| --- | --- |"]
    for length, found in answers.items():
        mark = "**" if length == best else ""
        kid = f"{1000 * found.kid:.1f} +- {1000 * found.kid_se:.1f}"
        lines.append(f"| {mark}{length:g}{mark} | {kid} |")
    for line in lines:
        opt.say(line)
    (folder / "ema.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    names = [f"{length:g}: {1000 * found.kid:.0f}" for length, found in answers.items()]
    images = torch.cat([found.shown for found in answers.values()])
    picture = folder / "ema.png"
    save_image(image_grid(images, args.num_shown, names), picture)
    opt.say(f"the same seeds by each of them, with their KID x 1000, in {picture}")


if __name__ == "__main__":
    opt.run_script(main)
