"""Text that people wrote (class names, file names) made fit for a terminal, a file or a picture.

Standard library only.
"""

import unicodedata

ZERO_WIDTH_JOINER = "\u200d"
FORCED_DIRECTIONS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def printable(text: str) -> str:
    """The text with lone surrogates written out, as in "\\udcff"; all else stays as it is.

    Python puts lone surrogates where the bytes of a file name are not UTF-8. No encoding can write
    them, so any text that may hold a file name passes through here before it leaves the program.
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def on_one_line(text: str) -> str:
    """The printable text with every kind of white space and every control character as a space."""
    kept = []
    for character in printable(text):
        is_control = ord(character) < 0x20 or 0x7F <= ord(character) < 0xA0
        kept.append(" " if is_control or character.isspace() else character)
    return "".join(kept)


def as_drawn(text: str) -> str:
    """The text as it is drawn: on one line, accents joined to their letters (NFC), without the
    characters that force a direction, since those would turn around what follows the name.
    """
    joined = composed(on_one_line(text))
    return "".join(c for c in joined if c not in FORCED_DIRECTIONS)


def is_invisible(character: str) -> bool:
    """Whether it only says how others are drawn: joiners, marks of direction, variants."""
    code = ord(character)
    is_variant = 0xFE00 <= code <= 0xFE0F or 0xE0100 <= code <= 0xE01EF
    return is_variant or code == 0x34F or unicodedata.category(character) == "Cf"


def clusters_of(text: str) -> list[str]:
    """The text in parts that are drawn together: a character, and the marks that stand on it."""
    clusters: list[str] = []
    for character in text:
        is_mark = unicodedata.category(character) in ("Mn", "Mc", "Me")
        is_skin_tone = 0x1F3FB <= ord(character) <= 0x1F3FF
        belongs_to_last = is_mark or is_skin_tone or is_invisible(character)
        if clusters and (belongs_to_last or clusters[-1].endswith(ZERO_WIDTH_JOINER)):
            clusters[-1] += character
        else:
            clusters.append(character)
    return clusters


def composed(name: str) -> str:
    """The name in Unicode's NFC: the form in which class names are kept and compared. A Mac stores
    accents apart from their letters.
    """
    return unicodedata.normalize("NFC", name)
