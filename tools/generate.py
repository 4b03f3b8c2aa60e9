#!/usr/bin/env python3
"""Generate images from a trained network. The checkpoint holds the network, schedule, size and classes.

    python tools/generate.py                                                       # the weights shipped here
    python tools/generate.py --weight_path results/mine/ckpt_last.pt --num_images 64 --sample ddim --sample_steps 50
    python tools/generate.py --weight_path results/cifar/ema_last.pt --class_name ship --cfg_scale 3 --num_images 8
    python tools/generate.py --weight_path results/cifar/ema_last.pt --class_name -1 --animate webp
    python tools/generate.py --weight_path results/cifar/ema_last.pt --num_images 64 --nearest datasets/cifar10
    python tools/generate.py --weight_path results/cifar/ema_last.pt --num_images 64 --upscale weight/upscaler_x2.pt
    python tools/generate.py --weight_path results/cells/ema_last.pt --condition my_masks   # a network that masks steer

Image i has the random seed --seed + i, and comes out the same in any batch.
"""

from __future__ import annotations

import math
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils import options as opt
from utils.class_names import ONE_OF_EACH, asks_for_each, labels_in_turn, name_of, remark_on_class
from utils.options import Option, shared
from utils.text import composed

if TYPE_CHECKING:  # what runs imports it where it needs it, so that --help answers at once
    from torch import Tensor

    from utils.overview_pictures import Overviews
    from utils.steering import Steering

USUAL_BATCH = 32  # images per network call

