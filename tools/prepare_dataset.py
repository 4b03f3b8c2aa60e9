#!/usr/bin/env python3
"""Write a torchvision data set as class folders, the layout that train.py reads: OUT/<class>/<number>.png

    python tools/prepare_dataset.py cifar10 --out datasets/cifar10
    python tools/prepare_dataset.py fashion_mnist --out datasets/fashion --split test --source my_downloads

Downloads whatever --source does not have yet.
"""

import importlib.util
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils import options as opt
from utils.console import progress_over, say
from utils.options import Option


def _train_flag(split: str) -> dict:
    return {"train": split == "train"}


def _split_name(split: str) -> dict:
    return {"split": split}


# Name here: (class in torchvision.datasets, how it is told which split).
DATASETS = {
    "cifar10": ("CIFAR10", _train_flag),
    "cifar100": ("CIFAR100", _train_flag),
    "mnist": ("MNIST", _train_flag),
    "fashion_mnist": ("FashionMNIST", _train_flag),
    "kmnist": ("KMNIST", _train_flag),
    "stl10": ("STL10", _split_name),
    "flowers102": ("Flowers102", _split_name),
    "food101": ("Food101", _split_name),
}
NEEDS = {"flowers102": "scipy"}  # what torchvision reads their labels with
NAMES = opt.Choice(tuple(DATASETS))
SPLITS = opt.Choice(("train", "test"))

# fmt: off
OPTIONS: opt.Table = {
    "what": [
        Option("name",        None,            NAMES,         "the data set"),
        Option("--out",       None,            opt.path,      "folder to write; not set: datasets/<name>"),
        Option("--split",     "train",         SPLITS,        "which part of the set"),
        Option("--source",    "datasets/.raw", opt.path,      "where the downloaded files are, or will be"),
        Option("--per_class", None,            opt.positive,  "at most this many images of each class"),
    ],
}
# fmt: on


def build_parser() -> opt.Parser:
    return opt.make_parser(__doc__, OPTIONS)


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    out = args.out or opt.ROOT / "datasets" / args.name
    if out.is_file():
        raise opt.UserError(f"--out {out} is a file; name a folder")
    if out.exists() and any(out.iterdir()):
        raise opt.UserError(f"--out {out} is not empty; name another folder, or remove it first")

    dataset = load(args)
    counts: dict[str, int] = {}
    progress = progress_over(images_of(dataset, args), len(dataset), args.name, leave=True)
    for i, (image, label) in enumerate(progress):
        name = folder_name(dataset.classes[label])
        if counts.get(name, 0) == args.per_class:
            continue
        try:
            if name not in counts:
                (out / name).mkdir(parents=True, exist_ok=True)
            image.save(out / name / f"{i:06d}.png")
        except OSError as error:
            raise opt.UserError(f"cannot write to {out}: {error.strerror or error}") from None
        counts[name] = counts.get(name, 0) + 1
    say(f"{sum(counts.values()):,} images in {len(counts)} classes under {out}")


def images_of(dataset, args):
    """Each image, decoded, and its label. Raises UserError where one cannot be read."""
    for i in range(len(dataset)):
        try:
            image, label = dataset[i]
            image.load()
        except OSError as error:  # those of some sets are files, which are opened one by one
            raise damaged(args, error) from None
        yield image, label


def load(args):
    """The torchvision data set: from --source where its files are there, else downloaded."""
    from torchvision import datasets

    class_name, split = DATASETS[args.name]
    kind = getattr(datasets, class_name)
    check_packages(args.name)
    try:
        return kind(args.source, download=False, **split(args.split))
    except RuntimeError:  # "not found, use download=True"
        say(f"{args.name} is not in {args.source}: downloading")
    except Exception as error:  # of files that an interrupted download has left
        raise damaged(args, error) from None
    try:
        return kind(args.source, download=True, **split(args.split))
    except Exception as error:  # whatever the network, the archive or the disk raise
        raise opt.UserError(
            f"{args.name} could not be downloaded to {args.source}: {error}"
        ) from None


def damaged(args, error: Exception) -> opt.UserError:
    return opt.UserError(
        f"the files of {args.name} in {args.source} are damaged ({error}): remove them, and start "
        "again"
    )


def check_packages(name: str) -> None:
    """Raise UserError where torchvision needs a package for the set that is not here."""
    package = NEEDS.get(name)
    if package is not None and importlib.util.find_spec(package) is None:
        raise opt.UserError(f"{name} needs {package}: pip install {package}")


def folder_name(class_name: str) -> str:
    """ "T-shirt/top" -> "t-shirt-top", "3 - three" -> "3"."""
    return re.sub(r"[^a-z0-9]+", "-", class_name.lower().split(" - ")[0]).strip("-")


if __name__ == "__main__":
    opt.run_script(main)
