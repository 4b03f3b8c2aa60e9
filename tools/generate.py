#!/usr/bin/env python3
"""Generate images from a trained network. The checkpoint says which network, schedule, image size
and classes.

    python tools/generate.py                                                       # the weights that ship
    python tools/generate.py --weight_path results/mine/ckpt_last.pt --num_images 64 --sample ddim --sample_steps 50
    python tools/generate.py --weight_path results/cifar/ema_last.pt --class_name ship --cfg_scale 3 --num_images 8
    python tools/generate.py --weight_path results/cifar/ema_last.pt --class_name -1 --animate     # one of each class

Image i has the seed --seed + i, and comes out the same in any batch.
"""

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils import options as opt

# fmt: off
OPTIONS = {
    "what": [
        ("--weight_path",       "weight/demo.pt", opt.path,          "checkpoint: ckpt_*.pt or ema_last.pt of a run"),
        ("--num_images",        8,               opt.positive,        "how many; not used with --class_name -1"),
        ("--class_name",        None,            str,                 "number or name; -1: each once; none: in turn"),
        ("--image_size",        None,            opt.image_size,      "64 or 64,96; not given: the training size"),
        ("--seed",              0,               opt.seed,            "image i has the seed --seed + i"),
    ],
    "sampling": [
        ("--sample",            None,            opt.SAMPLERS,        "sampler; not given: that of the training run"),
        ("--sample_steps",      None,            opt.positive,        "not given: 50; ddpm: all of training"),
        ("--timestep_spacing",  "trailing",      opt.TIMESTEP_SPACINGS, "time steps visited"),
        ("--eta",               0.0,             opt.probability,     "ddim: 0 deterministic, 1 as noisy as ddpm"),
        ("--clip_sample",       True,            opt.switch,          "keep estimates of the image in [-1, 1]"),
        ("--cfg_scale",         1.5,             opt.not_negative,    "guidance; 1: none, more: clearer, less varied"),
        ("--use_ema",           True,            opt.switch,          "the averaged weights, not the last ones"),
    ],
    "output": [
        ("--generate_name",     "generated",     opt.file_name,       "images go to <result_path>/<generate_name>"),
        ("--result_path",       "results",       opt.path,            "folder that holds the results"),
        ("--image_format",      "png",           opt.IMAGE_FORMATS,   "of the images"),
        ("--animate",           None,            ("webp", "gif"),     "also write the denoising as an animation"),
    ],
    "machine": [
        ("--batch_size",        32,              opt.positive,        "images per network call"),
        ("--distributed",       False,           opt.switch,          "share the images out to several processes"),
        ("--world_size",        2,               opt.positive,        "with --distributed: number of processes"),
        ("--use_gpu",           0,               opt.minus_one_up,    "number of the GPU; -1, or none there: the CPU"),
    ],
    "weights without metadata": [
        ("--conditional",       None,            opt.switch,          "whether the network knows classes"),
        ("--num_classes",       None,            opt.positive,        "number of classes"),
        ("--network",           None,            opt.NETWORKS,        "kind of network [unet]"),
        ("--act",               None,            opt.ACTIVATIONS,     "activation [silu]"),
        ("--head_channels",     None,            opt.positive,        "channels per attention head [32]"),
        ("--noise_schedule",    None,            opt.NOISE_SCHEDULES, "noise schedule it was trained with [linear]"),
        ("--prediction",        None,            opt.PREDICTIONS,     "what it predicts [eps]"),
    ],
}
# fmt: on

GRID = 256  # as many images, at most, are shown together


def build_parser() -> opt.Parser:
    return opt.make_parser(__doc__, OPTIONS)


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    from utils.distributed import launch

    launch(generate, args, args.distributed, args.world_size, main_gpu=0, timeout=3600.0)


