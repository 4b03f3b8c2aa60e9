#!/usr/bin/env python3
"""How a checkpoint is sampled best: with which sampler, time steps and guidance.

    python tools/compare_samplers.py weight/demo.pt datasets/demo
    python tools/compare_samplers.py results/mine/ema_last.pt my_images --steps 5 10 15 --num_images 2000
    python tools/compare_samplers.py results/mine/ema_last.pt my_images --samplers dpmpp2m unipc --spacings logsnr karras
    python tools/compare_samplers.py results/mine/ema_last.pt my_images --guide_scale 1.25 1.5 --guide_labels True False

Each makes the same images, from the same seeds. The one with the fewest network calls among the
best is written into the checkpoint: generate.py, evaluate.py and the server then take it where
nobody says how. It needs requirements-metrics.txt.
"""

import math
import os
import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils import options as opt
from utils.options import Option, shared

USUAL_BATCH = 64  # images per network call

# fmt: off
OPTIONS: opt.Table = {
    "what": [
        Option("weight",         None,                 opt.path,      "the checkpoint"),
        Option("real",           None,                 opt.path,      "folder of real images to compare with, best such that it was not trained on"),
        Option("--samplers",     "ddim dpmpp2m unipc", opt.SAMPLERS,  "samplers", several=True),
        Option("--spacings",     "trailing logsnr",    opt.TIMESTEP_SPACINGS, "which time steps each of them visits", several=True),
        Option("--steps",        "6 10 15 25",         opt.positive,  "sampling steps of each", several=True),
        shared("--num_images", 500),
        shared("--seed", 0),
        shared("--clip_sample", True),
        Option("--cfg_scale",    None,                 opt.not_negative, "guidance scales to compare, as of generate.py; not set: the usual one", several=True),
        shared("--cfg_interval", None),
        Option("--guide_scale",  None,                 opt.not_negative, "guide scales to compare (of the guide stored in the weights); not set: the usual one", several=True),
        Option("--guide_labels", None,                 opt.switch,    "compare images whose guide is told the class (True), is not (False), or both", several=True),
        shared("--use_ema", True),
        Option("--write",        True,                 opt.switch,    "write the best one into the checkpoint"),
    ],
    "output": [
        Option("--compare_name", "samplers",           opt.file_name, "table and picture go to <result_path>/<compare_name>"),
        shared("--result_path", "results"),
        Option("--num_shown",    8,                    opt.positive,  "images of each in the picture"),
        Option("--json",         None,                 opt.path,      "also write all figures to this file"),
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
    check(args)
    from utils.runs.folder import results_folder

    with results_folder(args.result_path, args.compare_name) as folder:
        compare(args, folder)


def check(args) -> None:
    """Raise UserError for what does not fit together."""
    opt.check_seeds(args.seed, args.num_images)
    opt.check_enough_for_kid("--num_images", args.num_images)
    if args.write:
        check_writable(args)
    args.num_shown = min(args.num_shown, args.num_images)


def check_writable(args) -> None:
    """Raise UserError where no checkpoint can say what is compared."""
    if args.weight.is_dir():
        raise opt.UserError(f"{args.weight} is a folder of diffusers: pass --write False")
    if args.weight.is_file() and is_safetensors_file(args.weight):
        raise opt.UserError(
            f"{args.weight} holds safetensors, which are not written here: pass --write False"
        )
    folder = args.weight.resolve().parent  # where a link leads
    if args.weight.exists() and not os.access(folder, os.W_OK):
        raise opt.UserError(f"{folder} cannot be written: pass --write False")
    from utils.runs.folder import writing_beside_runs

    with writing_beside_runs(folder):  # that it can be done, as far as it can be known
        pass
    unkept = {
        "--cfg_interval": args.cfg_interval is not None,
        "--clip_sample False": not args.clip_sample,
        "--use_ema False": not args.use_ema,
    }
    for option in (option for option, is_given in unkept.items() if is_given):
        raise opt.UserError(
            f"checkpoints keep no {option}, so that what is best with it would not be what is made "
            "afterwards: pass --write False"
        )


def is_safetensors_file(file: Path) -> bool:
    from utils.runs.safetensors import LENGTH_BYTES, is_safetensors

    try:
        with open(file, "rb") as stream:
            return is_safetensors(stream.read(LENGTH_BYTES + 1))
    except OSError:  # said when it is read
        return False


def check_classes(args, checkpoint) -> None:
    """Raise UserError where images are to be compared that classes guide in different ways, and the
    network has none.
    """
    if checkpoint.class_names:
        return
    for name in ("cfg_scale", "guide_labels"):
        if len(set(getattr(args, name) or ())) > 1:
            raise opt.UserError(
                f"{checkpoint.source} has no classes, which --{name} is about: compare "
                "--guide_scale"
            )


def compare(args, folder: Path) -> None:
    """All candidates, the table, the picture, the recommendation."""
    from utils.devices import choose_device, choose_precision
    from utils.evaluation import sampler_comparison as comparison
    from utils.evaluation.features import EFFICIENTNET, build_features
    from utils.evaluation.image_folder import open_folder
    from utils.evaluation.report import check_can_write
    from utils.evaluation.same_seeds import features_of_real
    from utils.generation import ImageGenerator, Sampling, choose_batch
    from utils.ranks import Ranks
    from utils.runs.checkpoint import Checkpoint

    # What is wrong is said before any long work
    if args.json is not None:
        check_can_write(args.json)
    device = choose_device(args.use_gpu, Ranks())
    precision, remark = choose_precision(args.amp, device)
    checkpoint = Checkpoint.read(args.weight)
    checkpoint.check_kind("diffusion")
    checkpoint.check_unsteered()
    check_classes(args, checkpoint)
    features = build_features(EFFICIENTNET, None, None, device)
    folder_of_real = open_folder(args.real, "REAL")
    usual = [
        Sampling.of_checkpoint(
            checkpoint,
            sampler=None,
            sample_steps=None,
            timestep_spacing=None,
            eta=0.0,
            clip_sample=args.clip_sample,
            cfg_scale=cfg_scale,
            cfg_interval=args.cfg_interval,
            guide_scale=guide_scale,
            guide_labels=guide_labels,
        )
        for cfg_scale, guide_scale, guide_labels in guidance_asked(args)
    ]
    by_guidance = {
        each.guidance: ImageGenerator.from_checkpoint(
            checkpoint, each, precision, use_ema=args.use_ema
        )
        for each in usual
    }
    candidates = comparison.candidates_of(args.samplers, args.spacings, args.steps, by_guidance)
    generators = [each_generator(by_guidance[each.guidance], usual[0], each) for each in candidates]
    most = min(USUAL_BATCH, args.num_images)
    args.batch_size, batch_remark = choose_batch(list(by_guidance.values()), args.batch_size, most)
    if remark:
        opt.say(f"warning: {remark}")
    if batch_remark:
        opt.say(batch_remark)

    # What they are measured against
    real = features_of_real(
        folder_of_real, features, checkpoint.image_size, checkpoint.channels, args.batch_size
    )
    questions = ask(args, folder_of_real, checkpoint)
    exact = {
        guidance: comparison.exact_images(generator, usual[0].guided(guidance), questions)
        for guidance, generator in by_guidance.items()
    }

    # The candidates
    batches = math.ceil(args.num_images / args.batch_size)
    calls = batches * sum(each.calls for each in generators)
    results = []
    with opt.Progress(calls, title="sampling", unit="call", leave=False) as progress:
        for candidate, own in zip(candidates, generators, strict=True):
            found = comparison.measure(
                candidate,
                own,
                questions,
                features,
                real,
                exact[candidate.guidance],
                progress.update,
            )
            results.append(found)

    # What people read
    best = comparison.recommended(results)
    report(args, results, best, folder)
    if args.write:
        comparison.write_recommendation(args.weight, best.candidate)
        opt.say(f"{args.weight} is sampled with {best.candidate} from now on")


def guidance_asked(args) -> list[tuple]:
    """cfg_scale, guide_scale and guide_labels of each guidance to compare; None: not said."""
    asked = []
    for cfg_scale in args.cfg_scale or [None]:
        for guide_scale in args.guide_scale or [None]:
            is_unled = guide_scale == 1 or (guide_scale is None and cfg_scale is not None)
            for guide_labels in [None] if is_unled else args.guide_labels or [None]:
                asked.append((cfg_scale, guide_scale, guide_labels))
    if args.guide_labels and all(guide_labels is None for *_, guide_labels in asked):
        raise opt.UserError("--guide_labels is about a guide, and none leads these images")
    return asked


def each_generator(generator, usual, candidate):
    """The generator of a candidate. Raises UserError where it has more steps than training."""
    from utils.evaluation.sampler_comparison import with_sampling

    try:
        return with_sampling(generator, candidate.sampling(usual))
    except ValueError as error:
        raise opt.UserError(str(error)) from None


def ask(args, folder, checkpoint):
    """What each candidate is asked for: the classes in REAL's proportions."""
    from utils.evaluation.from_weights import labels_like
    from utils.evaluation.same_seeds import Questions

    labels, remark = labels_like(folder, checkpoint.class_names, args.num_images)
    if remark:
        opt.say(f"warning: {remark}")
    return Questions(args.num_images, args.seed, labels, args.batch_size, args.num_shown)


def report(args, results: list, best, folder: Path) -> None:
    """The table on the terminal and in a file, and the picture."""
    import torch

    from utils.evaluation.report import write_json
    from utils.evaluation.sampler_comparison import table_lines
    from utils.pictures import image_grid, save_image

    lines = table_lines(results, best)
    for line in lines:
        opt.say(line)
    table, picture = folder / "samplers.md", folder / "samplers.png"
    table.write_text("\n".join(lines) + "\n", encoding="utf-8")
    # The KID first: a long name is cut at its end
    names = [f"{1000 * each.kid:.0f}: {each.candidate}" for each in results]
    grid = image_grid(torch.cat([each.answer.shown for each in results]), args.num_shown, names)
    save_image(grid, picture)
    opt.say(f"the same seeds by each of them, with their KID x 1000, in {picture}")
    if args.json is not None:
        write_json({"results": [facts(each) for each in results], "best": facts(best)}, args.json)
        opt.say(f"all figures in {args.json}")


def facts(result) -> dict:
    """A result as plain values."""
    candidate = result.candidate
    return {
        "sampler": candidate.sampler,
        "timestep_spacing": candidate.spacing,
        "sample_steps": candidate.steps,
        **asdict(candidate.guidance),
        "calls": result.calls,
        "seconds": result.answer.seconds,
        "kid": result.kid,
        "kid_se": result.answer.kid_se,
        "rms_from_exact": result.from_exact,
    }


if __name__ == "__main__":
    opt.run_script(main)
