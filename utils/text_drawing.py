"""Lines of text in pictures, in any script, cut to the room they have.

Names that mix scripts are drawn in several fonts. Right-to-left and composed scripts are laid out
by Pillow's Raqm where it is there; without it, right-to-left text is turned around here, and Arabic
letters stand unjoined.
"""

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from PIL import Image, ImageDraw, ImageFont

from utils.font_files import BUILT_IN, Face
from utils.fonts import (
    face_draws,
    face_for,
    face_for_all,
    has_raqm,
    holds_pictures,
    open_built_in,
    open_face,
)
from utils.text import as_drawn, clusters_of

Item = TypeVar("Item")

ELLIPSIS = "…"
MIRRORED = {"(": ")", ")": "(", "[": "]", "]": "[", "{": "}", "}": "{", "<": ">", ">": "<"}


@dataclass(frozen=True)
class Run:
    """A part of a text that is drawn in one font. `scale` is 1, except for fonts whose pictures
    come in one size.
    """

    text: str
    font: ImageFont.FreeTypeFont
    scale: float

    @property
    def width(self) -> float:
        """In pixels."""
        return self.font.getlength(self.text) * self.scale


def text_width(text: str, size: int) -> float:
    """Of a line of text `size` pixels high, in pixels."""
    return sum(run.width for run in _layout(text, size))


def shorten(text: str, width: float, size: int, end: str = "") -> str:
    """The text and then `end`, with as much of the text cut off and replaced by an ellipsis as is
    needed for both to be at most `width` pixels wide.

    `end` stays whole; only where it alone is too wide is it cut as well.
    """
    whole = f"{text} {end}" if text and end else text or end
    if text_width(whole, size) <= width:
        return whole
    tail = f"{ELLIPSIS} {end}" if end else ELLIPSIS
    if end and text_width(tail, size) > width:
        return shorten(end, width, size)
    clusters = clusters_of(as_drawn(text))
    fits, too_long = 0, len(clusters)  # how many clusters can stay
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        if text_width("".join(clusters[:middle]).rstrip() + tail, size) <= width:
            fits = middle
        else:
            too_long = middle
    return "".join(clusters[:fits]).rstrip() + tail


def draw_text(
    picture: Image.Image, position: tuple[float, float], text: str, size: int, anchor: str
) -> None:
    """Draw a line of text in black, `size` pixels high, around the height of `position` (x, y).

    anchor: "lm" to begin at x, "mm" to be centred there. Characters without a font become "?".
    """
    x, y = position
    runs = _layout(text, size)
    pen = ImageDraw.Draw(picture)
    in_colour = picture.mode == "RGB"
    if len(runs) == 1 and runs[0].scale == 1:
        font = runs[0].font
        pen.text(
            (x, y), runs[0].text, fill="black", font=font, anchor=anchor, embedded_color=in_colour
        )
        return
    if anchor == "mm":
        x -= sum(run.width for run in runs) / 2
    ascent, descent = open_built_in(size).getmetrics()
    baseline = y + (ascent - descent) / 2
    for run in runs:
        if run.scale == 1:
            pen.text(
                (x, baseline),
                run.text,
                fill="black",
                font=run.font,
                anchor="ls",
                embedded_color=in_colour,
            )
        else:
            _paste_scaled(picture, (x, y), run)
        x += run.width


def _paste_scaled(picture: Image.Image, position: tuple[float, float], run: Run) -> None:
    """Draw coloured pictures of a fixed size, scaled down to the height of the line."""
    ascent, descent = run.font.getmetrics()
    large = Image.new("RGBA", (round(run.width / run.scale) or 1, ascent + descent))
    ImageDraw.Draw(large).text((0, 0), run.text, font=run.font, embedded_color=True)
    width = max(1, round(large.width * run.scale))
    height = max(1, round(large.height * run.scale))
    small = large.resize((width, height), Image.Resampling.LANCZOS)
    corner = (round(position[0]), round(position[1] - height / 2))
    picture.paste(small.convert("RGB").convert(picture.mode), corner, small.getchannel("A"))


