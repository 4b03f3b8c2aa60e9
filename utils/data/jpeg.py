"""A JPEG file without the parts that its picture does not need."""

import io
import re
import struct
from typing import BinaryIO

START_OF_IMAGE = b"\xff\xd8"
START_OF_SCAN = 0xDA
END_OF_IMAGE = 0xD9
WITHOUT_LENGTH = (0x00, 0x01, *range(0xD0, 0xD9))
NEXT_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # behind the packed pixels of a scan
APP0, APP2, APP14, APP15 = 0xE0, 0xE2, 0xEE, 0xEF  # JFIF, ICC profile, Adobe's kind of colours
COMMENT = 0xFE
PROFILE_MARK = b"ICC_PROFILE\0"
SHORTEST_PROFILE = len(PROFILE_MARK) + 2  # followed by the number of the part and of all parts


def is_jpeg(start: bytes) -> bool:
    return start.startswith(START_OF_IMAGE + b"\xff")


def scans_of(data: bytes) -> int:
    """How often a file goes over its picture: once, or as a progressive one several times."""
    scans = 0
    place = len(START_OF_IMAGE)
    while place + 4 <= len(data):
        if data[place] != 0xFF or data[place + 1] == 0xFF:  # padding, or damage
            place += 1
            continue
        marker = data[place + 1]
        if marker == END_OF_IMAGE:
            break
        if marker in WITHOUT_LENGTH:
            place += 2
            continue
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        if marker == START_OF_SCAN:
            scans += 1
            following = NEXT_MARKER.search(data, place)
            place = len(data) if following is None else following.start()
    return scans


def without_optional_parts(file: BinaryIO) -> io.BytesIO:
    """The file without EXIF, XMP, previews, comments and other optional segments.

    Kept are JFIF, the ICC profile, Adobe's mark (it says whether the colours are inverted) and all
    that is not optional.
    """
    file.seek(0)
    data = file.read()
    kept = [START_OF_IMAGE]
    place = len(START_OF_IMAGE)
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker == 0xFF:  # padding
            place += 1
            continue
        if marker == START_OF_SCAN:
            break
        (length,) = struct.unpack(">H", data[place + 2 : place + 4])
        segment = data[place : place + 2 + length]
        if not _is_optional(marker, segment[4:]):
            kept.append(segment)
        place += 2 + length
    kept.append(data[place:])
    return io.BytesIO(b"".join(kept))


def _is_optional(marker: int, content: bytes) -> bool:
    if marker in (APP0, APP14):
        return False
    if marker == APP2 and content.startswith(PROFILE_MARK):
        return len(content) < SHORTEST_PROFILE  # damaged
    return APP0 <= marker <= APP15 or marker == COMMENT
