#!/usr/bin/env python3
"""Enlarge images with a trained upscaler: a file, or a folder with all that lies below it.

    python tools/upscale.py photo.jpg large.jpg                                  # with the weights shipped here
    python tools/upscale.py photos larger                                        # a folder; again: the new ones only
    python tools/upscale.py photos larger --weight_path results/sr/ema_last.pt   # with your own
    python tools/upscale.py photo.jpg large.png --tile 64                        # with less memory

The picture stays what it is: grey or colour, 8 or 16 bits, opacity, colour profile and EXIF are kept.
"""

import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils import options as opt
from utils.options import Option, shared

# fmt: off
OPTIONS: opt.Table = {
    "what": [
        Option("in",             None,                     opt.path,    "image file, or folder of images"),
        Option("out",            None,                     opt.path,    "file or folder for the results; of a folder, each has the name it has in IN"),
        shared("--weight_path", "weight/upscaler_x2.pt", "checkpoint of an upscaler: a run's ckpt_*.pt or ema_last.pt"),
        shared("--use_ema", True),
    ],
    "output": [
        shared("--image_format", None, "file format of the results; not set: that of each image, PNG where it cannot hold the result"),
        Option("--recompute",    False,                    opt.switch,  "make all results anew, also where files of their names are there"),
    ],
    "machine": [
        Option("--tile",         None,                     opt.natural, "side of the tiles that an image is cut into, in its pixels; 0: none; not set: with what they see around them about 256 (scale 3: 224, scale 4: 192)"),
        shared("--amp --fp16", False),
        shared("--use_gpu", 0),
    ],
}
# fmt: on

MADE, SKIPPED, FAILED = "made", "skipped", "failed"  # what became of an image


def build_parser() -> opt.Parser:
    return opt.make_parser(__doc__, OPTIONS)


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    signal.signal(signal.SIGTERM, stop)
    source = getattr(args, "in")  # a word of Python
    if not source.exists():
        raise opt.UserError(f"IN {source} does not exist; name an image or a folder of images")
    ending = f".{args.image_format}" if args.image_format else None
    if source.is_dir():
        from utils.upscaling.folder import FolderJobs

        upscale_folder(args, FolderJobs(source, args.out, ending))
    elif not source.is_file():
        raise opt.UserError(f"IN {source} is neither a file nor a folder; name an image")
    else:
        from utils.upscaling.folder import single_job

        upscale_file(args, single_job(source, args.out, ending))


def stop(number: int, frame) -> None:
    """On SIGTERM: end as after Ctrl-C, without leaving half a file."""
    sys.exit(128 + number)


def open_upscaler(args):
    """The network of --weight_path. Raises UserError for a checkpoint of another kind."""
    from utils.devices import choose_device, choose_precision
    from utils.ranks import Ranks
    from utils.runs.checkpoint import Checkpoint
    from utils.upscaling import Upscaler

    checkpoint = Checkpoint.read(args.weight_path)
    precision, remark = choose_precision(args.amp, choose_device(args.use_gpu, Ranks()))
    upscaler = Upscaler.from_checkpoint(checkpoint, precision, args.use_ema, args.tile)
    if remark:
        opt.say(f"warning: {remark}")
    return upscaler


# --- One image ---


def upscale_file(args, job) -> None:
    """Raises UserError where the image cannot be read, or the result not be written."""
    from utils.upscaling.file import plan_output, write_upscaled

    source, why = read(job)
    if source is None:
        raise opt.UserError(f"IN {job.source} cannot be enlarged: {why}")
    upscaler = open_upscaler(args)
    output = plan_output(source, upscaler.scale, job.wanted, job.png)
    if output.path.exists() and not args.recompute:
        raise opt.UserError(
            f"OUT {output.path} is there already: --recompute replaces it; for several images name "
            "their folder"
        )
    height, width = output.canvas.size
    with opt.Progress(height, title="upscaling", unit="row", leave=False) as progress:
        write_upscaled(source, upscaler, output, progress.update)
    for remark in output.remarks:
        opt.say(f"warning: {job.shown}: {remark}")
    opt.say(f"{width} x {height} pixels in {output.path}")


def read(job):
    """(what the file holds, "") or (None, why it cannot be read)."""
    from utils.data.reading import why_unreadable
    from utils.upscaling.source import read_source

    try:
        return read_source(job.source), ""
    except MemoryError:  # not the image's fault
        raise
    except Exception as error:  # Pillow's plugins raise what they like on damaged files
        return None, why_unreadable(error, job.source.name)


# --- A folder ---


def upscale_folder(args, jobs) -> None:
    """Every image of the folder; a broken one is named, and the others are done."""
    from utils.upscaling.output import remove_half_files

    upscaler = open_upscaler(args)
    for line in jobs.account.lines("IN"):
        opt.say(f"warning: {line}")
    if jobs.results_left_out:
        opt.say(f"{jobs.results_left_out:,} images of IN lie in OUT and are left out")
    remove_half_files(args.out)
    remarks = Remarks()
    counts = dict.fromkeys((MADE, SKIPPED, FAILED), 0)
    with opt.Progress(len(jobs), title="upscaling", unit="image") as progress:
        for job in jobs:
            counts[upscale_one(args, job, upscaler, remarks)] += 1
            progress.update()
    for line in remarks.lines():
        opt.say(f"warning: {line}")
    parts = [f"{counts[MADE]:,} images in {args.out}, {upscaler.scale} times as large"]
    if counts[SKIPPED]:
        parts.append(
            f"{counts[SKIPPED]:,} were there already, made by whatever weights (--recompute makes them anew)"
        )
    opt.say("; ".join(parts))
    if counts[FAILED]:
        total = f"{counts[FAILED]:,} of {len(jobs):,}"
        opt.say(f"error: {total} images could not be enlarged", error=True)
        sys.exit(1)


def upscale_one(args, job, upscaler, remarks: "Remarks") -> str:
    """MADE, SKIPPED or FAILED. Raises UserError where the result cannot be written."""
    from utils.upscaling.file import plan_output, write_upscaled

    if not args.recompute and job.has_result(job.wanted, upscaler.scale):
        return SKIPPED
    source, why = read(job)
    if source is None:
        opt.say(f"error: {job.shown} cannot be enlarged: {why}", error=True)
        return FAILED
    output = plan_output(source, upscaler.scale, job.wanted, job.png)
    remarks.add(job.shown, output.remarks)
    if not args.recompute and output.path.exists():
        if job.has_result(output.path, upscaler.scale):
            return SKIPPED
        opt.say(
            f"error: {job.shown} is left out: {output.path} is there, of another size or older than "
            "the image; --recompute replaces it",
            error=True,
        )
        return FAILED
    write_upscaled(source, upscaler, output)
    return MADE


class Remarks:
    """What is said of several images, said once."""

    SHOWN = 3  # names for each remark

    def __init__(self) -> None:
        self._names: dict[str, list[str]] = {}

    def add(self, name: str, remarks: list[str]) -> None:
        for remark in remarks:
            self._names.setdefault(remark, []).append(name)

    def lines(self) -> list[str]:
        return [
            f"{opt.name_list(names, self.SHOWN)}: {remark}" for remark, names in self._names.items()
        ]


if __name__ == "__main__":
    opt.run_script(main)
