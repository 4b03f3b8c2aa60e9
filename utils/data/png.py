"""A PNG file reduced to what its picture needs.

Pillow refuses a whole file for a damaged or very large chunk of text, profile or EXIF. Here the
chunks that hold the pixels are handed on as they are; of the others only those that decide how the
picture looks are read, and each of these may fail alone.
"""

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from utils.data.profiles import (
    BT2020_PRIMARIES,
    P3_PRIMARIES,
    SRGB_PRIMARIES,
    WHITE_D65,
    Point,
    grey_profile,
    matrix_profile,
    srgb_curve,
)

SIGNATURE = b"\x89PNG\r\n\x1a\n"
PIXEL_CHUNKS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})
SMALL_CHUNKS = frozenset({b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"cICP", b"iCCP", b"eXIf"})
TEXT_CHUNKS = frozenset({b"tEXt", b"zTXt", b"iTXt"})
TEXTS_WITH_ROTATION = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")
LARGEST_TEXT = 2**16  # bytes: a text with a rotation is short
LARGEST_PROFILE = 2**26  # bytes, unpacked: printers' profiles have a few megabytes
USUAL_GAMMA = 1 / 2.2
INSIGNIFICANT_GAMMA = 0.05  # relative; libpng's threshold: 1/2.2 stands for the curve of sRGB
INSIGNIFICANT_CHROMATICITY = 0.001
GREY, PALETTE, COLOUR_BIT = 0, 3, 2  # colour types

CICP_PRIMARIES = {1: SRGB_PRIMARIES, 9: BT2020_PRIMARIES, 12: P3_PRIMARIES}
CICP_LINEAR, CICP_GAMMA_22, CICP_GAMMA_28, CICP_PQ, CICP_HLG = 8, 4, 5, 16, 18

Curve = Callable[[np.ndarray], np.ndarray]  # encoded values 0..1 -> light 0..1

CHUNK_HEAD_BYTES = 8  # length and kind


@dataclass
class PngFacts:
    """What the chunks beside the pixels say."""

    file: io.BytesIO  # a PNG of the pixel chunks alone
    depth: int = 8  # bits per sample
    is_grey: bool = False  # without an alpha channel
    has_palette: bool = False
    has_colour: bool = True
    key: tuple[int, ...] | None = None  # the transparent sample or samples, in the file's own range
    profile: bytes | None = None  # ICC
    exif: bytes | None = None


def is_png(start: bytes) -> bool:
    return start.startswith(SIGNATURE)


def read_png(source: BinaryIO) -> PngFacts:
    """Read the chunks. ValueError where the colours are those of a high-dynamic-range screen."""
    kept = io.BytesIO()
    kept.write(SIGNATURE)
    facts = PngFacts(kept)
    small: dict[bytes, bytes] = {}
    source.seek(len(SIGNATURE))
    for kind, data, whole, is_intact in _chunks(source):
        if kind in SMALL_CHUNKS and is_intact:
            small.setdefault(kind, data)
        if kind == b"tRNS":  # a key is read here, since Pillow mistakes it below and above 8 bits
            is_needed = is_intact and facts.has_palette
        else:
            is_needed = kind in PIXEL_CHUNKS
        if is_needed:
            kept.write(whole)
        if kind in TEXT_CHUNKS and is_intact and _is_short_text(kind, data):
            kept.write(whole)
        if kind == b"IHDR" and len(data) == 13:
            facts.depth = data[8]
            facts.is_grey = data[9] == GREY
            facts.has_palette = data[9] == PALETTE
            facts.has_colour = bool(data[9] & COLOUR_BIT)
    kept.seek(0)
    if not facts.has_palette:
        facts.key = _transparent_key(small.get(b"tRNS", b""), facts)
    facts.profile = _profile(small, facts.has_colour)
    facts.exif = small.get(b"eXIf")
    return facts


def _chunks(source: BinaryIO) -> Iterator[tuple[bytes, bytes, bytes, bool]]:
    """(kind, data, all bytes, whether the checksum is right); the data of unused chunks is empty.

    A file that breaks off inside a chunk hands on what is there: Pillow then says what is missing.
    """
    while True:
        head = source.read(CHUNK_HEAD_BYTES)
        if len(head) < CHUNK_HEAD_BYTES:
            return
        length, kind = struct.unpack(">I4s", head)
        if kind in PIXEL_CHUNKS or kind in SMALL_CHUNKS or kind in TEXT_CHUNKS:
            data = source.read(length)
            checksum = source.read(4)
            is_intact = struct.pack(">I", zlib.crc32(kind + data)) == checksum
            yield kind, data, head + data + checksum, is_intact
        else:
            source.seek(length + 4, io.SEEK_CUR)
        if kind == b"IEND":
            return


