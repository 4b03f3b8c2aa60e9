"""Font files: where they lie, and which characters they have.

The characters stand in a font's table "cmap", which is read here:
https://learn.microsoft.com/typography/opentype/spec/cmap
"""

import io
import os
import struct
import sys
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import BinaryIO

from PIL import ImageFont

SUFFIXES = (".ttf", ".otf", ".ttc", ".otc")
# Fonts that have a box for every character, so that nothing is ever missing.
FONTS_OF_BOXES = ("lastresort", "bmp-fallback", "bmpfallback", "adobeblank")
# Words in file names of fonts that suit small captions less than others of their family.
LESS_SUITED = (
    "bold",
    "italic",
    "oblique",
    "black",
    "heavy",
    "thin",
    "light",
    "condensed",
    "mono",
    "serif",
)

MOST_FACES = 256  # in one file; more is a damaged file
MOST_TABLE_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Face:
    """One font in a font file, which may hold several. Without a path: Pillow's own font."""

    path: Path | None
    index: int = 0


BUILT_IN = Face(None)


class CodePoints:
    """A set of Unicode code points, kept as ranges: fonts have up to 65,535, in few stretches."""

    def __init__(self, ranges: Iterable[tuple[int, int]]):
        """ranges: (first, last), both of them in it, in any order."""
        in_order = sorted(ranges)
        self._firsts = [first for first, _ in in_order]
        self._lasts = [last for _, last in in_order]

    def __contains__(self, code: int) -> bool:
        place = bisect_right(self._firsts, code) - 1
        return place >= 0 and code <= self._lasts[place]


# --- The table of characters ---


def read_code_points(file: BinaryIO, index: int = 0) -> CodePoints:
    """The code points for which face `index` of a TTF, OTF or TTC file has a glyph.

    Raises ValueError where the file is no such font, is damaged, or has no Unicode table.
    """
    try:
        table = _find_table(file, b"cmap", _face_offset(file, index))
        for offset in _unicode_subtables(table):
            subtable = table[offset:]
            (kind,) = struct.unpack_from(">H", subtable)
            if kind == 12:
                return CodePoints(_ranges_of_format_12(subtable))
            if kind == 4:
                return CodePoints(_ranges_of_format_4(subtable))
    except struct.error:
        raise ValueError("the font file is cut off or damaged") from None
    raise ValueError("the font has no Unicode table of a known format")


def count_faces(file: BinaryIO) -> int:
    """1, or for a collection (TTC) how many it holds. ValueError where it is damaged."""
    if _read(file, 0, 4) != b"ttcf":
        return 1
    (count,) = struct.unpack(">L", _read(file, 8, 4))
    if not 1 <= count <= MOST_FACES:
        raise ValueError(f"a collection of {count} fonts")
    return count


def _face_offset(file: BinaryIO, index: int) -> int:
    """Where the directory of tables of a face begins."""
    if not 0 <= index < count_faces(file):
        raise ValueError(f"the file has no face {index}")
    if _read(file, 0, 4) != b"ttcf":
        return 0
    (offset,) = struct.unpack(">L", _read(file, 12 + 4 * index, 4))
    return offset


def _find_table(file: BinaryIO, wanted: bytes, start: int) -> bytes:
    """The contents of a table, from the directory that begins at `start`."""
    kind, count = struct.unpack(">4sH", _read(file, start, 6))
    if kind not in (b"\0\1\0\0", b"OTTO", b"true"):
        raise ValueError("not a TrueType or OpenType font")
    directory = _read(file, start + 12, 16 * count)
    for tag, _, offset, length in struct.iter_unpack(">4sLLL", directory):
        if tag == wanted:
            return _read(file, offset, length)
    raise ValueError(f"the font has no table {wanted.decode()}")


def _read(file: BinaryIO, offset: int, size: int) -> bytes:
    if size > MOST_TABLE_BYTES:
        raise ValueError("a table of the font is too large")
    file.seek(offset)
    data = file.read(size)
    if len(data) < size:
        raise ValueError("the font file is cut off")
    return data


def _unicode_subtables(table: bytes) -> list[int]:
    """Where the subtables for Unicode begin, those with all 17 planes first."""
    (count,) = struct.unpack_from(">H", table, 2)
    found = []
    for record in range(count):
        platform, encoding, offset = struct.unpack_from(">HHL", table, 4 + 8 * record)
        is_full = (platform, encoding) in ((3, 10), (0, 4), (0, 6))
        is_basic = (platform, encoding) == (3, 1) or (platform == 0 and encoding <= 3)
        if is_full or is_basic:
            found.append((not is_full, offset))
    return [offset for _, offset in sorted(found)]


def _ranges_of_format_12(subtable: bytes) -> list[tuple[int, int]]:
    """Groups of (first, last, glyph of the first), glyphs numbered on; glyph 0 is "missing"."""
    (count,) = struct.unpack_from(">L", subtable, 12)
    ranges = []
    for group in range(count):
        first, last, glyph = struct.unpack_from(">LLL", subtable, 16 + 12 * group)
        if glyph == 0:
            first += 1
        if first <= last:
            ranges.append((first, last))
    return ranges


