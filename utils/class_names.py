"""From what a person wrote to the number of a class. Standard library only."""

from collections.abc import Sequence

from utils.text import composed

ONE_OF_EACH = "-1"  # asked for instead of a class: one image of each


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