def generate(args, ranks) -> int:
    """One process: its share of the images, written as they are done. Returns its exit status."""
    from utils.checkpoint import inference_network, read_checkpoint
    from utils.distributed import choose_device, choose_precision

    # Weights, and what they say of themselves
    device = choose_device(args.use_gpu, ranks)
    contents = read_checkpoint(args.weight_path)
    if "config" not in contents:
        contents = describe_bare_weights(args, contents["network"])
    data = check_metadata(args, contents)
    network = inference_network(contents, args.weight_path, args.use_ema)
    network = choose_precision(False, device)[0].place(network)
    labels = choose_labels(args, data["class_names"])
    size, diffusion, settings = choose_sampler(args, contents, network, device)

    # Images: this process takes every world_size-th
    count = args.num_images if labels is None else len(labels)
    names = [data["class_names"][label] for label in labels] if labels else [""] * count
    folder = new_folder(args.result_path, args.generate_name) if ranks.is_main else None
    folder = gather(folder, ranks)[0]
    frames = [] if args.animate and ranks.is_main else None
    mine = range(count)[ranks.rank :: ranks.world_size]
    first = []  # (place, image) of those that go into the grid
    for start in range(0, len(mine), args.batch_size):
        places = mine[start : start + args.batch_size]
        seeds = [args.seed + place for place in places]
        part = None if labels is None else [labels[place] for place in places]
        title = f"images {places[0] + 1} to {places[-1] + 1} of {count}"
        watch = progress(diffusion, title, frames if start == 0 else None, ranks.is_main)
        channels = 1 if data["mode"] == "L" else 3
        batch = diffusion.sample(
            network, len(seeds), size, channels, part, args.cfg_scale, seeds, callback=watch
        )
        for place, image in zip(places, batch.cpu(), strict=True):
            about = {
                "seed": args.seed + place,
                **({"class": names[place]} if labels else {}),
                **settings,
            }
            write_image(image, folder / f"{place:05d}.{args.image_format}", about)
            if place < GRID:
                first.append((place, image))

    # What shows them together
    pairs = sorted(
        (pair for part in gather(first, ranks) for pair in part), key=lambda pair: pair[0]
    )
    if ranks.is_main:
        print(f"{count} images of {size[0]}x{size[1]} in {folder}")
        write_grid([image for _, image in pairs], names, args, folder, settings)
        if frames:
            write_animation(frames, folder / f"denoising.{args.animate}")
    return 0


def gather(mine: object, ranks) -> list:
    """What each of the processes has, in their order, on all of them."""
    import torch

    everyones = [mine] * ranks.world_size
    if ranks.world_size > 1:
        torch.distributed.all_gather_object(everyones, mine)
    return everyones


def choose_sampler(args, contents: dict, network, device):
    """Image size (H, W), sampler, and the settings that go into the PNG text."""
    from model.networks import check_image_size
    from model.samplers import build_sampler

    config = contents["config"]["diffusion"]
    name = args.sample or contents["args"]["sample"]
    size = args.image_size or tuple(contents["config"]["data"]["image_size"])
    steps = args.sample_steps or (
        config["noise_steps"] if name == "ddpm" else min(50, config["noise_steps"])
    )
    options = {
        "sample_steps": steps,
        "timestep_spacing": args.timestep_spacing,
        "clip_sample": args.clip_sample,
    }
    try:
        check_image_size(*size, network.downsample_factor)
        diffusion = build_sampler(name, config, eta=args.eta, device=device, **options)
    except (TypeError, ValueError) as error:
        raise opt.UserError(f"{args.weight_path}: {error}") from None
    settings = {"sampler": name, **options, "cfg_scale": args.cfg_scale, "use_ema": args.use_ema}
    settings |= {"eta": args.eta} if name == "ddim" else {}
    return (
        size,
        diffusion,
        {**settings, "weights": args.weight_path.name, **network.config, **config},
    )


