"""One image file, enlarged."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from utils.upscaling.output import Canvas, new_picture, reason_against
from utils.upscaling.source import Source
from utils.upscaling.upscaler import Upscaler


@dataclass
class Written:
    """What became of a picture."""

    path: Path
    size: tuple[int, int]  # (H, W)
    remarks: list[str] = field(default_factory=list)  # on what is not as it was in the source


def write_upscaled(source: Source, upscaler: Upscaler, wanted: Path, png: Path) -> Written:
    """Enlarge a picture into the file `wanted`, or into `png` where the format of that cannot hold
    it. UserError where the disk refuses it.
    """
    height, width = source.size
    canvas = Canvas(
        size=(height * upscaler.scale, width * upscaler.scale),
        channels=source.channels,
        depth=source.depth,
        profile=source.profile,
        exif=source.exif,
    )
    against = reason_against(wanted.suffix.lower(), canvas)
    path = png if against else wanted
    remarks = list(source.remarks)
    if against:
        remarks.append(f"written as PNG: {against}")

    def read(rows: slice, columns: slice) -> Tensor:
        window = source.samples[rows, columns].copy()
        return torch.from_numpy(window).permute(2, 0, 1)[None]

    with new_picture(path, canvas) as writer:
        for strip in upscaler.strips(read, source.size):
            writer.write(strip[0].permute(1, 2, 0).numpy())
    return Written(path, canvas.size, remarks)
