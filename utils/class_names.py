"""From what a person wrote to the number of a class. Standard library only."""

import math
from collections.abc import Sequence

from utils.text import composed

ONE_OF_EACH = "-1"  # asked for instead of a class: one image of each


def labels_of(asked: str, class_names: Sequence[str]) -> tuple[int, ...] | None:
    """The numbers of several classes with commas between their names; None where one is unknown."""
    found = [label_of(part.strip(), class_names) for part in asked.split(",")]
    if any(label is None for label in found):
        return None
    return tuple(label for label in found if label is not None)


def name_of(label: int | Sequence[float], class_names: Sequence[str], numbers: int = 0) -> str:
    """What a label is called: a number, or a row of `numbers` and then labels."""
    if isinstance(label, int):
        return class_names[label]
    return ",".join(class_names[int(each)] for each in label[numbers:] if not math.isnan(each))


def label_of(asked: str, class_names: Sequence[str]) -> int | None:
    """The number of the class of that name, else the class with that number; None: there is none.

    A name comes first: a class may be called "3".
    """
    known = [composed(name) for name in class_names]
    name = composed(asked)
    if name in known:
        return known.index(name)
    is_number = asked.isascii() and asked.isdecimal()
    if is_number and int(asked) < len(class_names):
        return int(asked)
    return None
