"""ICC profiles made from numbers: for PNG files that describe their colours without a profile."""

import struct
from collections.abc import Callable

import numpy as np

Point = tuple[float, float]  # CIE 1931 x, y

WHITE_D65: Point = (0.3127, 0.3290)
WHITE_D50_XYZ = np.array([0.9642, 1.0, 0.8249])  # of the ICC profile connection space
SRGB_PRIMARIES: tuple[Point, Point, Point] = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
P3_PRIMARIES: tuple[Point, Point, Point] = ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))
BT2020_PRIMARIES: tuple[Point, Point, Point] = ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046))

BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)
CURVE_ENTRIES = 4096


def srgb_curve(value: np.ndarray) -> np.ndarray:
    """The sRGB transfer function: encoded 0..1 -> light 0..1."""
    dark = value / 12.92
    bright = ((value + 0.055) / 1.055) ** 2.4
    return np.where(value <= 0.04045, dark, bright)


def matrix_profile(
    primaries: tuple[Point, Point, Point],
    white: Point,
    curve: Callable[[np.ndarray], np.ndarray],
) -> bytes:
    """An ICC profile (version 2) of an RGB space.

    `curve` maps encoded values 0..1 to light 0..1. ValueError where the primaries span no space.
    """
    matrix = adapted_primaries(primaries, white)
    transfer = _sampled(curve)
    tags = [
        (b"rXYZ", _xyz(matrix[:, 0])),
        (b"gXYZ", _xyz(matrix[:, 1])),
        (b"bXYZ", _xyz(matrix[:, 2])),
        (b"rTRC", transfer),
        (b"gTRC", transfer),
        (b"bTRC", transfer),
    ]
    return _assemble(b"RGB ", tags)


def grey_profile(curve: Callable[[np.ndarray], np.ndarray]) -> bytes:
    """An ICC profile (version 2) of grey: `curve` maps encoded values 0..1 to light 0..1."""
    return _assemble(b"GRAY", [(b"kTRC", _sampled(curve))])


def adapted_primaries(primaries: tuple[Point, Point, Point], white: Point) -> np.ndarray:
    """(3,3) from linear RGB to XYZ, adapted from `white` to D50 by Bradford."""
    columns = [_xyz_of(point) for point in primaries]
    matrix = np.stack(columns, axis=1)
    white_xyz = _xyz_of(white)
    if abs(np.linalg.det(matrix)) < 1e-6:
        raise ValueError("the primaries lie on one line")
    matrix = matrix * np.linalg.solve(matrix, white_xyz)
    gains = (BRADFORD @ WHITE_D50_XYZ) / (BRADFORD @ white_xyz)
    adaptation = np.linalg.inv(BRADFORD) @ np.diag(gains) @ BRADFORD
    return adaptation @ matrix


def _xyz_of(point: Point) -> np.ndarray:
    x, y = point
    if y <= 0:
        raise ValueError("a chromaticity without luminance")
    return np.array([x / y, 1.0, (1 - x - y) / y])


def _xyz(values: np.ndarray) -> bytes:
    fixed = [round(float(value) * 65536) for value in values]
    return b"XYZ " + bytes(4) + struct.pack(">3i", *fixed)


def _sampled(curve: Callable[[np.ndarray], np.ndarray]) -> bytes:
    samples = curve(np.linspace(0, 1, CURVE_ENTRIES)).clip(0, 1)
    table = (samples * 65535).round().astype(">u2").tobytes()
    return b"curv" + bytes(4) + struct.pack(">I", CURVE_ENTRIES) + table


def _assemble(space: bytes, tags: list[tuple[bytes, bytes]]) -> bytes:
    """Header, table of tags, and the tags, each padded to four bytes."""
    name = b"numbers of a PNG file\0"
    about = [
        (b"desc", b"desc" + bytes(4) + struct.pack(">I", len(name)) + name + bytes(78)),
        (b"cprt", b"text" + bytes(4) + b"none\0"),
        (b"wtpt", _xyz(WHITE_D50_XYZ)),
    ]
    tags = about + tags
    header_size = 128 + 4 + 12 * len(tags)
    table = struct.pack(">I", len(tags))
    body = b""
    for name, data in tags:
        table += name + struct.pack(">II", header_size + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    start = b"none" + struct.pack(">I", 0x02100000) + b"mntr" + space + b"XYZ "
    start += struct.pack(">6H", 2020, 1, 1, 0, 0, 0) + b"acsp" + bytes(28)
    start += _xyz(WHITE_D50_XYZ)[8:]
    return struct.pack(">I", header_size + len(body)) + start.ljust(124, b"\0") + table + body
