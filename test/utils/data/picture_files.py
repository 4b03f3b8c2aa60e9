"""Small image files made byte by byte, for tests of how they are read."""

import struct
import zlib

import numpy as np


def chunk(kind: bytes, data: bytes) -> bytes:
    checksum = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def png(rows: np.ndarray, depth: int, colour_type: int, *extra: bytes, after: bytes = b"") -> bytes:
    """`rows`: (H, bytes per row) uint8 of packed samples. `extra` stands before the pixels."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour_type]
    height, width = len(rows), rows.shape[1] * 8 // (depth * channels)
    packed = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    head = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    parts = [chunk(b"IHDR", head), *extra, chunk(b"IDAT", packed), after, chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff(
    data: bytes, width: int, bits: int, photometric: int = 1, sample_format: int = 1, order="<"
) -> bytes:
    """One channel, uncompressed, 8 rows."""
    numbers = [(256, 3, width), (257, 3, 8), (258, 3, bits), (259, 3, 1), (262, 3, photometric)]
    numbers += [(273, 4, 8), (277, 3, 1), (278, 3, 8), (279, 4, len(data)), (339, 3, sample_format)]
    entries = b""
    for tag, kind, value in numbers:
        entries += struct.pack(order + "HHI", tag, kind, 1)
        entries += struct.pack(order + ("HH" if kind == 3 else "I"), *([value, 0][: 5 - kind]))
    mark = b"II*\0" if order == "<" else b"MM\0*"
    table = struct.pack(order + "H", len(numbers)) + entries + bytes(4)
    return mark + struct.pack(order + "I", 8 + len(data)) + data + table


def _fixed(*values: float) -> bytes:
    return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))


def _profile(kind: bytes, space: bytes, pcs: bytes, tags: list[tuple[bytes, bytes]]) -> bytes:
    start = 132 + 12 * (len(tags) + 2)
    text = b"desc" + bytes(4) + struct.pack(">I", 5) + b"test\0" + bytes(78)
    tags = [(b"desc", text), (b"cprt", b"text" + bytes(4) + b"none\0"), *tags]
    table, body = struct.pack(">I", len(tags)), b""
    for name, data in tags:
        table += name + struct.pack(">II", start + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = b"test" + struct.pack(">I", 0x02100000) + kind + space + pcs
    head += struct.pack(">6H", 2020, 1, 1, 0, 0, 0) + b"acsp" + bytes(28)
    head += _fixed(0.9642, 1, 0.8249)
    return struct.pack(">I", start + len(body)) + head.ljust(124, b"\0") + table + body


def _gamma(gamma: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256))


def rgb_profile(columns: np.ndarray, gamma: float) -> bytes:
    """`columns`: (3,3), XYZ under D50 of red, green and blue, one after the other."""
    tags = [(b"wtpt", b"XYZ " + bytes(4) + _fixed(0.9642, 1, 0.8249))]
    for name, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), columns, strict=True):
        tags.append((name, b"XYZ " + bytes(4) + _fixed(*column)))
    tags += [(name, _gamma(gamma)) for name in (b"rTRC", b"gTRC", b"bTRC")]
    return _profile(b"mntr", b"RGB ", b"XYZ ", tags)


def grey_profile(gamma: float) -> bytes:
    white = b"XYZ " + bytes(4) + _fixed(0.9642, 1, 0.8249)
    return _profile(b"mntr", b"GRAY", b"XYZ ", [(b"wtpt", white), (b"kTRC", _gamma(gamma))])


def cmyk_profile() -> bytes:
    """A press whose inks are nothing like Pillow's: one grid of the 16 corners, in Lab."""
    corners = []
    for ink in np.ndindex(2, 2, 2, 2):
        cyan, magenta, yellow, key = ink
        lightness = 100 - 20 * cyan - 25 * magenta - 5 * yellow - 40 * key
        a, b = 30 * magenta - 20 * cyan, 40 * yellow - 30 * cyan
        corners += [round(lightness * 2.55), 128 + a, 128 + b]
    identity = bytes(range(256))
    lut = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + _fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
    lut += identity * 4 + bytes(corners) + identity * 3
    white = b"XYZ " + bytes(4) + _fixed(0.9642, 1, 0.8249)
    return _profile(b"prtr", b"CMYK", b"Lab ", [(b"wtpt", white), (b"A2B0", lut)])
