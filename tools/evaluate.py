#!/usr/bin/env python3
"""Compare images with real ones: distances of distributions, pairs, copies of training pictures.

    python tools/evaluate.py REAL GENERATED                                      # two folders
    python tools/evaluate.py REAL --weight_path results/df/ema_last.pt --num_images 2000
    python tools/evaluate.py REAL GENERATED --paired --features none             # PSNR and SSIM by file name
    python tools/evaluate.py REAL GENERATED --copies TRAIN                       # copies of training pictures
    python tools/evaluate.py --run results/df                                    # the run's own verdict

The figures of distributions need `pip install -r requirements-metrics.txt`; pairs and copies do not.
docs/evaluating.md says what each figure means.
"""

import sys
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils import options as opt
from utils.options import Option, shared

LARGEST_INPUT = 1024  # pixels
LARGE_INPUT = 299  # pixels a side; of larger ones fewer go through a feature network together

USUAL_BATCH = 64  # images per network call

# fmt: off
OPTIONS: opt.Table = {
    "what": [
        Option("real",              None,                 opt.path,      "folder of real images", may_lack=True),
        Option("generated",         None,                 opt.path,      "folder of images that are compared with them", may_lack=True),
        Option("--paired",          False,                opt.switch,    "PSNR and SSIM of the images with the same name in both folders"),
        Option("--copies",          None,                 opt.path,      "folder of training images: which of GENERATED are copies of them"),
        Option("--run",             None,                 opt.path,      "a run's folder: its own verdict"),
    ],
    "figures": [
        Option("--features",        "efficientnet_lite0", opt.text,      "network to compare by: efficientnet_lite0, inception (FID), timm:NAME; or none"),
        Option("--feature_weights", None,                 opt.path,      "file with the weights of inception or timm:NAME; not set: the user's cache"),
        Option("--feature_size",    None,                 opt.Number(int, 32, LARGEST_INPUT), "side of that network's input; not set: 112, for timm:NAME its own"),
        Option("--num_compared",    None,                 opt.natural,   "images of each folder; 0: all; not set: as many as leave REAL a second half"),
        shared("--image_size", None, "fit both folders to that size as training does; not set: as they are"),
    ],
    "images of a network": [
        shared("--weight_path", None, "make GENERATED with this checkpoint"),
        shared("--num_images", 1000),
        shared("--seed", 0),
        shared("--sample", None),
        shared("--sample_steps", None),
        shared("--timestep_spacing", None),
        shared("--eta", 0.0),
        shared("--clip_sample", True),
        shared("--cfg_scale", None),
        shared("--cfg_interval", None),
        shared("--guide_path", None),
        shared("--guide_scale", None),
        shared("--guide_labels", None),
        shared("--use_ema", True),
    ],
    "output": [
        Option("--evaluate_name",   "evaluation",         opt.file_name, "the picture goes to <result_path>/<evaluate_name>"),
        shared("--result_path", "results"),
        Option("--json",            None,                 opt.path,      "also write all figures to this file"),
    ],
    "machine": [
        shared("--batch_size", None, f"images per network call; not set: {USUAL_BATCH}, or as many as fit into memory"),
        shared("--amp --fp16", False, "mixed precision for --weight_path; features are always fp32"),
        shared("--use_gpu", 0),
    ],
}
# fmt: on

OF_FEATURES = [row for row in OPTIONS["figures"] if row.name not in ("features", "image_size")]
OF_A_NETWORK = [
    *OPTIONS["images of a network"],
    *(row for row in OPTIONS["machine"] if row.name == "amp"),
]
NUMBER_COMPARED = {"num_images": "; --num_compared says how many images of each folder count"}
NO_HINTS: Mapping[str, str] = {}


def build_parser() -> opt.Parser:
    return opt.make_parser(__doc__, OPTIONS)


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    check_combination(args)
    if args.run is not None:
        verdict_of_run(args)
    else:
        evaluate(args)


