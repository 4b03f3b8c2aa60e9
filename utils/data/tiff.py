"""A TIFF file without the tags that its picture does not need."""

import io
import struct
from typing import BinaryIO

ENTRY_SIZE = 12
BYTE = 1
ICC_PROFILE = 34675
# Tags that say how the pixels are stored or shown; all others (texts, resolution, EXIF, XMP, GPS,
# private ones) are optional.
NEEDED = frozenset(
    {*range(254, 260), 262, 266, 273, 274, *range(277, 280), 284, 292, 293, 317, 320}
    | {*range(322, 326), *range(332, 335), *range(336, 342), 347, *range(512, 533), ICC_PROFILE}
)


def without_optional_parts(file: BinaryIO) -> io.BytesIO:
    """The file with the optional tags of its first page emptied. BigTIFF stays as it is."""
    file.seek(0)
    data = bytearray(file.read())
    order = "<" if data[:2] == b"II" else ">"
    try:
        (magic, start) = struct.unpack_from(order + "HI", data, 2)
        if magic == 42:
            _empty_optional_tags(data, start, order)
    except struct.error:  # breaks off in the list of tags
        pass
    return io.BytesIO(bytes(data))


def _empty_optional_tags(data: bytearray, start: int, order: str) -> None:
    (count,) = struct.unpack_from(order + "H", data, start)
    for number in range(count):
        place = start + 2 + ENTRY_SIZE * number
        (tag,) = struct.unpack_from(order + "H", data, place)
        if tag not in NEEDED:
            struct.pack_into(order + "HII", data, place + 2, BYTE, 1, 0)
