"""What an option's value may be. Bounds are data, so that a form or a table can show them.

Each type is called with the text of the command line, and returns the value or raises
argparse.ArgumentTypeError with the rest of a sentence ("takes a whole number from 1, not '0'").
Standard library only, so that `--help` answers at once.
"""

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils import image_facts
from utils.image_facts import CHANNELS, LARGEST_SIDE, SMALLEST_SIDE, USUAL_MODES

LONGEST_FILE_NAME = 200  # bytes; file systems take 255, and endings come behind it

AUTO = "auto"

OptionType = Callable[[str], Any]


def _refuse(what: str, text: str) -> argparse.ArgumentTypeError:
    return argparse.ArgumentTypeError(f"takes {what}, not {text!r}")


@dataclass(frozen=True)
class Number:
    """A whole number or a number from `low` to `high`; `open_low` leaves `low` itself out."""

    kind: type
    low: float
    high: float = math.inf
    open_low: bool = False

    def __str__(self) -> str:
        what = "a whole number" if self.kind is int else "a number"
        start = "above" if self.open_low else "from"
        end = "" if self.high == math.inf else f" to {self.high}"
        return f"{what} {start} {self.low}{end}"

    def __call__(self, text: str) -> int | float:
        try:
            value = self.kind(text)
        except ValueError:
            raise _refuse(str(self), text) from None
        if not self._contains(value):
            raise _refuse(str(self), text)
        return value

    def _contains(self, value: float) -> bool:
        if self.open_low and value == self.low:
            return False
        return self.low <= value <= self.high and value != math.inf


@dataclass(frozen=True)
class Choice:
    """One of a few words."""

    values: tuple[str, ...]

    def __str__(self) -> str:
        return f"one of {', '.join(self.values)}"

    def __call__(self, text: str) -> str:
        if text not in self.values:
            raise _refuse(str(self), text)
        return text


@dataclass(frozen=True)
class Switch:
    """True or False, so that editing a default and passing the flag both work."""

    words = {
        "true": True,
        "1": True,
        "yes": True,
        "on": True,
        "false": False,
        "0": False,
        "no": False,
        "off": False,
    }

    def __str__(self) -> str:
        return "True or False"

    def __call__(self, text: str) -> bool:
        if text.lower() not in self.words:
            raise _refuse(str(self), text)
        return self.words[text.lower()]


@dataclass(frozen=True)
class SwitchOrAuto(Switch):
    """True, False, or "auto": what suits the case."""

    def __str__(self) -> str:
        return "True, False or auto"

    def __call__(self, text: str) -> bool | str:  # type: ignore[override]
        return AUTO if text.lower() == AUTO else super().__call__(text)


@dataclass(frozen=True)
class WholeNumbers:
    """Whole numbers separated by commas; an empty text is none."""

    def __str__(self) -> str:
        return "whole numbers separated by commas"

    def __call__(self, text: str) -> tuple[int, ...]:
        if not text:
            return ()
        try:
            return tuple(int(part) for part in text.split(","))
        except ValueError:
            raise _refuse(str(self), text) from None


@dataclass(frozen=True)
class ImageSize:
    """ "64" -> (64, 64); "64,96" -> (64, 96), height first."""

    low: int = SMALLEST_SIDE
    high: int = LARGEST_SIDE

    def __str__(self) -> str:
        return f"a size such as 64, or height,width such as 64,96 (each {self.low} to {self.high})"

    def __call__(self, text: str) -> tuple[int, int]:
        try:
            sides = [int(part) for part in text.split(",")]
        except ValueError:
            raise _refuse(str(self), text) from None
        if len(sides) not in (1, 2) or not all(self.low <= side <= self.high for side in sides):
            raise _refuse(str(self), text)
        return (sides[0], sides[-1])