def check_combination(args) -> None:
    """Raise UserError for options that contradict each other."""
    folders = (args.real, args.generated, args.weight_path, args.copies)
    if args.run is not None:
        if any(folder is not None for folder in folders) or args.paired:
            raise opt.UserError("--run judges a run alone: leave the folders and other tests out")
        of_a_machine = [row for row in OPTIONS["machine"] if row.name != "use_gpu"]
        idle = [*OPTIONS["figures"], *OPTIONS["images of a network"], *of_a_machine]
        refuse(args, idle, "does nothing with --run")
        return
    if args.real is None:
        raise opt.UserError("name two folders, REAL and GENERATED, or a run with --run")
    if args.generated is None and args.weight_path is None:
        raise opt.UserError(
            f"only REAL {args.real} is given: name the folder GENERATED too, or a checkpoint with "
            f"--weight_path"
        )
    if args.features == "none" and not args.paired and args.copies is None:
        raise opt.UserError(
            "--features none leaves nothing to compare: add --paired or --copies TRAIN"
        )
    if args.generated is not None and args.weight_path is not None:
        raise opt.UserError(
            f"GENERATED {args.generated} and --weight_path both say which images to compare: leave "
            f"one of them out"
        )
    if args.paired and args.weight_path is not None:
        raise opt.UserError(
            "--paired compares images of one name: it needs two folders, not --weight_path"
        )
    if args.weight_path is None:
        refuse(args, OF_A_NETWORK, "does nothing without --weight_path", NUMBER_COMPARED)
    if args.features == "none":
        refuse(args, OF_FEATURES, "does nothing with --features none")


def refuse(args, options: list[Option], why: str, hints: Mapping[str, str] = NO_HINTS) -> None:
    """Raise UserError where one of these options was given."""
    for name in opt.changed_options(args, options):
        raise opt.UserError(f"--{name} {why}{hints.get(name, '')}")


def evaluate(args) -> None:
    """Two folders: every part that is asked for, the report, the picture."""
    from utils.devices import choose_device
    from utils.evaluation.distribution import check_numbers
    from utils.evaluation.extract import Reader
    from utils.evaluation.features import check_features
    from utils.evaluation.image_folder import open_folder
    from utils.evaluation.paired import compare_pairs
    from utils.evaluation.report import Report, check_can_write, write_json
    from utils.ranks import Ranks
    from utils.runs.folder import results_folder

    # What is wrong is said before any long work, a missing package after what cannot be done at all
    checkpoint = None if args.weight_path is None else read_weights(args.weight_path)
    check_features(args.features, args.feature_weights, args.feature_size)
    if args.json is not None:
        check_can_write(args.json)
    device = choose_device(args.use_gpu, Ranks())
    real = open_folder(args.real, "REAL")
    train = open_folder(args.copies, "TRAIN") if args.copies is not None else None
    warnings = Warnings()
    network = choose_network(args, device, warnings)
    reader = Reader(args.image_size)

    # The images
    maker = None
    if checkpoint is not None:
        maker = prepare_maker(args, checkpoint, device, real, network, warnings)
        reader = maker.reader
    else:
        generated = open_folder(args.generated, "GENERATED")
        if network is not None and args.num_compared:
            check_numbers(len(real), len(generated), args.num_compared)
    with results_folder(args.result_path, args.evaluate_name) as folder:
        if maker is not None:
            maker.write(folder / "images")
            generated = open_folder(folder / "images", "GENERATED")
        for each in (real, generated):
            warnings.add(*each.remarks, *each.account.lines(each.role))

        # The figures
        report = Report(real, generated, reader, warnings=warnings.lines)
        if args.paired:
            report.paired = compare_pairs(real, generated, reader)
            warnings.add(*report.paired.remarks)
        if train is not None:
            report.copies = copies_of(args, network, train, generated, reader, warnings)
        if network is not None:
            report.features = compare_features(args, real, generated, network, reader, warnings)

        # What people and programs read
        for line in report.lines():
            opt.say(line)
        file = folder / "evaluation.png"
        write_picture(report, file)
        opt.say(f"\nreal beside generated, worst and best matches in {file}")
        if report.copies is not None:
            write_copies(report.copies, folder)
    if args.json is not None:
        write_json(report.to_dict(), args.json)
        opt.say(f"all figures in {args.json}")