def check_metadata(args, contents: dict) -> dict:
    """What the checkpoint says of its data; its parts are as expected, and the options agree with
    them.
    """
    try:
        network, diffusion, data = (
            contents["config"][part] for part in ("network", "diffusion", "data")
        )
        names, size = data["class_names"], data["image_size"]
        good = all(isinstance(name, str) for name in names) and len(names) == (
            network["num_classes"] or 0
        )
        good = good and len(size) == 2 and all(type(n) is int and 1 <= n <= 4096 for n in size)
        good = good and data["mode"] in ("L", "RGB") and contents["args"]["sample"] in opt.SAMPLERS
        good = good and network["in_channels"] == (1 if data["mode"] == "L" else 3)
        if not good or not {"noise_steps", "noise_schedule", "prediction"} <= diffusion.keys():
            raise ValueError("its class names, image size, mode or schedule make no sense")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise opt.UserError(f"the metadata of {args.weight_path} is not usable: {error}") from None
    if names and contents["args"].get("label_drop") == 0 and args.cfg_scale != 1:
        raise opt.UserError(
            f"{args.weight_path} was trained with --label_drop 0, without guidance: add --cfg_scale 1"
        )
    found = {
        "conditional": network["num_classes"] is not None,
        "num_classes": network["num_classes"],
        "network": network["name"],
        "act": network["act"],
        "head_channels": network["head_channels"],
        "noise_schedule": diffusion["noise_schedule"],
        "prediction": diffusion["prediction"],
    }
    for key, value in found.items():
        if getattr(args, key) not in (None, value):
            raise opt.UserError(
                f"--{key} {getattr(args, key)}, but {args.weight_path} was trained with {value}"
            )
    return data


def describe_bare_weights(args, weights: dict) -> dict:
    """Contents of a checkpoint for a bare state_dict: the shapes tell the widths, the options the
    rest.
    """
    if args.conditional and not args.num_classes:
        raise opt.UserError(
            f"{args.weight_path} has no metadata: --conditional needs --num_classes"
        )
    classes = args.num_classes if args.conditional is not False else None
    rest = {
        "num_classes": classes,
        "act": args.act or "silu",
        "head_channels": args.head_channels or 32,
    }
    network = guess_network(args.network or "unet", weights, rest)
    diffusion = {
        "noise_schedule": args.noise_schedule or "linear",
        "prediction": args.prediction or "eps",
    }
    names = [str(i) for i in range(classes or 0)]
    mode = "L" if network["in_channels"] == 1 else "RGB"
    data = {"image_size": [64, 64], "mode": mode, "class_names": names}
    config = {"network": network, "diffusion": {"noise_steps": 1000, **diffusion}, "data": data}
    return {"config": config, "ema": weights, "network": weights, "args": {"sample": "ddpm"}}


