"""Guesses about how a folder of images was meant, said to the user in the plan."""

from dataclasses import dataclass, field
from pathlib import Path

from utils.errors import name_list

SPLIT_NAMES = frozenset(
    "train training val valid validation test testing dev eval evaluation".split()
)


@dataclass
class ClassFolder:
    """What lies directly in a class folder."""

    name: str
    subfolders: set[str] = field(default_factory=set)
    direct_images: int = 0


def layout_remarks(root: Path, classes: list[ClassFolder], conditional: bool) -> list[str]:
    """Sentences for the plan where the folders look as if something else had been meant."""
    if not conditional:
        return _remarks_on_one_set(root, classes[0])
    if not classes:
        return []
    names = [folder.name for folder in classes]
    nested = [folder for folder in classes if folder.subfolders and not folder.direct_images]
    if look_like_parts(names) and len(nested) < len(classes):
        return [
            f"the class folders {name_list(names)} look like parts of a data set, not like "
            f"classes: to train on {_first_split(names)} alone, pass --dataset_path "
            f"{root / _first_split(names)} --conditional False"
        ]
    if look_like_parts(names):
        first = _preferred(nested)
        return [
            f"the class folders {name_list(names)} look like parts of a data set: to learn the "
            f"classes {name_list(sorted(first.subfolders))}, pass --dataset_path "
            f"{root / first.name}"
        ]
    shared = set.intersection(*(folder.subfolders for folder in classes))
    splits = sorted(name for name in shared if _is_split(name))
    if splits:
        return [
            f"every class folder holds {name_list(splits)}, and all of it is used for training: "
            f"to train on {_first_split(splits)} alone, pass as --dataset_path a folder with one "
            f"folder per class that holds (or links to) only <class>/{_first_split(splits)}"
        ]
    same = all(folder.subfolders == classes[0].subfolders for folder in classes)
    if same and len(nested) == len(classes) and len(shared) > 1:
        return [
            f"every class folder holds the same subfolders ({name_list(sorted(shared))}): if these "
            f"are the classes, pass --dataset_path {root / names[0]}"
        ]
    return []


def look_like_parts(names: list[str]) -> bool:
    """Whether the folders of these names are the parts of a data set rather than classes."""
    return all(_is_split(name) for name in names)


def _remarks_on_one_set(root: Path, top: ClassFolder) -> list[str]:
    splits = sorted(name for name in top.subfolders if _is_split(name))
    if len(splits) < 2:
        return []
    return [
        f"the folder holds {name_list(splits)}, and all of it is used for training: to train on "
        f"{_first_split(splits)} alone, pass --dataset_path {root / _first_split(splits)}"
    ]


def _is_split(name: str) -> bool:
    return name.lower() in SPLIT_NAMES


def _first_split(names: list[str]) -> str:
    """The part to train on: the one called train where there is one."""
    for name in names:
        if name.lower().startswith(("train", "learn")):
            return name
    return names[0]


def _preferred(folders: list[ClassFolder]) -> ClassFolder:
    wanted = _first_split([folder.name for folder in folders])
    return next(folder for folder in folders if folder.name == wanted)