class Warnings:
    """What is said while the work goes on, and kept for the JSON file."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, *lines: str) -> None:
        for line in lines:
            if line:
                opt.say(f"warning: {line}")
                self.lines.append(line)


def feature_batch(args, network) -> int:
    """How many images the feature network sees together: fewer where it sees large ones."""
    height, width = (1, 1) if network is None else network.input_size
    fitting = USUAL_BATCH * LARGE_INPUT**2 // (height * width)
    return args.batch_size or max(1, min(USUAL_BATCH, fitting))


def choose_network(args, device, warnings: Warnings):
    """The feature network; None with --features none, or where its package is missing and pairs or
    copies are asked for, which need none: then a warning says so.
    """
    from utils.evaluation.features import NO_FEATURES, MissingPackage, build_features

    if args.features == NO_FEATURES:
        return None
    try:
        return build_features(args.features, args.feature_weights, args.feature_size, device)
    except MissingPackage as error:
        if not args.paired and args.copies is None:
            raise
        warnings.add(str(error))
        return None


def compare_features(args, real, generated, network, reader, warnings: Warnings):
    """The distributions of features. None where too few images are left and pairs or copies are
    asked for too: then a warning says so.
    """
    from utils.evaluation import distribution, remarks
    from utils.evaluation.extract import feature_set
    from utils.evaluation.feature_cache import FeatureCache
    from utils.evaluation.report import FeatureReport

    cache = FeatureCache()
    batch_size = feature_batch(args, network)
    try:
        plan = distribution.plan_comparison(real, generated, args.num_compared)
        real_set = feature_set(real, plan.real, network, reader, batch_size, cache)
        generated_set = feature_set(generated, plan.generated, network, reader, batch_size)
        warnings.add(
            cache.remark,
            *remarks.remarks_on_images(real, generated, real_set, generated_set, reader),
        )
        chosen = distribution.choose_rows(real_set, generated_set, plan, network.device)
    except distribution.TooFewImages as error:
        if not args.paired and args.copies is None:
            raise
        warnings.add(str(error))
        return None
    classes, remark = distribution.common_classes(real, generated)
    fd_needs = distribution.FD_FACTOR * network.dimension
    found = distribution.compare(chosen, classes, fd_needs)
    numbers = remarks.remarks_on_numbers(real, generated, plan, found, network)
    warnings.add(remark, *numbers)
    return FeatureReport(network, chosen, found)


def copies_of(args, network, train, generated, reader, warnings: Warnings):
    """Which of GENERATED are copies of training images."""
    from utils.evaluation.copy_folders import copies_of_folder

    batch_size = feature_batch(args, network)
    report, remarks = copies_of_folder(train, generated, reader.image_size, network, batch_size)
    warnings.add(*remarks)
    return report


def write_copies(report, folder: Path) -> None:
    """The closest pairs as a picture, and the nearest training image of each image as a table."""
    from utils.evaluation.copy_report import write_table
    from utils.pictures import save_image

    picture, table = folder / "copies.png", folder / "copies.csv"
    save_image(report.panel(), picture)
    write_table(report.rows(), table)
    opt.say(f"generated beside nearest training images in {picture}, all of them in {table}")


def verdict_of_run(args) -> None:
    """What the run's own evaluations say of it, and their curves as a picture."""
    from utils.evaluation.report import check_can_write, write_json
    from utils.evaluation.run_report import read_run

    if args.json is not None:
        check_can_write(args.json)
    report = read_run(args.run)
    for line in report.lines():
        opt.say(line)
    if report.evaluations:
        from utils.evaluation.curves import draw_curves
        from utils.pictures import save_image
        from utils.runs.folder import new_folder

        file = new_folder(args.result_path, args.evaluate_name) / "curves.png"
        save_image(draw_curves(report.evaluations, report.verdict), file)
        opt.say(f"the curves are in {file}")
    if args.json is not None:
        write_json(report.to_dict(), args.json)
        opt.say(f"all figures in {args.json}")