@dataclass(frozen=True)
class ImageShapes:
    """ "28x1,64x3" -> ((28, 1), (64, 3)): the sides and channels of square images."""

    sides: Number = Number(int, SMALLEST_SIDE, LARGEST_SIDE)

    def __str__(self) -> str:
        return f"side x channels such as 28x1,64x3 (sides {self.sides.low} to {self.sides.high})"

    def __call__(self, text: str) -> tuple[tuple[int, int], ...]:
        return tuple(self._shape(part, text) for part in text.split(","))

    def _shape(self, part: str, text: str) -> tuple[int, int]:
        side, x, channels = part.partition("x")
        allowed = [str(CHANNELS[mode]) for mode in USUAL_MODES]
        if not x or channels not in allowed:
            raise _refuse(f"{self}, with {' or '.join(allowed)} channels", text)
        try:
            return int(self.sides(side)), int(channels)
        except argparse.ArgumentTypeError:
            raise _refuse(str(self), text) from None


@dataclass(frozen=True)
class PathType:
    """A path; ~ is the home folder."""

    def __str__(self) -> str:
        return "a path"

    def __call__(self, text: str) -> Path:
        return self.expanded(text).absolute()

    def expanded(self, text: str) -> Path:
        """The path as it is meant; where it is relative, it still is."""
        if "\0" in text or not text.strip():
            raise _refuse(str(self), text)
        try:
            return Path(text).expanduser()
        except RuntimeError:
            raise _refuse("a path (~ and the name of a user of this machine)", text) from None


@dataclass(frozen=True)
class FileName:
    """A name for a file or folder, without separators, so that it cannot lead elsewhere."""

    forbidden = "/\\\0\n"

    def __str__(self) -> str:
        return "a plain name without slashes"

    def __call__(self, text: str) -> str:
        too_long = len(text.encode(errors="surrogateescape")) > LONGEST_FILE_NAME
        odd = any(character in self.forbidden for character in text)
        if not text.strip() or too_long or odd or text in (".", ".."):
            raise _refuse(str(self), text[:40])
        return text


@dataclass(frozen=True)
class Interval:
    """Two ascending numbers with a comma between them."""

    def __str__(self) -> str:
        return "two ascending numbers such as 0.3,5"

    def __call__(self, text: str) -> tuple[float, float]:
        try:
            low, high = (float(part) for part in text.split(","))
        except ValueError:
            raise _refuse(str(self), text) from None
        if not 0 <= low < high < math.inf:
            raise _refuse(str(self), text)
        return low, high


@dataclass(frozen=True)
class Borders:
    """Pixels at the top, right, bottom and left: 0,8,0,8."""

    largest = LARGEST_SIDE

    def __str__(self) -> str:
        return "pixels at the top,right,bottom,left such as 0,8,0,8"

    def __call__(self, text: str) -> tuple[int, int, int, int]:
        parts = text.split(",")
        if len(parts) != 4 or not all(part.isascii() and part.isdecimal() for part in parts):
            raise _refuse(str(self), text)
        top, right, bottom, left = (int(part) for part in parts)
        if max(top, right, bottom, left) > self.largest or top + right + bottom + left == 0:
            raise _refuse(str(self), text)
        return top, right, bottom, left


@dataclass(frozen=True)
class TwoSeeds:
    """Two random seeds with a comma between them."""

    def __str__(self) -> str:
        return "two seeds such as 3,8"

    def __call__(self, text: str) -> tuple[int, int]:
        try:
            first, second = (int(seed(part)) for part in text.split(","))
        except (ValueError, argparse.ArgumentTypeError):
            raise _refuse(str(self), text) from None
        return first, second


@dataclass(frozen=True)
class NamedNumbers:
    """Numbers with names: age=3.5,size=2."""

    def __str__(self) -> str:
        return "names and numbers such as age=3.5,size=2"

    def __call__(self, text: str) -> dict[str, float]:
        found: dict[str, float] = {}
        for part in text.split(","):
            name, equals, value = part.rpartition("=")
            try:
                number = float(value)
            except ValueError:
                number = math.inf
            if not (name.strip() and equals) or not math.isfinite(number):
                raise _refuse(str(self), text)
            found[name.strip()] = number
        return found


