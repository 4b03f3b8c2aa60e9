"""What was found in the folder of images, in lines for the plan."""

import numpy as np

from utils.data.image_set import BROKEN, ImageSet
from utils.data.index import SECOND_FOLDER, SYSTEM_FOLDER
from utils.errors import name_list

MODE_IN_WORDS = {"L": "grey", "RGB": "RGB", "RGBA": "RGB with opacity", "I;16": "grey of 16 bits"}
CLASSES_SHOWN = 20
INDENT = " " * 12


def describe(image_set: ImageSet, all_classes: bool = False) -> list[str]:
    """Images, classes, files left out with their reasons, and remarks. `all_classes`: the images of
    each class, one line a class.
    """
    size = ",".join(str(side) for side in image_set.image_size)
    mode = MODE_IN_WORDS[image_set.mode]
    lines = [f"images      {len(image_set):,} at {size}, {mode}, from {image_set.root}"]
    lines += _classes(image_set, all_classes)
    lines += _left_out(image_set)
    lines += _skipped_folders(image_set)
    lines += [f"note        {remark}" for remark in image_set.remarks]
    return lines


def _classes(image_set: ImageSet, all_classes: bool) -> list[str]:
    names = image_set.class_names
    lines = _numbers(image_set)
    if not names:
        return lines
    kind = "classes" if image_set.conditions is None else "labels"
    lines.append(f"{kind:11} {len(names)}: {name_list(names, CLASSES_SHOWN)}")
    counts = image_set.label_counts()
    if all_classes:
        width = max(len(f"{count:,}") for count in counts)
        for name, count in zip(names, counts, strict=True):
            lines.append(f"{INDENT}{count:>{width},} images in {name}")
    elif counts.min() == counts.max():
        lines.append(f"{INDENT}{counts[0]:,} images in each")
    else:
        most, fewest = int(counts.argmax()), int(counts.argmin())
        lines.append(
            f"{INDENT}most images: {counts[most]:,} in {names[most]}; "
            f"fewest: {counts[fewest]:,} in {names[fewest]}"
        )
    return lines


def _numbers(image_set: ImageSet) -> list[str]:
    """Of labels.csv: each number, and of how many images it is known."""
    if image_set.conditions is None:
        return []
    lines = []
    for place, column in enumerate(image_set.conditions.numbers):
        known = int((~np.isnan(image_set.conditions.rows[:, place])).sum())
        lines.append(
            f"number      {column.name}: {column.mean:.4g} +- {column.std:.4g}, known of {known:,} "
            "images"
        )
    return lines


def _left_out(image_set: ImageSet) -> list[str]:
    """All files that are not used: the broken ones by name, the others by reason and ending."""
    account = image_set.account
    lines = []
    broken = [
        f"{file} ({why})" for file, why in image_set.left_out.items() if not file.endswith("/")
    ]
    parts = [name_list(broken)] if broken else []
    for reason, files in account.reasons.items():
        if reason == BROKEN:
            if files.count > 1:
                parts.append(f"{reason} in all: {files.per_ending()}")
            continue
        examples = name_list(files.examples) + (
            ", ..." if files.count > len(files.examples) else ""
        )
        parts.append(f"{files.per_ending()}: {reason} ({examples})")
    if parts:
        lines.append(
            f"files       {account.seen:,} seen = {account.used:,} used + "
            f"{account.left_out:,} left out"
        )
        lines.append(f"left out    {account.left_out:,}: {parts[0]}")
        lines += [INDENT + part for part in parts[1:]]
    empty = [file for file in image_set.left_out if file.endswith("/")]
    if empty:
        lines.append(f"empty       class folders without a readable image: {name_list(empty)}")
    return lines


def _skipped_folders(image_set: ImageSet) -> list[str]:
    lines = []
    for reason, folders in image_set.account.skipped_folders.items():
        if reason == SYSTEM_FOLDER:
            what = "folders of the operating system"
        elif reason == SECOND_FOLDER:
            what = "folders that are in the set by another path"
        else:
            what = f"{reason} folders"
        lines.append(f"skipped     {name_list(folders)}: {what}")
    return lines
