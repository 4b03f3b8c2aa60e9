#!/usr/bin/env python3
"""Lay a torchvision data set out as class folders, as train.py reads them: OUT/<class>/<number>.png

    python tools/prepare_dataset.py cifar10 --out datasets/cifar10
    python tools/prepare_dataset.py fashion_mnist --out datasets/fashion --split test --source my_downloads

Downloads what is not in --source yet.
"""

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils import options as opt

# Name here: (class in torchvision.datasets, how it is told which split).
DATASETS = {
    "cifar10": ("CIFAR10", lambda split: {"train": split == "train"}),
    "cifar100": ("CIFAR100", lambda split: {"train": split == "train"}),
    "mnist": ("MNIST", lambda split: {"train": split == "train"}),
    "fashion_mnist": ("FashionMNIST", lambda split: {"train": split == "train"}),
    "kmnist": ("KMNIST", lambda split: {"train": split == "train"}),
    "stl10": ("STL10", lambda split: {"split": split}),
    "flowers102": ("Flowers102", lambda split: {"split": split}),
    "food101": ("Food101", lambda split: {"split": split}),
}

# fmt: off
OPTIONS = {
    "options": [
        ("--out",               None,            opt.path,            "folder to write [datasets/<name>]"),
        ("--split",             "train",         ("train", "test"),   "which part of the set"),
        ("--source",            "datasets/.raw", opt.path,            "where the downloaded files lie, or will"),
        ("--per_class",         None,            opt.positive,        "at most so many images of each class"),
    ],
}
# fmt: on


def build_parser() -> opt.Parser:
    parser = opt.make_parser(__doc__, OPTIONS)
    parser.add_argument("name", choices=tuple(DATASETS), help="the data set")
    return parser


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    out = args.out or opt.ROOT / "datasets" / args.name
    if out.exists() and any(out.iterdir()):
        raise opt.UserError(f"--out {out} is not empty; name another folder, or remove it first")
    from tqdm import tqdm

    dataset = load(args)
    counts: dict[str, int] = {}
    try:
        for i, (image, label) in enumerate(
            tqdm(dataset, args.name, unit="image", disable=not sys.stderr.isatty())
        ):
            name = folder_name(dataset.classes[label])
            if counts.get(name, 0) == args.per_class:
                continue
            if name not in counts:
                (out / name).mkdir(parents=True, exist_ok=True)
            counts[name] = counts.get(name, 0) + 1
            image.save(out / name / f"{i:06d}.png")
    except OSError as error:
        raise opt.UserError(f"cannot write to {out}: {error.strerror or error}") from None
    print(f"{sum(counts.values()):,} images in {len(counts)} classes under {out}")


def load(args):
    """The torchvision data set: from --source where its files are there, else downloaded."""
    from torchvision import datasets

    class_name, split = DATASETS[args.name]
    kind = getattr(datasets, class_name)
    try:
        return kind(args.source, download=False, **split(args.split))
    except RuntimeError:  # "not found, use download=True"
        print(f"{args.name} is not in {args.source}: downloading")
    try:
        return kind(args.source, download=True, **split(args.split))
    except Exception as error:  # whatever the network, the archive or the disk raise
        raise opt.UserError(
            f"{args.name} could not be downloaded to {args.source}: {error}"
        ) from None


def folder_name(class_name: str) -> str:
    """ "T-shirt/top" -> "t-shirt-top", "3 - three" -> "3"."""
    return re.sub(r"[^a-z0-9]+", "-", class_name.lower().split(" - ")[0]).strip("-")


if __name__ == "__main__":
    opt.run_script(main)
