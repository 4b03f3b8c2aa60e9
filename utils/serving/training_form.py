"""The options of tools/train.py as a form: what is offered, what a client's values become.

The table of options comes from the script itself; here is only which of its rows are offered.
"""

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.options.table import Option, Table, checked_default, options_of
from utils.options.types import (
    Choice,
    ImageSize,
    Number,
    PathType,
    Switch,
    SwitchOrAuto,
    WholeNumbers,
    file_name,
)
from utils.serving.data_folders import DataFolders
from utils.serving.presets import PRESETS, Preset
from utils.serving.refusal import Refusal
from utils.serving.safe_files import is_text
from utils.serving.training_refusals import invalid

# What the server decides itself, and what needs a path on its machine.
NOT_OFFERED = (*("resume", "allow_changes", "start_epoch", "plan", "pretrain", "latent"),)
# Paths in whose place a client names a data folder, and what says how that is used.
FOLDERS = ("condition_path",)
WITH_FOLDERS = (*FOLDERS, "condition_kind", "condition_drop", "joint_masks")
# What stands beside the options in a request: the option's name, and the request's.
BESIDE = {"run_name": "run_name", "dataset_path": "dataset"}
TRAINED_KIND = "diffusion"  # of checkpoint: what tools/train.py trains
LONGEST_VALUE = 1000  # characters
LONGEST_SENTENCE = 300  # characters; it repeats the value

JsonValue = bool | int | float | str | list[int] | None
CheckFunction = Callable[[list[str]], None]  # of a command line; raises UserError


@dataclass(frozen=True)
class FormOption:
    """One row of the form."""

    name: str
    kind: str  # int, float, bool, choice, text, size, list or folder
    default: Any
    low: float | None
    high: float | None
    open_low: bool  # whether low itself is left out
    choices: tuple[str, ...] | None
    help: str
    editable: bool


@dataclass(frozen=True)
class FormGroup:
    title: str
    options: list[FormOption]


@dataclass(frozen=True)
class TrainingForm:
    """What may be chosen of a training, and how tools/train.py is called with it."""

    table: Table
    script: Path
    check: CheckFunction  # what involves more than one option
    presets: Sequence[Preset] = field(default=PRESETS)
    data: DataFolders | None = None  # which may be named in options; None: none

    def offered(self) -> list[Option]:
        """The rows that a client may set."""
        return [option for option in options_of(self.table) if self._is_offered(option)]

    def groups(self) -> list[FormGroup]:
        """All that a form shows, in the order of the table."""
        groups = []
        for title, options in self.table.items():
            rows = [
                _row(option, self._is_offered(option))
                for option in options
                if self._is_offered(option) or option.name in BESIDE
            ]
            if rows:
                groups.append(FormGroup(title, rows))
        return groups

    def texts(self, values: Mapping[str, JsonValue]) -> dict[str, str]:
        """The values as texts of the command line, each checked by its option's type; None is left
        out. Raises Refusal for an option that is not offered, and for a value that it does not
        take.
        """
        offered = {option.name: option for option in self.offered()}
        texts = {}
        for name, value in values.items():
            if name not in offered:
                raise invalid(f"there is no option {name!a:.80}", "options", "unknown_option")
            if value is not None:
                texts[name] = _checked_text(offered[name], value)
        return texts

    def recorded_texts(self, args: Mapping[str, Any]) -> dict[str, str]:
        """The options of a run as its config.json keeps them; what makes no sense is left out."""
        texts = {}
        for option in self.offered():
            value = args.get(option.name)
            if option.name in FOLDERS and self.data is not None:
                value = self.data.name_of(value)
            if value is None or value == _plain(checked_default(option)):
                continue
            try:
                texts[option.name] = _checked_text(option, value)
            except Refusal:
                continue
        if "ema_decay" in texts:  # earlier versions recorded a length beside it
            texts.pop("ema_length", None)
        if "minutes" in texts:  # and their usual epochs
            texts.pop("epochs", None)
        return texts

    def arguments(
        self,
        run_name: str,
        dataset: Path,
        results: Path,
        options: Mapping[str, str],
        *flags: str,
    ) -> list[str]:
        """The arguments of tools/train.py, one for each option."""
        arguments = [
            f"--run_name={run_name}",
            f"--dataset_path={dataset}",
            f"--result_path={results}",
        ]
        for name, text in options.items():
            value = self._folder(name, text) if name in FOLDERS else text
            arguments.append(f"--{name}={value}")
        return arguments + list(flags)

    def _folder(self, option: str, name: str) -> Path:
        """The data folder that an option names. Raises Refusal where there is none."""
        assert self.data is not None  # or the option is not offered
        try:
            return self.data.path(name)
        except Refusal as refusal:
            raise replace(refusal, param=f"options.{option}") from None

    def check_together(self, arguments: list[str]) -> None:
        """Raise Refusal with the script's own sentence where options do not fit together."""
        try:
            self.check(arguments)
        except UserError as error:
            raise invalid(str(error), "options") from None

    def _is_offered(self, option: Option) -> bool:
        if option.name in WITH_FOLDERS:
            return self.data is not None
        is_path = isinstance(option.type, PathType)
        return not is_path and option.name not in NOT_OFFERED and option.name not in BESIDE


