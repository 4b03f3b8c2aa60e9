"""What the command lines have in common: choices, option types, the parser, and how a user's
mistake ends a script.

Standard library only, so that `--help` answers at once.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from utils.errors import UserError, name_list

__all__ = ["UserError", "name_list"]  # the scripts reach them as opt.UserError

ROOT = Path(__file__).resolve().parent.parent

# A test holds these equal to the keys of the registries in model/.
SAMPLERS = ("ddpm", "ddim", "plms")
NETWORKS = ("unet", "cspdarkunet")
ACTIVATIONS = ("gelu", "silu", "relu", "relu6", "lrelu")
NOISE_SCHEDULES = ("linear", "cosine", "sqrt_linear", "sqrt")
TIMESTEP_SPACINGS = ("leading", "linspace", "trailing")
PREDICTIONS = ("eps", "x0", "v")
LOSSES = ("mse", "l1", "huber", "smooth_l1")
OPTIMIZERS = ("adam", "adamw", "sgd")
LR_SCHEDULES = ("linear", "cosine", "warmup_cosine", "constant")
TIME_EMBEDDINGS = ("additive", "scale_shift")
IMAGE_FORMATS = ("png", "jpg", "jpeg", "webp")


def switch(text: str) -> bool:
    """True or False, so that editing a default and passing the flag both work."""
    values = {
        "true": True,
        "1": True,
        "yes": True,
        "on": True,
        "false": False,
        "0": False,
        "no": False,
        "off": False,
    }
    if text.lower() not in values:
        raise argparse.ArgumentTypeError(f"takes True or False, not {text!r}")
    return values[text.lower()]


def number(
    kind: type, low: float, high: float = float("inf"), open_low: bool = False
) -> Callable[[str], float]:
    """An int or float from low to high; `open_low` leaves low itself out."""
    what = "a whole number" if kind is int else "a number"
    bounds = f"{'above' if open_low else 'from'} {low}" + (
        "" if high == float("inf") else f" to {high}"
    )

    def convert(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = float("nan")
        if not low <= value <= high or (open_low and value == low) or value == float("inf"):
            raise argparse.ArgumentTypeError(f"takes {what} {bounds}, not {text!r}")
        return value

    return convert


positive = number(int, 1)
natural = number(int, 0)
minus_one_up = number(int, -1)
seed = number(int, 0, 2**63 - 1)
seconds = number(float, 0, 1e7, open_low=True)
noise_steps = number(int, 1, 1_000_000)
probability = number(float, 0, 1)
below_one = number(float, 0, 0.999999)
not_negative = number(float, 0)
rate = number(float, 0, open_low=True)


def whole_numbers(text: str) -> tuple[int, ...]:
    """Comma-separated whole numbers; an empty string is none."""
    try:
        return tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"takes whole numbers separated by commas, not {text!r}"
        ) from None


def image_size(text: str) -> tuple[int, int]:
    """ "64" -> (64, 64); "64,96" -> (64, 96), height first."""
    sizes = whole_numbers(text)
    if len(sizes) not in (1, 2) or not all(4 <= size <= 4096 for size in sizes):
        raise argparse.ArgumentTypeError(
            f"takes a size such as 64, or height,width such as 64,96, not {text!r}"
        )
    return (sizes[0], sizes[-1])


def path(text: str) -> Path:
    if "\0" in text or not text.strip():
        raise argparse.ArgumentTypeError(f"takes a path, not {text!r}")
    return Path(text).expanduser().absolute()


def file_name(text: str) -> str:
    """A name for a file or folder: no separators, so it cannot lead elsewhere."""
    if (
        not text.strip()
        or len(text.encode()) > 200
        or text in (".", "..")
        or any(c in "/\\\0\n" for c in text)
    ):
        raise argparse.ArgumentTypeError(f"takes a plain name without slashes, not {text[:40]!r}")
    return text


class Parser(argparse.ArgumentParser):
    def error(self, message: str):
        self.exit(2, f"{self.prog}: error: {message} (--help lists the options)\n")


def make_parser(doc: str, groups: dict[str, list[tuple]]) -> Parser:
    """A parser from a table: {group title: [(flag or "flag alias", default, type or tuple of
    choices, help)]}. Defaults are written as on the command line and checked like input; a relative
    path there starts at the project's root. A default of None means that the option is not set.
    """
    parser = Parser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    for title, options in groups.items():
        group = parser.add_argument_group(title)
        for flags, default, kind, text in options:
            settings = (
                {"choices": kind, "metavar": "|".join(kind)}
                if isinstance(kind, tuple)
                else {"type": kind}
            )
            if kind is switch:
                settings |= {"nargs": "?", "const": True, "metavar": "True|False"}
            elif not isinstance(kind, tuple):
                settings["metavar"] = flags.split()[0].lstrip("-").upper()
            shown = f"{text} [{default}]".replace("%", "%%")
            action = group.add_argument(*flags.split(), help=shown, **settings)
            action.default = _checked_default(flags, default, kind)
    return parser


def _checked_default(flags: str, default: object, kind: Callable | tuple) -> object:
    if default is None:
        return None
    try:
        if kind is path:
            return ROOT / str(default)
        if isinstance(kind, tuple):
            if default not in kind:
                raise argparse.ArgumentTypeError(f"is one of {', '.join(kind)}, not {default!r}")
            return default
        return kind(str(default))
    except argparse.ArgumentTypeError as error:
        raise UserError(f"the default of {flags.split()[0]} in the script {error}") from None


def run_script(main: Callable[[list[str] | None], None]) -> None:
    """Run main(argv); a user's mistake or a failing disk ends with one sentence on stderr and exit
    status 2.
    """
    try:
        main(None)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except (OSError, RuntimeError) as error:  # a full or failing disk; too little memory on the GPU
        if not isinstance(error, OSError) and type(error).__name__ != "OutOfMemoryError":
            raise
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