# --- From a text to runs ---


def _layout(text: str, size: int) -> list[Run]:
    """The runs of a line of text, from left to right."""
    clusters = clusters_of(as_drawn(text))
    base = _is_right_to_left("".join(clusters)) or False
    if not has_raqm():
        clusters = _turned_around(clusters, base)
    one_for_all = face_for_all(clusters)
    if one_for_all is not None:
        return [_run("".join(clusters), one_for_all, size)] if clusters else []

    parts: list[tuple[Face, str]] = []
    for cluster in clusters:
        face = face_for(cluster)
        if face is None:
            face, cluster = BUILT_IN, "?"
        if parts and face_draws(parts[-1][0], cluster) and not holds_pictures(parts[-1][0]):
            face = parts[-1][0]  # spaces, digits and the like stay in the font of their neighbours
        if parts and parts[-1][0] == face:
            parts[-1] = (face, parts[-1][1] + cluster)
        else:
            parts.append((face, cluster))
    if has_raqm():  # it orders what is within a part, and the parts are ordered here
        directions = [_is_right_to_left(part) for _, part in parts]
        parts = _in_visual_order(parts, directions, base)
    return [_run(part, face, size) for face, part in parts]


def _run(text: str, face: Face, size: int) -> Run:
    font = open_face(face, size)
    if font is None:  # it could be opened when it was chosen, so its file has gone since
        font = open_built_in(size)
    return Run(text, font, size / font.size)


# --- Right to left ---


def _is_right_to_left(text: str) -> bool | None:
    """The direction of its first letter; None where it has no letters."""
    for character in text:
        kind = unicodedata.bidirectional(character)
        if kind in ("R", "AL"):
            return True
        if kind == "L":
            return False
    return None


def _in_visual_order(
    items: Sequence[Item], directions: Sequence[bool | None], base: bool
) -> list[Item]:
    """Items in the order of reading -> from left to right, for a line whose direction is `base`.

    An item without a direction of its own lies between two of one direction, and has theirs, or
    has that of the line.
    """
    resolved = list(_resolve(directions, base))
    stretches: list[tuple[bool, list[Item]]] = []
    for item, direction in zip(items, resolved, strict=True):
        if stretches and stretches[-1][0] == direction:
            stretches[-1][1].append(item)
        else:
            stretches.append((direction, [item]))
    if base:
        stretches.reverse()
    ordered: list[Item] = []
    for right_to_left, stretch in stretches:
        ordered += reversed(stretch) if right_to_left else stretch
    return ordered


def _resolve(directions: Sequence[bool | None], base: bool) -> Iterator[bool]:
    before = base
    for place, direction in enumerate(directions):
        if direction is not None:
            before = direction
            yield direction
            continue
        following = (later for later in directions[place:] if later is not None)
        after = next(following, base)
        yield before if before == after else base


def _turned_around(clusters: list[str], base: bool) -> list[str]:
    """Clusters in the order of reading -> from left to right, for Pillow's basic layout, which
    draws them as they come.
    """
    are_digits = [unicodedata.bidirectional(c[0]) in ("EN", "AN") for c in clusters]
    # To the signs beside it, a number has the direction of the line.
    directions = [
        base if is_digit else _is_right_to_left(cluster)
        for cluster, is_digit in zip(clusters, are_digits, strict=True)
    ]
    drawn: list[str] = []
    final: list[bool] = []
    resolved = _resolve(directions, base)
    for cluster, is_digit, right_to_left in zip(clusters, are_digits, resolved, strict=True):
        turned = right_to_left and not is_digit
        drawn.append(MIRRORED.get(cluster, cluster) if turned else cluster)
        final.append(turned)
    return _in_visual_order(drawn, final, base)
