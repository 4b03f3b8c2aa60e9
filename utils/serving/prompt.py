"""From a prompt, which models of text understand, to a class, which is all these networks know."""

import re
from collections.abc import Sequence

from utils.class_names import label_of
from utils.errors import name_list
from utils.serving.refusal import invalid
from utils.text import composed

ANY_CLASS = ("", "random")  # prompts for all classes in turn
LONGEST_PROMPT = 32_000  # characters, as in the OpenAI API

SEPARATORS = re.compile(r"[\s_-]+")  # "ankle_boot" is "ankle boot"


def class_of_prompt(prompt: str, class_names: Sequence[str]) -> str | None:
    """The name of the class that a prompt asks for; None: all classes in turn.

    A prompt is a class's name or number, in upper or lower case, or a text in which the name of
    just one class occurs in whole words. Raises Refusal, with the classes, for any other.
    """
    label = label_of(prompt.strip(), class_names) if class_names else None
    if label is None:
        label = _label_in_any_case(prompt, class_names)
    if label is not None:
        return class_names[label]
    if prompt.strip().casefold() in ANY_CLASS:
        return None
    if not class_names:
        raise invalid(
            "this model was trained without classes: the prompt is empty, or 'random'", "prompt"
        )
    named = _names_within(prompt, class_names)
    if len(named) == 1:
        return named[0]
    found = f"names {name_list(named)}" if named else "names no class"
    known = name_list(class_names, len(class_names))
    raise invalid(
        f"the prompt {found}; it must name one of the classes: {known} "
        "(or be empty, or 'random', for all of them in turn)",
        "prompt",
        "unknown_class",
    )


def _plain(text: str) -> str:
    """As prompts and names are compared."""
    return SEPARATORS.sub(" ", composed(text).casefold()).strip()


def _label_in_any_case(prompt: str, class_names: Sequence[str]) -> int | None:
    """The only class with this name in whatever case."""
    wanted = _plain(prompt)
    found = [label for label, name in enumerate(class_names) if _plain(name) == wanted]
    return found[0] if len(found) == 1 else None


def _names_within(prompt: str, class_names: Sequence[str]) -> list[str]:
    """The classes whose names occur in the prompt as whole words. What is part of a longer name,
    as "boot" of "ankle boot", does not count where that occurs.
    """
    text = _plain(prompt)
    names = {_plain(name) for name in class_names} - {""}
    found = set()
    for name in sorted(names, key=len, reverse=True):
        if name not in text:  # much faster than the pattern, of many classes
            continue
        text, count = re.subn(rf"(?<!\w){re.escape(name)}(?!\w)", "\n", text)
        if count:
            found.add(name)
    return [name for name in class_names if _plain(name) in found]