def check_run_name(name: str) -> str:
    """The name, as tools/train.py would take it. Raises Refusal for another one.

    Names that begin with a dot are hidden folders, which the server keeps for itself.
    """
    if not is_text(name):
        raise invalid(f"run_name takes a text, not {name[:40]!a}", "run_name")
    try:
        checked = file_name(name)
    except argparse.ArgumentTypeError as error:
        raise invalid(f"run_name {error}", "run_name") from None
    if checked.startswith("."):
        raise invalid(f"run_name may not begin with a dot: {name[:40]!a}", "run_name")
    return checked


def _row(option: Option, is_offered: bool) -> FormOption:
    kind, low, high, choices = _kind_and_bounds(option.type)
    default = option.default
    if option.name in FOLDERS:
        kind = "folder"
    elif isinstance(option.type, PathType):
        default = Path(str(default)).name
    elif kind in ("int", "float", "bool"):
        default = checked_default(option)
    return FormOption(
        name=BESIDE.get(option.name, option.name),
        kind=kind,
        default=default,
        low=low,
        high=high,
        open_low=isinstance(option.type, Number) and option.type.open_low,
        choices=choices,
        help=option.help,
        editable=is_offered,
    )


def _kind_and_bounds(
    kind: Any,
) -> tuple[str, float | None, float | None, tuple[str, ...] | None]:
    if isinstance(kind, Number):
        name = "int" if kind.kind is int else "float"
        return name, kind.low, None if kind.high == math.inf else kind.high, None
    if isinstance(kind, ImageSize):
        return "size", kind.low, kind.high, None
    if isinstance(kind, Choice):
        return "choice", None, None, kind.values
    if isinstance(kind, SwitchOrAuto):
        return "choice", None, None, ("auto", "True", "False")
    if isinstance(kind, Switch):
        return "bool", None, None, None
    if isinstance(kind, WholeNumbers):
        return "list", None, None, None
    return "text", None, None, None


def _checked_text(option: Option, value: Any) -> str:
    """The value as the command line's text. Raises Refusal where the option does not take it."""
    if isinstance(value, list | tuple):
        text = ",".join(str(item) for item in value)
    else:
        text = str(value)
    param = f"options.{option.name}"
    if len(text) > LONGEST_VALUE or "\0" in text or not is_text(text):
        raise invalid(f"{option.name} takes a text of at most {LONGEST_VALUE} characters", param)
    if option.name in FOLDERS:
        return text  # a name, which is looked up when the command line is made
    try:
        return _text_of(option.type(text))
    except argparse.ArgumentTypeError as error:
        raise invalid(f"{option.name} {str(error)[:LONGEST_SENTENCE]}", param) from None


def _text_of(value: Any) -> str:
    """A value of an option as the text that gives it."""
    if isinstance(value, tuple):
        return ",".join(str(item) for item in value)
    return str(value)


def _plain(value: Any) -> Any:
    """As JSON keeps it."""
    return list(value) if isinstance(value, tuple) else value
