"""Fonts for class names in any script.

Pillow comes with one font, for Latin. Where a name needs more, the fonts of the machine are
searched for its characters: what fontconfig proposes, then all that lie in the system's folders.
Where no font has a character, the name is not `readable`, and the caller shows something else, such
as the number of the class.
"""

import subprocess
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from PIL import ImageFont, features

from utils.font_files import BUILT_IN, Face, code_points_of, faces_in, font_files
from utils.text import as_drawn, clusters_of, is_invisible

# Fonts that hold coloured pictures have them in some of these sizes only, in pixels.
PICTURE_SIZES = (109, 160, 136, 128, 96, 64)


def readable(text: str) -> bool:
    """Whether each character of the text can be drawn with a font of this machine."""
    return all(face_for(cluster) is not None for cluster in clusters_of(as_drawn(text)))


def font_for(text: str, size: int) -> ImageFont.FreeTypeFont | None:
    """One font, `size` pixels high, that has all characters of the text; None where there is none.

    Pillow's own font where it has them. A readable text that mixes scripts may need several fonts,
    and fonts of coloured pictures do not come in any size: `draw_text` can draw these as well.
    """
    clusters = clusters_of(as_drawn(text))
    face = face_for_all(clusters)
    opened = open_face(face, size) if face is not None else None
    if opened is None or opened.size != size:
        return None
    return opened


@lru_cache(maxsize=1)
def has_raqm() -> bool:
    """Whether Pillow can shape and order all scripts."""
    return features.check("raqm") is True and features.check("fribidi") is True


# --- From characters to faces ---

_faces_in_use: list[Face] = [BUILT_IN]  # the search begins with those that were found before


def forget_fonts() -> None:
    """Search anew the next time; for tests, and after a font was installed."""
    del _faces_in_use[1:]
    for cached in (face_for, face_draws, open_face, _all_faces, _proposed_face, has_raqm):
        cached.cache_clear()


def face_for_all(clusters: Sequence[str]) -> Face | None:
    """One face that draws all clusters, among those that are the best for one of them."""
    best = {face_for(cluster): None for cluster in clusters}  # a dict, as sets have no order
    if len(best) <= 1:
        return next(iter(best), BUILT_IN)
    for face in best:
        if face is None or holds_pictures(face):  # fonts of emoji have digits of their own
            continue
        if all(face_draws(face, cluster) for cluster in clusters):
            return face
    return None


def holds_pictures(face: Face) -> bool:
    """Whether it is a font of coloured pictures, which do not come in the size of a caption."""
    font = open_face(face, 12)
    return font is not None and font.size != 12


@lru_cache(maxsize=65536)
def face_for(cluster: str) -> Face | None:
    """The face to draw a cluster with; None where no font on this machine has it."""
    for face in _faces_in_use:
        if face_draws(face, cluster):
            return face
    script = unicodedata.name(cluster[0], "").split(" ")[0]  # such as CJK, ARABIC, DEVANAGARI
    proposed = _proposed_face(script, ord(cluster[0]))
    for face in [*proposed, *_all_faces()]:
        if face_draws(face, cluster):
            _faces_in_use.append(face)
            return face
    return None


@lru_cache(maxsize=65536)
def face_draws(face: Face, cluster: str) -> bool:
    """Whether it has a glyph for each character of the cluster, and its glyphs are not empty."""
    known = code_points_of(face)
    needed = [c for c in cluster if not is_invisible(c)]
    if not all(ord(character) in known for character in needed):
        return False
    font = open_face(face, 12)
    if font is None:
        return False
    drawn = "".join(needed)
    if not drawn.strip():
        return True
    # Fonts exist that claim every character and draw nothing, and formats of colour that Pillow
    # cannot draw. In colour, since fonts that hold pictures have nothing else.
    try:
        mask, _ = font.getmask2(drawn, mode="RGBA")
    except (OSError, ValueError):
        return False
    return mask.getbbox() is not None


@lru_cache(maxsize=256)
def open_face(face: Face, size: int) -> ImageFont.FreeTypeFont | None:
    """The font at this size, or at another where it has only some; None where it cannot be read."""
    if face == BUILT_IN:
        return open_built_in(size)
    layout = ImageFont.Layout.RAQM if has_raqm() else ImageFont.Layout.BASIC
    for tried in (size, *PICTURE_SIZES):
        try:
            return ImageFont.truetype(str(face.path), tried, face.index, layout_engine=layout)
        except (OSError, ValueError):  # not of this size, or not at all
            continue
    return None


@lru_cache(maxsize=16)
def open_built_in(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size=size)
    assert isinstance(font, ImageFont.FreeTypeFont)  # the other kind comes without a size
    return font


@lru_cache(maxsize=256)
def _proposed_face(script: str, code: int) -> tuple[Face, ...]:
    """What fontconfig proposes for a character: it knows the user's language and taste. Nothing
    where it is not installed.
    """
    command = ["fc-match", "--format=%{file}\n%{index}", f":charset={code:x}"]
    try:
        done = subprocess.run(command, capture_output=True, timeout=10, check=True)
        path, index = done.stdout.decode().splitlines()
        # Its upper 16 bits number the named instances of a variable font.
        return (Face(Path(path), int(index) & 0xFFFF),)
    except (OSError, ValueError, subprocess.SubprocessError):
        return ()


@lru_cache(maxsize=1)
def _all_faces() -> tuple[Face, ...]:
    """All faces in the system's folders, those that suit captions first."""
    return tuple(face for path in font_files() for face in faces_in(path))
