"""Which files are images: by their ending, or by their content where the ending is unknown."""

import os
from functools import cache

from PIL import Image

from utils.data.silence import quiet_pillow

# What Pillow lists but does not decode to pixels by itself. PostScript would start Ghostscript, a
# program that runs what the file says, so it is never opened.
POSTSCRIPT = "EPS"
NOT_DECODED = frozenset({POSTSCRIPT, "BUFR", "GRIB", "HDF5", "MPEG", "WMF"})

# Raw files of cameras. Many are a TIFF whose first page is a thumbnail, so their content misleads.
RAW = "a raw file of a camera, of which the thumbnail alone would be read; save it as PNG"
RAW_ENDINGS = frozenset(".dng .cr2 .cr3 .nef .nrw .arw .orf .rw2 .raf .pef .srw".split())

REFUSED_ENDINGS = {
    **dict.fromkeys(sorted(RAW_ENDINGS), RAW),
    ".eps": "PostScript is not read, since that would start Ghostscript; save it as PNG",
    ".ps": "PostScript is not read, since that would start Ghostscript; save it as PNG",
    ".wmf": "a Windows metafile is a drawing, not pixels; save it as PNG",
    ".emf": "a Windows metafile is a drawing, not pixels; save it as PNG",
}
SIGNATURE_BYTES = 64
# Their first bytes are long enough that no other file has them by chance.
CLEAR_SIGNATURES = frozenset(
    {"AVIF", "BLP", "DDS", "GIF", "ICNS", "JPEG", "JPEG2000", "PNG", "PSD", "QOI", "TIFF", "WEBP"}
)


@cache
def readable_formats() -> tuple[str, ...]:
    """Names of the formats that the installed Pillow decodes without the help of a program."""
    Image.init()
    return tuple(name for name in Image.OPEN if name not in NOT_DECODED)


@cache
def image_endings() -> frozenset[str]:
    """The endings of these formats, in lower case with the dot."""
    formats = set(readable_formats()) | {"MPO"}
    endings = Image.registered_extensions().items()
    return frozenset(ending for ending, name in endings if name in formats)


def ending(name: str) -> str:
    """The ending of a file name in lower case with its dot, or ""."""
    return os.path.splitext(name)[1].lower()


def is_postscript(start: bytes) -> bool:
    return start.startswith((b"%!PS", b"\xc5\xd0\xd3\xc6"))


def content_is_image(path: str) -> bool:
    """Whether the content is that of a format that Pillow decodes.

    The first bytes tell; for a format without a signature (TGA and a few more), that the whole file
    decodes. An unreadable file counts as an image: reading it later says why it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(SIGNATURE_BYTES)
    except OSError:
        return True
    if is_postscript(start):
        return False
    for name in readable_formats():
        accept = Image.OPEN[name][1]
        if accept is None:
            if _opens(path, name, whole=True):
                return True
            continue
        if not _accepts(accept, start):
            continue
        if name in CLEAR_SIGNATURES or _opens(path, name):
            return True
    return False


def _opens(path: str, name: str, whole: bool = False) -> bool:
    """Whether the header makes sense (a text can begin like a PGM file), and
    with `whole` the pixels too.
    """
    try:
        with quiet_pillow(), Image.open(path, formats=[name]) as image:
            if whole:
                image.load()
            return True
    except Exception:  # Pillow's plugins raise what they like
        return False


def _accepts(accept, start: bytes) -> bool:
    try:
        answer = accept(start)
    except Exception:  # the tests of some formats fail on very short files
        return False
    return bool(answer) and not isinstance(answer, str)  # a string says why it cannot be decoded
