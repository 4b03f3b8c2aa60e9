"""One image file, enlarged."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from utils.upscaling.output import KINDS, Canvas, holds_exif, new_picture, reason_against
from utils.upscaling.source import Source
from utils.upscaling.upscaler import Upscaler


@dataclass
class Output:
    """What is to become of a picture."""

    path: Path
    canvas: Canvas
    remarks: list[str] = field(default_factory=list)  # on what will not be as it is in the source


def plan_output(source: Source, scale: int, wanted: Path, png: Path) -> Output:
    """The picture `scale` times as large in the file `wanted`, or in `png` where the format of that
    cannot hold it.
    """
    height, width = source.size
    canvas = Canvas(
        size=(height * scale, width * scale),
        channels=source.channels,
        depth=source.depth,
        profile=source.profile,
        exif=source.exif,
    )
    against = reason_against(wanted.suffix.lower(), canvas)
    if not against:
        kind = KINDS.get(wanted.suffix.lower())
        remarks = list(source.remarks)
        if source.exif and kind is not None and not holds_exif(kind, source.exif):
            remarks.append(f"its EXIF is left out: {wanted.suffix.lower()} cannot hold it")
        return Output(wanted, canvas, remarks)
    return Output(png, canvas, [*source.remarks, f"written as PNG: {against}"])


def write_upscaled(
    source: Source,
    upscaler: Upscaler,
    output: Output,
    after_strip: Callable[[int], object] = lambda rows: None,
) -> None:
    """Enlarge a picture into a file. `after_strip` is called with the number of rows that have been
    added. UserError where the disk refuses it.
    """

    def read(rows: slice, columns: slice) -> Tensor:
        window = source.samples[rows, columns].copy()
        return torch.from_numpy(window).permute(2, 0, 1)[None]

    with new_picture(output.path, output.canvas) as writer:
        for strip in upscaler.strips(read, source.size):
            writer.write(strip[0].permute(1, 2, 0).numpy())
            after_strip(strip.shape[-2])