@dataclass(frozen=True)
class ReplicaName:
    """A name that can stand in an address and before a hyphen."""

    longest = 32

    def __str__(self) -> str:
        return f"a name of up to {self.longest} ASCII letters and digits"

    def __call__(self, text: str) -> str:
        if not text.isascii() or not text.isalnum() or len(text) > self.longest:
            raise _refuse(str(self), text[:40])
        return text


@dataclass(frozen=True)
class Text:
    """Any text."""

    def __str__(self) -> str:
        return "a text"

    def __call__(self, text: str) -> str:
        return text


# --- The types by the names that the tables use ---

switch = Switch()
switch_or_auto = SwitchOrAuto()
positive = Number(int, 1)
epochs = Number(int, 1, 10**9)
natural = Number(int, 0)
minus_one_up = Number(int, -1)
seed = Number(int, 0, 2**32 - 1)  # torch's CPU generator takes no more
minutes = Number(float, 0, 1e6, open_low=True)
seconds = Number(float, 0, 1e7, open_low=True)
noise_shift = Number(float, 0, 1000, open_low=True)
noise_steps = Number(int, 1, 1_000_000)
probability = Number(float, 0, 1)
half = Number(float, 0, 0.5)
ema_length = Number(float, 1e-6, 0.28)  # a plain mean has 0.289
below_one = Number(float, 0, 0.999999)
not_negative = Number(float, 0)
rate = Number(float, 0, open_low=True)
whole_numbers = WholeNumbers()
interval = Interval()
borders = Borders()
two_seeds = TwoSeeds()
strength = Number(float, 0, 1, open_low=True)
named_numbers = NamedNumbers()
image_size = ImageSize()
image_shapes = ImageShapes()
path = PathType()
file_name = FileName()
replica_name = ReplicaName()
port = Number(int, 0, 65535)
text = Text()

# A test holds these equal to the keys of the registries in model/.
SAMPLERS = Choice(("ddpm", "ddim", "plms", "dpmpp2m", "unipc"))
NETWORKS = Choice(("unet", "cspdarkunet"))
UPSCALERS = Choice(("rdn", "edsr"))
ACTIVATIONS = Choice(("gelu", "silu", "relu", "relu6", "lrelu"))
NOISE_SCHEDULES = Choice(("linear", "cosine", "sqrt_linear", "sqrt", "flow"))
TIMESTEP_SPACINGS = Choice(("leading", "linspace", "trailing", "logsnr", "karras"))
EXPORT_FORMATS = Choice(("diffusers", "safetensors", "onnx"))
PREDICTIONS = Choice(("eps", "x0", "v"))
LOSS_WEIGHTS = Choice(("uniform", "min_snr", "lognormal"))
TIME_STEPS = Choice(("uniform", "weighted"))
LOSSES = Choice(("mse", "l1", "huber", "smooth_l1"))
OPTIMIZERS = Choice(("muon", "adamw", "adam", "sgd"))
PRESETS = Choice(("auto", "tiny", "small", "medium", "base", "large", "adm"))
LR_SCHEDULES = Choice(("linear", "cosine", "warmup_cosine", "constant"))
TIME_EMBEDDINGS = Choice(("additive", "scale_shift"))
IMAGE_FORMATS = Choice(("png", "jpg", "jpeg", "webp"))
IMAGE_MODES = Choice(("auto", *image_facts.IMAGE_MODES))
CONDITION_KINDS = Choice(("auto", "labels", "picture"))
USUAL_IMAGE_MODES = Choice(("auto", *USUAL_MODES))
CACHES = Choice(("auto", "disk", "ram", "none"))
GRADIENT_COMPRESSIONS = Choice(("none", "bf16"))
ANIMATIONS = Choice(("webp", "gif"))