# fmt: off
OPTIONS: opt.Table = {
    "what": [
        shared("--weight_path", "weight/demo.pt"),
        shared("--num_images", None, "number of images; not set: 8, with --invert 1, or one for each image in --condition; not used with --class_name -1"),
        shared("--class_name", None),
        Option("--numbers",        None,        opt.named_numbers,   "of a network that learned numbers from labels.csv: such as age=3.5,size=2"),
        Option("--condition",      None,        opt.path,            "image that steers, or folder of such: image i has condition i, and after the last one the first again"),
        shared("--image_size", None),
        shared("--seed", 0),
    ],
    "sampling": [
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
    "editing": [
        Option("--init_image",     None,        opt.path,            "begin with this image instead of noise"),
        Option("--strength",       None,        opt.strength,        "with --init_image: the share of the network calls that are made; little keeps much of the image; not set: 0.6, with --mask or --outpaint 1"),
        Option("--mask",           None,        opt.path,            "with --init_image: paint only where this image is white; the rest stays to the bit"),
        Option("--repeats",        1,           opt.positive,        "with --mask or --outpaint: make each step so many times, so that both parts agree better"),
        Option("--outpaint",       None,        opt.borders,         "with --init_image: paint borders around it, so many pixels at the top,right,bottom,left"),
        Option("--interpolate",    None,        opt.two_seeds,       "from the noise of one seed to that of another, such as 3,8, in --num_images images of one class and a film; not with ddpm"),
        Option("--invert",         None,        opt.path,            "find the noise that becomes this image of --class_name, with ddim, and draw it from that again"),
    ],
    "output": [
        Option("--generate_name",  "generated", opt.file_name,       "images go to <result_path>/<generate_name>"),
        shared("--result_path", "results"),
        shared("--image_format", "png"),
        Option("--upscale",        None,        opt.path,            "checkpoint of an upscaler: enlarge each image with it before it is written"),
        Option("--animate",        None,        opt.ANIMATIONS,      "also write the denoising as an animation, which --upscale does not enlarge"),
        Option("--nearest",        None,        opt.path,            "folder of training images: name the nearest one of each image, in nearest.csv"),
    ],
    "machine": [
        shared("--batch_size", None, f"images per network call; not set: {USUAL_BATCH}, or as many as fit into memory"),
        shared("--amp --fp16", False),
        shared("--distributed", False, "divide the images among several processes"),
        shared("--world_size", 2),
        shared("--use_gpu", 0),
    ],
    "weights without metadata": [
        Option("--conditional",    None,        opt.switch,          "whether the network was trained with classes"),
        Option("--num_classes",    None,        opt.positive,        "number of classes"),
        Option("--network",        None,        opt.NETWORKS,        "network architecture; not set: unet"),
        Option("--act",            None,        opt.ACTIVATIONS,     "activation function; not set: silu"),
        Option("--head_channels",  None,        opt.positive,        "channels per attention head; not set: 32"),
        Option("--norm_groups",    None,        opt.positive,        "groups of each normalisation; not set: 32"),
        Option("--noise_schedule", None,        opt.NOISE_SCHEDULES, "noise schedule of training; not set: linear"),
        Option("--prediction",     None,        opt.PREDICTIONS,     "what the network predicts; not set: eps"),
    ],
}
# fmt: on

TIMEOUT = 3600.0  # seconds that a process waits for the others' images
MOST_FRAMES = 60  # of an animation
FILMED = 16  # images in an animation
USUAL_COUNT = 8  # images


def build_parser() -> opt.Parser:
    return opt.make_parser(__doc__, OPTIONS)


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    if args.num_images is None:
        args.num_images = usual_count(args)
    if args.class_name != ONE_OF_EACH:
        opt.check_seeds(args.seed, args.num_images)
    if args.distributed and args.invert is not None:
        raise opt.UserError("--invert works on one image: leave --distributed out")
    wishes_of(args).check(has_condition=args.condition is not None)
    if args.nearest is not None and not args.nearest.is_dir():
        found = "is a file" if args.nearest.exists() else "does not exist"
        raise opt.UserError(f"--nearest {args.nearest} {found}; name the folder of training images")
    from utils.launch import Processes, launch

    processes = Processes(
        distributed=args.distributed,
        world_size=args.world_size,
        main_rank=0,
        timeout=TIMEOUT,
        first_gpu=args.use_gpu,
    )
    launch(partial(generate, args), processes)


def usual_count(args) -> int:
    """How many images are made where nobody says how many."""
    usual = 1 if args.invert is not None else USUAL_COUNT  # those of one noise are all the same
    if args.condition is None:
        return usual
    from utils.data.conditions import condition_files

    files = condition_files(args.condition)
    return len(files) if args.condition.is_dir() else usual


def wishes_of(args):
    """What the images are to begin with."""
    from utils.editing import Wishes

    return Wishes(
        init_image=args.init_image,
        strength=args.strength,
        mask=args.mask,
        repeats=args.repeats,
        outpaint=args.outpaint,
        interpolate=args.interpolate,
        invert=args.invert,
        prefix="--",
    )


def remarks_on(args, checkpoint, labels, sampling, generator) -> list[str]:
    """On options that do nothing here, or cannot give good images."""
    from utils.generation import empty_interval, idle_guidance, idle_guide, sampling_remarks
    from utils.processes_of_others import is_one_of_several

    remarks = []
    is_alone = not (args.distributed or is_one_of_several())
    if is_alone and "world_size" in opt.changed_options(args, OPTIONS["machine"]):
        remarks.append(f"--world_size {args.world_size} has no effect without --distributed")
    if not checkpoint.knows_several_labels and not are_plain(labels):
        remarks.append(
            "the network has seen images of one class each: what it makes of several is a guess"
        )
    return [
        *remarks,
        *idle_guidance(checkpoint, args.cfg_scale, args.guide_labels),
        *idle_guide(args.guide_path, sampling),
        *sampling.remarks(),
        *sampling_remarks(generator.sampler),
        *empty_interval(sampling, generator.sampler),
    ]


def generate(args, ranks) -> None:
    """One process: its share of the images, written as they are done."""
    from utils.devices import choose_device, choose_precision
    from utils.generation import ImageGenerator
    from utils.overview_pictures import Overviews
    from utils.runs.folder import shared_results_folder

    # Weights and their metadata
    device = choose_device(args.use_gpu, ranks)
    precision, remark = choose_precision(args.amp, device)
    checkpoint = open_checkpoint(args)
    guide = open_guide(args)
    sampling = choose_sampling(args, checkpoint, guide)
    labels, label_remark = choose_labels(args, checkpoint.class_names)
    labels = with_numbers(args, checkpoint.numbers, labels)
    generator = ImageGenerator.from_checkpoint(
        checkpoint, sampling, precision, args.image_size, args.use_ema, guide
    )
    upscaler = choose_upscaler(args, precision, generator)
    remarks = remarks_on(args, checkpoint, labels, sampling, generator)
    for text in (remark, label_remark, *remarks):
        if text and ranks.is_main:
            opt.say(f"warning: {text}")

    # Images: this process takes every world_size-th
    count = args.num_images if labels is None else len(labels)
    opt.check_seeds(args.seed, count)
    edit = choose_edit(args, generator, sampling, labels, count)
    steering = choose_conditions(args, generator, count, ranks)
    copies = choose_copies(args, generator, ranks)
    names = names_of(labels, checkpoint)
    settings = settings_of(args, sampling, generator, checkpoint, upscaler)
    files = file_names(args, count, steering)
    settle_batch(args, generator, count, ranks)
    overviews = Overviews(count, steering, is_film=args.interpolate is not None)
    with shared_results_folder(args.result_path, args.generate_name, ranks) as folder:
        made = images_of(args, ranks, generator, labels, count, overviews.frames, edit, steering)
        for place, pixels, mask in made:
            about = about_image(args, place, names, steering, edit, pixels)
            file = folder / files[place]
            if copies is not None:
                about |= copies.look_at(place, files[place], pixels)
            if upscaler is not None:
                pixels = upscaler.pixels(pixels[None])[0]
            write_image(pixels, file, {**about, **settings})
            height, width = pixels.shape[-2:]
            if mask is not None:
                pixels = write_mask(generator, mask, pixels, folder, place, about)
            overviews.add(place, pixels)

        # What shows them together
        overviews.gather(ranks)
        nearest = [] if copies is None else copies.everyones()
        if not ranks.is_main:
            return
        opt.say(f"{images_in_words(count)} of {height}x{width} in {folder}")
        verdict = "" if copies is None else copies.write(nearest, folder)
        numbers = len(checkpoint.numbers)
        write_overviews(args, overviews, names, labels, numbers, folder, settings)
        if verdict:
            opt.say(verdict)


def images_in_words(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"


def settle_batch(args, generator, count: int, ranks) -> None:
    """How many of the images go through the network together, where nobody says it."""
    from utils.generation import choose_batch

    most = min(USUAL_BATCH, math.ceil(count / ranks.world_size))
    asked = args.batch_size
    args.batch_size, remark = choose_batch([generator], asked, most, ranks.local_world_size)
    if remark and ranks.is_main:
        opt.say(remark)


def settings_of(args, sampling, generator, checkpoint, upscaler) -> dict:
    """What the text of all images has in common."""
    from utils.generation import image_settings

    settings = image_settings(
        sampling, generator.sampler, generator.network, checkpoint.source, args.use_ema
    )
    if args.guide_path is not None and sampling.guide_scale != 1:
        settings["guide"] = args.guide_path.name
    if args.numbers is not None:
        settings["numbers"] = ",".join(f"{name}={value}" for name, value in args.numbers.items())
    settings |= wishes_of(args).settings()
    if upscaler is not None:
        settings["upscaler"] = f"{args.upscale.name}, {upscaler.scale} times as large"
    return settings


def about_image(
    args, place: int, names: list[str], steering: Steering | None, edit, pixels: Tensor
) -> dict:
    """What the text of a PNG says of its image, beside how it was made."""
    about: dict = {"seed": args.seed + place}
    if edit is not None:
        about |= edit.about(pixels, args.seed + place)
    if names:
        about["class"] = names[place]
    if steering is not None:
        about["condition"] = steering.name(place)
    return about


def write_overviews(
    args,
    overviews: Overviews,
    names: list[str],
    labels: list | None,
    numbers: int,
    folder: Path,
    settings: dict,
) -> None:
    """What shows the images together, as far as it was asked for, and a line on each."""
    grid = folder / f"grid.{args.image_format}"
    overviews.write_grid(grid, names, labels, numbers, args.seed, settings)
    overviews.write_film(folder / "interpolation.webp")
    overviews.write_animation(folder / f"denoising.{args.animate}")


# --- What the checkpoint and the options say ---


def open_checkpoint(args):
    """The checkpoint. Raises UserError if the options contradict it."""
    from utils.runs.bare_weights import Told, describe_bare_weights
    from utils.runs.checkpoint import Checkpoint
    from utils.runs.files import read_checkpoint

    contents = read_checkpoint(args.weight_path)
    if "config" not in contents:
        told = Told(
            conditional=args.conditional,
            num_classes=args.num_classes,
            network=args.network,
            act=args.act,
            head_channels=args.head_channels,
            norm_groups=args.norm_groups,
            noise_schedule=args.noise_schedule,
            prediction=args.prediction,
        )
        return describe_bare_weights(contents, told, args.weight_path)
    checkpoint = Checkpoint.parse(contents, args.weight_path)
    checkpoint.check_kind("diffusion")
    network = checkpoint.config["network"]
    diffusion = checkpoint.config["diffusion"]
    found = {
        "conditional": network.get("num_classes") is not None,
        "num_classes": network.get("num_classes"),
        "network": network.get("name"),
        "act": network.get("act"),
        "head_channels": network.get("head_channels"),
        "norm_groups": network.get("norm_groups"),
        "noise_schedule": diffusion["noise_schedule"],
        "prediction": diffusion["prediction"],
    }
    for name, value in found.items():
        asked = getattr(args, name)
        if asked not in (None, value):
            raise opt.UserError(
                f"--{name} {asked}, but {args.weight_path} was trained with {value}"
            )
    return checkpoint


def open_guide(args):
    """The worse checkpoint of --guide_path, or None."""
    from utils.runs.checkpoint import Checkpoint

    if args.guide_path is None:
        return None
    guide = Checkpoint.read(args.guide_path)
    guide.check_kind("diffusion")
    return guide


def choose_sampling(args, checkpoint, guide):
    """How the images are made. Raises UserError for guidance that was not trained."""
    from utils.generation import Sampling

    return Sampling.of_checkpoint(
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


def choose_upscaler(args, precision, generator):
    """The upscaler of --upscale, or None. Raises UserError for a checkpoint of another kind, and for
    images that no upscaler takes.
    """
    if args.upscale is None:
        return None
    from utils.image_facts import USUAL_MODES, mode_of
    from utils.runs.checkpoint import Checkpoint
    from utils.upscaling import Upscaler

    mode = mode_of(generator.channels)
    if mode not in USUAL_MODES:
        raise opt.UserError(f"--upscale enlarges grey and RGB images, and these are {mode}")
    if generator.makes_masks:
        raise opt.UserError("--upscale enlarges no masks, which these weights make with images")
    return Upscaler.from_checkpoint(Checkpoint.read(args.upscale), precision)


def choose_edit(args, generator, sampling, labels, count: int):
    """What the images begin with, where it is not the noise of their seeds; else None. With borders
    to be painted, the generator makes images of the larger size from now on.
    """
    wishes = wishes_of(args)
    wishes.check_weights(generator.makes_masks)
    wishes.check_sampling(sampling)
    generator.image_size = wishes.size(generator.image_size, generator.downsample_factor)
    edit = wishes.edit(generator.image_size, generator.channels, args.seed, count)
    return edit if args.invert is None else noise_of(args, generator, edit, labels)


def choose_conditions(args, generator, count: int, ranks) -> Steering | None:
    """What steers the images, or None. Raises UserError where the network takes none, or needs some."""
    if args.condition is None:
        generator.check_conditions(None)
        return None
    if generator.condition is None:
        raise opt.UserError(f"{args.weight_path} was trained without conditions: no --condition")
    from utils.steering import Steering

    size, quiet = generator.image_size, not ranks.is_main
    return Steering(args.condition, generator.condition, size, count, quiet)


def file_names(args, count: int, steering: Steering | None) -> list[str]:
    """Of each image: its number, or the name of its condition where each has one of its own."""
    stems = [f"{place:05d}" for place in range(count)]
    if steering is not None and steering.gives_names(args.image_format):
        stems = steering.stems
    return [f"{stem}.{args.image_format}" for stem in stems]


def noise_of(args, generator, edit, labels):
    """The noise of the image of --invert; says how well the image comes out of it again."""
    from utils.editing import recover

    label = None if labels is None else labels[0]
    total = edit.calls(edit.sampler_of(generator.sampler))
    with opt.Progress(total, title="inverting", unit="call", leave=False) as progress:
        from_noise, error = recover(generator, edit, label, progress.update)
    opt.say(f"drawn again, {args.invert} differs by {error:.4f} of the range (RMS)")
    return from_noise


def choose_copies(args, generator, ranks):
    """What compares the images with those of --nearest, or None."""
    if args.nearest is None:
        return None
    from utils.evaluation.copy_check import CopyCheck

    return CopyCheck(args.nearest, generator.image_size, generator.channels, ranks)


def choose_labels(args, class_names: list[str]) -> tuple[list | None, str]:
    """The class, or the classes, of each image, None for a network without; and a remark, or "".

    Raises UserError for a class that the network does not know, and for several where the images
    belong together.
    """
    labels, remark = labels_asked_for(args, class_names)
    has_choice = len(class_names) > 1
    is_asked_for = not has_choice or args.class_name is not None or args.condition is not None
    wishes_of(args).check_labels(labels, is_asked_for)
    return labels, remark


def labels_asked_for(args, class_names: list[str]) -> tuple[list | None, str]:
    """The same, before it is checked."""
    asked = args.class_name
    if not class_names:
        if asked is not None:
            raise opt.UserError(
                f"--class_name {asked}, but {args.weight_path} was trained without classes"
            )
        return None, ""
    if asked is None:
        labels = labels_of_conditions(args, class_names)
        return labels or [i % len(class_names) for i in range(args.num_images)], ""
    found = labels_in_turn(asked, class_names)
    if found is not None:
        times = 1 if asks_for_each(asked, class_names) else args.num_images
        return found * times, remark_on_class(asked, class_names)
    choices = opt.name_list(f"{i} {name}" for i, name in enumerate(class_names))
    raise opt.UserError(
        f"--class_name {asked!r} is unknown; known are {choices}, or -1 for one of each"
    )


def labels_of_conditions(args, class_names: list[str]) -> list | None:
    """The class of each image's condition, where all conditions lie in folders of classes."""
    if args.condition is None or not args.condition.is_dir():
        return None
    from utils.data.conditions import condition_files

    known = [composed(name) for name in class_names]
    files = condition_files(args.condition)
    folders = [composed(file.relative_to(args.condition).parts[0]) for file in files]
    if any(folder not in known for folder in folders):
        return None
    return [known.index(folders[i % len(folders)]) for i in range(args.num_images)]


def are_plain(labels: list | None) -> bool:
    """Whether no image has more than one label."""
    return labels is None or all(isinstance(label, int) for label in labels)


def with_numbers(args, columns: list[dict], labels: list | None) -> list | None:
    """The labels of each image as rows that begin with the numbers, where there is need for it.

    Raises UserError for a number that the network did not learn.
    """
    asked = {composed(name): value for name, value in (args.numbers or {}).items()}
    known = [column["name"] for column in columns]
    unknown = [name for name in asked if name not in known]
    if unknown:
        learned = opt.name_list(known) if known else "none"
        raise opt.UserError(f"--numbers {unknown[0]} is unknown; the network learned {learned}")
    if are_plain(labels) and not asked:
        return labels
    numbers = []
    for column in columns:
        value = asked.get(column["name"], math.nan)
        numbers.append((value - column["mean"]) / column["std"])
    if labels is None:
        return [tuple(numbers)] * args.num_images
    return [(*numbers, *(label if isinstance(label, tuple) else (label,))) for label in labels]


def names_of(labels: list | None, checkpoint) -> list[str]:
    """What the classes of each image are called; nothing for a network without."""
    if labels is None or not checkpoint.class_names:
        return []
    learned = len(checkpoint.numbers)
    return [name_of(label, checkpoint.class_names, learned) for label in labels]


# --- Making and writing ---


def images_of(args, ranks, generator, labels, count: int, frames: list, edit, steering):
    """Yields (place, pixels (C,H,W) uint8, mask (1,H,W) uint8 or None) of this process's share,
    batch by batch. Raises UserError at the end where some images have numbers that are not finite;
    these are left out.

    If an animation is requested, fills `frames` with (x_t, estimate of x0) of the first images.
    """
    from utils.generation import batch_advice, not_finite, not_finite_in_words

    left_out = []  # seeds
    mine = range(count)[ranks.rank :: ranks.world_size]
    starts = range(0, len(mine), args.batch_size)
    calls = generator.calls if edit is None else edit.calls(generator.sampler)
    every = math.ceil(calls / MOST_FRAMES)
    filming = args.animate is not None and ranks.is_main
    total = len(starts) * calls
    with opt.Progress(
        total, title="sampling", unit="call", leave=False, shown=ranks.is_main
    ) as progress:
        for start in starts:
            places = mine[start : start + args.batch_size]
            seeds = [args.seed + place for place in places]
            part = None if labels is None else [labels[place] for place in places]
            conditions = None if steering is None else steering.pixels_of(places)
            with batch_advice(args.batch_size):
                for denoised in generator.denoise(seeds, part, edit, conditions):
                    progress.update(images=f"{start} of {len(mine)}")
                    is_due = denoised.calls_done % every == 0 or denoised.is_last
                    if filming and start == 0 and is_due:
                        pair = (denoised.trajectory.x[:FILMED], denoised.x0[:FILMED])
                        frames.append(tuple(frame_of(generator.pixels(x)) for x in pair))
                bad = not_finite(denoised, seeds)
                masks = generator.masks(denoised)
                pixels = generator.finished(denoised, edit)
            left_out += bad
            for place, seed, image, mask in zip(
                places,
                seeds,
                pixels,
                [None] * len(places) if masks is None else masks,
                strict=True,
            ):
                if seed not in bad:
                    yield place, image, mask
    if left_out:
        raise opt.UserError(not_finite_in_words(left_out))


def frame_of(pixels):
    """(N,C,H,W) uint8 of an animation, smaller by a whole factor where it would be larger than
    films and memory like.
    """
    import torch

    from utils.pictures import frame_factor, reduced

    factor = frame_factor(len(pixels), pixels.shape[-2:])
    return torch.stack([reduced(image, factor) for image in pixels])


def write_image(pixels, file: Path, settings: dict) -> None:
    """(C,H,W) uint8 -> an image file, which holds the settings as its text."""
    from utils.pictures import save_image, to_picture

    file.parent.mkdir(parents=True, exist_ok=True)  # of a condition in a folder
    save_image(to_picture(pixels), file, settings)


def write_mask(generator, mask, pixels, folder: Path, place: int, about: dict):
    """(1,H,W) uint8 of the image at this place -> a palette file whose numbers are the labels.
    Returns the mask in colours and the image (C,H,W) side by side, (3,H,2W) uint8.
    """
    import torch

    from utils.condition_pictures import behind_conditions, label_map_of, mask_picture
    from utils.data.overviews import MASKS
    from utils.pictures import save_image

    file = folder / MASKS / f"{place:05d}.png"
    file.parent.mkdir(exist_ok=True)
    save_image(mask_picture(generator.codec, mask), file, about)
    pair = behind_conditions(label_map_of(generator.codec), mask[None], pixels[None])
    return torch.cat(list(pair), dim=2)


if __name__ == "__main__":
    opt.run_script(main)