def _ranges_of_format_4(subtable: bytes) -> list[tuple[int, int]]:
    """Segments with an end, a start, and either a difference between code and glyph, or the place
    of a list of glyphs; glyph 0 is "missing".
    """
    (twice_count,) = struct.unpack_from(">H", subtable, 6)
    count = twice_count // 2
    ends_at = 14
    starts_at = ends_at + twice_count + 2  # two bytes of padding
    differences_at = starts_at + twice_count
    places_at = differences_at + twice_count
    ends = struct.unpack_from(f">{count}H", subtable, ends_at)
    starts = struct.unpack_from(f">{count}H", subtable, starts_at)
    differences = struct.unpack_from(f">{count}H", subtable, differences_at)
    places = struct.unpack_from(f">{count}H", subtable, places_at)

    ranges: list[tuple[int, int]] = []
    for segment in range(count):
        start, end = starts[segment], ends[segment]
        if start > end or (segment and start <= ends[segment - 1]):
            raise ValueError("the segments of the font's table overlap")
        if places[segment] == 0:
            without_glyph = -differences[segment] % 65536
            ranges += _without(start, end, {without_glyph})
            continue
        length = end - start + 1
        list_at = places_at + 2 * segment + places[segment]  # counted from the place itself
        if start == 0xFFFF:  # the last segment only ends the list, and may point anywhere
            continue
        glyphs = struct.unpack_from(f">{length}H", subtable, list_at)
        ranges += _without(start, end, {start + i for i, glyph in enumerate(glyphs) if glyph == 0})
    return ranges


def _without(first: int, last: int, missing: set[int]) -> list[tuple[int, int]]:
    """The range without some of its members, as ranges."""
    ranges = []
    start = first
    for gap in sorted(code for code in missing if first <= code <= last):
        if start < gap:
            ranges.append((start, gap - 1))
        start = gap + 1
    if start <= last:
        ranges.append((start, last))
    return ranges


# --- The files of this machine ---


def font_data(face: Face) -> BinaryIO:
    """The font file of a face, open for reading. Raises OSError where it cannot be opened."""
    if face.path is not None:
        return open(face.path, "rb")
    font = ImageFont.load_default(size=12)
    assert isinstance(font, ImageFont.FreeTypeFont)  # the other kind comes without a size
    return io.BytesIO(font.font_bytes)


@cache
def code_points_of(face: Face) -> CodePoints:
    """What the face can draw; nothing where its file cannot be read."""
    try:
        with font_data(face) as file:
            return read_code_points(file, face.index)
    except (OSError, ValueError):
        return CodePoints([])


def faces_in(path: Path) -> list[Face]:
    """The faces of a font file; none where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return [Face(path, index) for index in range(count_faces(file))]
    except (OSError, ValueError):
        return []


def font_files() -> list[Path]:
    """The font files in the system's folders, plain upright ones first."""
    found: set[Path] = set()
    for folder in font_folders():
        for parent, _, names in os.walk(folder):
            found.update(Path(parent, name) for name in names if _is_font(name))
    return sorted(found, key=lambda path: (_unsuitedness(path.stem), str(path)))


def font_folders() -> list[Path]:
    """Where this system keeps fonts, those of the user included."""
    home = Path(os.path.expanduser("~"))  # which stays where the system knows no home
    if sys.platform == "win32":
        windows = Path(os.environ.get("WINDIR", "C:/Windows"))
        own = Path(os.environ.get("LOCALAPPDATA", home / "AppData" / "Local"))
        return [windows / "Fonts", own / "Microsoft" / "Windows" / "Fonts"]
    if sys.platform == "darwin":
        folders = [Path("/System/Library/Fonts"), Path("/Library/Fonts"), home / "Library/Fonts"]
        return folders + [Path("/System/Library/AssetsV2")]  # fonts that are loaded on demand
    own = Path(os.environ.get("XDG_DATA_HOME", home / ".local" / "share"))
    shared = os.environ.get("XDG_DATA_DIRS", "/usr/local/share:/usr/share")
    folders = [Path(folder) / "fonts" for folder in shared.split(":") if folder]
    # The second last in case XDG_DATA_DIRS leaves it out; the last is Windows' own, under WSL.
    more = [home / ".fonts", Path("/usr/share/fonts"), Path("/mnt/c/Windows/Fonts")]
    return [own / "fonts", *folders, *more]


def _is_font(name: str) -> bool:
    lower = name.lower()
    return lower.endswith(SUFFIXES) and not any(word in lower for word in FONTS_OF_BOXES)


def _unsuitedness(stem: str) -> int:
    """How many words in the name speak against it."""
    lower = stem.lower().replace("sansserif", "sans")
    return sum(word in lower for word in LESS_SUITED)