def guess_network(name: str, weights: dict, options: dict) -> dict:
    """The config of a network from the shapes of its bare weights; `options` are what shapes cannot
    tell.
    """

    def count(pattern: str) -> int:
        return len({match[1] for key in weights if (match := re.match(pattern, key))})

    last_layer, inner = {
        "unet": ("block.conv2", r"down\.level0_block"),
        "cspdarkunet": ("join", r"down\.level0_block0\.blocks\."),
    }[name]
    try:
        channels, in_channels = weights["conv_in.weight"].shape[:2]
        levels = count(r"up\.level(\d+)_block0")
        widths = [
            weights[f"down.level{i}_block0.{last_layer}.weight"].shape[0] for i in range(levels)
        ]
    except KeyError as error:
        raise opt.UserError(f"the weights are not those of a {name}: {error} is missing") from None
    attends = {
        int(m[1])
        for key in weights
        if (m := re.match(r"down\.level(\d+)_block0\.attention\.", key))
    }
    shapes = {
        "in_channels": in_channels,
        "channels": channels,
        "channel_mult": [w // channels for w in widths],
    }
    return {
        "name": name,
        **shapes,
        "blocks_per_level": count(inner + r"(\d+)"),
        "attention_levels": sorted(attends),
    } | options


def choose_labels(args, class_names: list[str]) -> list[int] | None:
    """The class of each image, None for a network without classes."""
    if not class_names:
        if args.class_name is not None:
            raise opt.UserError(
                f"--class_name {args.class_name}, but {args.weight_path} was trained without classes"
            )
        return None
    if args.class_name is None:
        return [i % len(class_names) for i in range(args.num_images)]
    if args.class_name in class_names:
        return [class_names.index(args.class_name)] * args.num_images
    if args.class_name == "-1":
        return list(range(len(class_names)))
    if args.class_name.isdecimal() and int(args.class_name) < len(class_names):
        return [int(args.class_name)] * args.num_images
    known = opt.name_list(f"{i} {name}" for i, name in enumerate(class_names))
    raise opt.UserError(
        f"--class_name {args.class_name!r} is unknown; known are {known}, or -1 for one of each"
    )


def new_folder(parent: Path, name: str) -> Path:
    """parent/name, or where that exists name-2, name-3, ...: earlier images stay."""
    for number in range(1, 100_000):
        folder = parent / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue
        except OSError as error:
            raise opt.UserError(f"cannot make the folder {folder}: {error.strerror}") from None
    raise opt.UserError(
        f"{parent} holds 100,000 folders named {name}; choose another --generate_name"
    )


def progress(diffusion, title: str, frames: list | None, shown: bool):
    """A callback that moves a progress bar and collects (x_t, x0) of the first 16 images, at most
    60 times.
    """
    from tqdm import tqdm

    calls = len(diffusion.calls())
    bar = tqdm(total=calls, desc=title, unit="call", leave=False, disable=not shown)
    every = -(-calls // 60)

    def callback(done, x, x0):
        bar.update()
        if frames is not None and (done % every == 0 or done == calls):
            frames.append((x[:16].clamp(-1, 1).cpu(), x0[:16].cpu()))
        if done == calls:
            bar.close()

    return callback


def write_image(image, file: Path, settings: dict) -> None:
    """(C,H,W) float in [-1, 1] -> an image file; in a PNG, the settings become its text."""
    from PIL import Image

    from utils.images import save_image, to_uint8

    pixels = to_uint8(image).permute(1, 2, 0).numpy()
    save_image(Image.fromarray(pixels[..., 0] if len(image) == 1 else pixels), file, settings)


def write_grid(images: list, names: list[str], args, folder: Path, settings: dict) -> None:
    """The first images in one picture, with class and seed below each."""
    import torch

    from utils.images import image_grid, save_image

    columns = min(8, max(1, round(len(images) ** 0.5 * 1.2))) if len(images) < 64 else 16
    captions = [f"{names[i][:12]} {args.seed + i}".strip() for i in range(len(images))]
    file = folder / f"grid.{args.image_format}"
    save_image(image_grid(torch.stack(images), columns, captions=captions), file, settings)
    print(
        f"the first {len(images)} together in {file}"
        if len(images) == GRID
        else f"all of them together in {file}"
    )


def write_animation(frames: list, file: Path) -> None:
    """Pairs (x_t, estimate of x0), each (N,C,H,W), side by side, as a film."""
    from PIL import Image

    from utils.images import image_grid

    columns, pictures = min(4, len(frames[0][0])), []
    for x, x0 in frames:
        left, right = image_grid(x, columns), image_grid(x0, columns)
        canvas = Image.new(left.mode, (2 * left.width + 12, left.height), "white")
        canvas.paste(left, (0, 0))
        canvas.paste(right, (left.width + 12, 0))
        pictures.append(canvas)
    durations = [80] * (len(pictures) - 1) + [2000]  # milliseconds
    options = {"lossless": True} if file.suffix == ".webp" else {}
    pictures[0].save(
        file, save_all=True, append_images=pictures[1:], duration=durations, loop=0, **options
    )
    print(f"the denoising, x_t beside the estimate of x0, in {file}")


if __name__ == "__main__":
    opt.run_script(main)