def _is_short_text(kind: bytes, data: bytes) -> bool:
    """Whether a text can hold a rotation, and stays short when it is unpacked."""
    if len(data) > LARGEST_TEXT or not data.startswith(TEXTS_WITH_ROTATION):
        return False
    if data.startswith(TEXTS_WITH_ROTATION[1]):
        is_compressed = data[len(TEXTS_WITH_ROTATION[1]) :][:1] != b"\0"
        return not is_compressed
    if kind == b"tEXt":
        return True
    return _unpacked(data[len(TEXTS_WITH_ROTATION[0]) + 1 :], LARGEST_TEXT) is not None


def _unpacked(data: bytes, limit: int) -> bytes | None:
    """zlib data of at most `limit` bytes; None where it is damaged or larger."""
    unpacker = zlib.decompressobj()
    try:
        unpacked = unpacker.decompress(data, limit)
    except zlib.error:
        return None
    return None if unpacker.unconsumed_tail else unpacked


def _transparent_key(data: bytes, facts: PngFacts) -> tuple[int, ...] | None:
    """The key of a grey or RGB picture. A palette's alpha values are Pillow's business."""
    samples = 1 if facts.is_grey else 3
    if len(data) != 2 * samples:
        return None
    largest = 2**facts.depth - 1  # higher bits mean nothing, says the specification
    return tuple(value & largest for value in struct.unpack(f">{samples}H", data))


def _profile(small: dict[bytes, bytes], has_colour: bool) -> bytes | None:
    """The ICC profile that the chunks stand for, in the order of the PNG specification: cICP, iCCP,
    sRGB, then gAMA and cHRM. None for sRGB, and where nothing is said.
    """
    if len(small.get(b"cICP", b"")) == 4:
        space, transfer = small[b"cICP"][:2]
        curve = _cicp_curve(transfer)
        if space in CICP_PRIMARIES:
            return _made_profile(CICP_PRIMARIES[space], WHITE_D65, curve, has_colour)
    if b"iCCP" in small:
        packed = small[b"iCCP"].partition(b"\0")[2][1:]
        profile = _unpacked(packed, LARGEST_PROFILE)
        if profile:
            return profile
    if b"sRGB" in small:
        return None
    curve = _gamma_curve(small.get(b"gAMA", b""))
    white, primaries = _chromaticities(small.get(b"cHRM", b""))
    return _made_profile(primaries, white, curve, has_colour)


def _made_profile(
    primaries: tuple[Point, Point, Point], white: Point, curve: Curve, has_colour: bool
) -> bytes | None:
    """None for sRGB itself, and where the chromaticities span no space."""
    if curve is srgb_curve and (primaries is SRGB_PRIMARIES or not has_colour):
        return None
    if not has_colour:
        return grey_profile(curve)
    try:
        return matrix_profile(primaries, white, curve)
    except ValueError:
        return None


def _cicp_curve(transfer: int) -> Curve:
    """Video curves count as that of sRGB, as in browsers. ValueError for those of HDR screens."""
    if transfer in (CICP_PQ, CICP_HLG):
        raise ValueError(
            "the file is for a high-dynamic-range screen (PQ or HLG), and how it looks in sRGB is "
            "not defined; save it in sRGB"
        )
    powers = {CICP_LINEAR: 1.0, CICP_GAMMA_22: 2.2, CICP_GAMMA_28: 2.8}
    return _power_curve(powers[transfer]) if transfer in powers else srgb_curve


def _gamma_curve(chunk: bytes) -> Curve:
    """What gAMA says, as browsers apply it."""
    if len(chunk) != 4:
        return srgb_curve
    gamma = struct.unpack(">I", chunk)[0] / 100_000
    if gamma <= 0 or abs(gamma / USUAL_GAMMA - 1) <= INSIGNIFICANT_GAMMA:
        return srgb_curve
    return _power_curve(1 / gamma)


def _power_curve(power: float) -> Curve:
    return lambda value: value**power


def _chromaticities(chunk: bytes) -> tuple[Point, tuple[Point, Point, Point]]:
    """White and primaries as cHRM gives them; those of sRGB where it says nothing else."""
    if len(chunk) == 32:
        numbers = [number / 100_000 for number in struct.unpack(">8I", chunk)]
        points: list[Point] = list(zip(numbers[::2], numbers[1::2], strict=True))
        if _differs(points, [WHITE_D65, *SRGB_PRIMARIES]):
            return points[0], (points[1], points[2], points[3])
    return WHITE_D65, SRGB_PRIMARIES


def _differs(points: list[Point], others: list[Point]) -> bool:
    for (x, y), (other_x, other_y) in zip(points, others, strict=True):
        if max(abs(x - other_x), abs(y - other_y)) > INSIGNIFICANT_CHROMATICITY:
            return True
    return False
