"""From what a person wrote to the number of a class. Standard library only."""

import math
from collections.abc import Sequence

from utils.text import composed

ONE_OF_EACH = "-1"  # asked for instead of a class: one image of each

Label = int | tuple[float, ...]  # of an image: a class, or a row of numbers and classes


def labels_in_turn(asked: str, class_names: Sequence[str]) -> list[Label] | None:
    """The labels that a text asks for, which images take in turn: a class by its name or number;
    each class, for ONE_OF_EACH; or several of one image, with commas between them. None where one
    is unknown.
    """
    label = label_of(asked, class_names)
    if label is not None:
        return [label]
    if asked == ONE_OF_EACH:
        return list(range(len(class_names)))
    several = labels_of(asked, class_names)
    if several is None:
        return None
    return [several[0] if len(several) == 1 else several]


def asks_for_each(asked: str | None, class_names: Sequence[str]) -> bool:
    """Whether one image of each class is asked for; a class may have that name."""
    return asked == ONE_OF_EACH and label_of(asked, class_names) is None


def remark_on_class(asked: str, class_names: Sequence[str]) -> str:
    """What to say of a text that could mean two things, or that gives a number; otherwise ""."""
    label = label_of(asked, class_names)
    is_number = asked.isascii() and asked.isdecimal() and int(asked) < len(class_names)
    if label is None or not (is_number or asked == ONE_OF_EACH):
        return ""
    if composed(asked) != composed(class_names[label]):
        return f"class number {asked} is {class_names[label]}"
    if asked == ONE_OF_EACH:
        return f"--class_name {asked} is the class of that name, not one image of each class"
    if int(asked) == label:
        return ""
    return (
        f"--class_name {asked} is the class of that name, number {label}; "
        f"number {asked} is the class {class_names[int(asked)]}"
    )


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
