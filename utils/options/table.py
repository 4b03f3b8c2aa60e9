"""Tables of options, and the command-line parser that a table becomes."""

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from utils.errors import UserError
from utils.options.types import Choice, OptionType, PathType, Switch, SwitchOrAuto

ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True)
class Option:
    """One row. `flag` may name an alias too ("--amp --fp16"); without dashes it is an argument.

    The default is written as on the command line and checked like input; a relative path there
    starts at the project's root, and None means that the option is not set. `decides` marks what
    decides the result of a training run, so that a resumed run must have it too.
    """

    flag: str
    default: Any
    type: OptionType
    help: str
    decides: bool = False
    may_lack: bool = False  # an argument that need not be given
    several: bool = False  # takes one value or more; the default has spaces between them

    @property
    def flags(self) -> list[str]:
        return self.flag.split()

    @property
    def name(self) -> str:
        """The attribute of the parsed options."""
        return self.flags[0].removeprefix("--")

    @property
    def is_argument(self) -> bool:
        return not self.flag.startswith("--")


Table = dict[str, list[Option]]  # the options of each group, by its title


def options_of(table: Table) -> list[Option]:
    """All rows of a table."""
    return [option for group in table.values() for option in group]


class Parser(argparse.ArgumentParser):
    """argparse's parser, reporting a mistake in one sentence."""

    def parse_args(self, args=None, namespace=None):  # type: ignore[override]
        """Options may stand between two arguments, which argparse takes at once otherwise; not
        where a `--` says that what follows are no options, which that parsing forgets.
        """
        words = sys.argv[1:] if args is None else args
        if "--" in words:
            return super().parse_args(args, namespace)
        return self.parse_intermixed_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (--help lists the options)\n")


def make_parser(doc: str | None, table: Table) -> Parser:
    """The parser of a table. Raises UserError for a default that is no legal value."""
    parser = Parser(
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    # What begins so is a value, and no option: -1,0 and -1e-3 too, where argparse knows -1 alone.
    parser._negative_number_matcher = re.compile(r"-[\d.][\d.,eE+-]*")
    for title, options in table.items():
        group = parser.add_argument_group(title)
        for option in options:
            _add(group, option)
    return parser


def _add(group: argparse._ArgumentGroup, option: Option) -> None:
    settings: dict[str, Any] = {"type": option.type, "metavar": option.name.upper()}
    if isinstance(option.type, Choice):
        settings["metavar"] = "|".join(option.type.values)
    if option.may_lack:
        settings["nargs"] = "?"
    if option.several:
        settings["nargs"] = "+"
    if isinstance(option.type, Switch) and not option.several:
        settings |= {"nargs": "?", "const": True, "metavar": "True|False"}
    if isinstance(option.type, SwitchOrAuto):
        settings["metavar"] = "True|False|auto"
    shown = option.help
    if not option.is_argument:
        shown = f"{option.help} [{default_text(option)}]"
    action = group.add_argument(*option.flags, help=shown.replace("%", "%%"), **settings)
    action.default = checked_default(option)


def default_text(option: Option) -> str:
    """The default as help and tables show it."""
    return "not set" if option.default is None else str(option.default)


def checked_default(option: Option) -> Any:
    """The default as a value. Raises UserError where the type refuses it."""
    if option.default is None:
        return None
    if option.several:
        return [_checked_value(option, text) for text in str(option.default).split()]
    return _checked_value(option, str(option.default))


def changed_options(args: argparse.Namespace, options: Sequence[Option]) -> list[str]:
    """The names of those of the options whose value is not their default."""
    return [
        option.name for option in options if getattr(args, option.name) != checked_default(option)
    ]


def _checked_value(option: Option, text: str) -> Any:
    try:
        if isinstance(option.type, PathType):
            return ROOT / option.type.expanded(text)
        return option.type(text)
    except argparse.ArgumentTypeError as error:
        raise UserError(f"the default of {option.flags[0]} in the script {error}") from None


def markdown_tables(table: Table) -> str:
    """The rows as Markdown, one table per group."""
    lines: list[str] = []
    for title, options in table.items():
        lines += [f"**{title}**", "", "| option | default | meaning |", "| --- | --- | --- |"]
        lines += [_markdown_row(option) for option in options]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _markdown_row(option: Option) -> str:
    flags = ", ".join(f"`{flag}`" for flag in option.flags)
    default = "-" if option.is_argument else default_text(option)
    meaning = option.help
    if isinstance(option.type, Choice):
        meaning += f" ({', '.join(option.type.values)})"
    cells = (flags, f"`{default}`", meaning.replace("|", "\\|"))
    return f"| {' | '.join(cells)} |"


def plain_values(args: argparse.Namespace) -> dict[str, Any]:
    """Parsed options as plain values, for the record."""
    return {
        name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()
    }