def read_weights(path):
    """The checkpoint whose images are evaluated. Raises UserError where it needs what nobody gives."""
    from utils.runs.checkpoint import Checkpoint

    checkpoint = Checkpoint.read(path)
    checkpoint.check_kind("diffusion")
    checkpoint.check_unsteered()
    return checkpoint


def prepare_maker(args, checkpoint, device, real, network, warnings: Warnings):
    """What makes the images of --weight_path, after all checks. Raises UserError before any work."""
    from utils.devices import choose_precision
    from utils.evaluation.distribution import TooFewImages, check_numbers
    from utils.evaluation.from_weights import ImageMaker, labels_like
    from utils.generation import (
        ImageGenerator,
        Sampling,
        choose_batch,
        empty_interval,
        idle_guidance,
        idle_guide,
        sampling_remarks,
    )
    from utils.runs.checkpoint import Checkpoint

    opt.check_seeds(args.seed, args.num_images)
    if network is not None:
        try:
            check_numbers(len(real), args.num_images, args.num_compared)
        except TooFewImages:
            if args.copies is None:  # else a warning says so later
                raise
    guide = None if args.guide_path is None else Checkpoint.read(args.guide_path)
    if guide is not None:
        guide.check_kind("diffusion")
    sampling = Sampling.of_checkpoint(
        checkpoint,
        sampler=args.sample,
        sample_steps=args.sample_steps,
        timestep_spacing=args.timestep_spacing,
        eta=args.eta,
        clip_sample=args.clip_sample,
        cfg_scale=args.cfg_scale,
        cfg_interval=args.cfg_interval,
        guide_scale=args.guide_scale,
        guide=guide,
        guide_labels=args.guide_labels,
    )
    precision, remark = choose_precision(args.amp, device)
    generator = ImageGenerator.from_checkpoint(
        checkpoint, sampling, precision, args.image_size, args.use_ema, guide
    )
    most = min(USUAL_BATCH, args.num_images)
    batch_size, batch_remark = choose_batch([generator], args.batch_size, most)
    if batch_remark:
        opt.say(batch_remark)
    labels, label_remark = labels_like(real, checkpoint.class_names, args.num_images)
    remarks = idle_guidance(checkpoint, args.cfg_scale, args.guide_labels)
    remarks += idle_guide(args.guide_path, sampling)
    remarks += [*sampling.remarks(), *sampling_remarks(generator.sampler)]
    remarks += empty_interval(sampling, generator.sampler)
    warnings.add(remark, label_remark, *remarks)
    return ImageMaker(
        checkpoint,
        generator,
        sampling,
        use_ema=args.use_ema,
        count=args.num_images,
        first_seed=args.seed,
        batch_size=batch_size,
        labels=labels,
    )


def write_picture(report, file: Path) -> None:
    """Samples of both folders, and the worst and best matches."""
    from utils.evaluation import picture
    from utils.pictures import save_image

    real, generated = report.real, report.generated
    rows = picture.sample_rows(real, generated)
    if report.features is not None:
        matches = picture.find_matches(report.features.chosen)
        rows += picture.match_rows(real, generated, matches)
    if report.paired is not None:
        rows += picture.pair_rows(real, generated, report.paired)
    save_image(picture.draw(rows, report.reader), file)


if __name__ == "__main__":
    opt.run_script(main)
