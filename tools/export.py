#!/usr/bin/env python3
"""Write a checkpoint's network for other programs.

    python tools/export.py results/mine/ema_last.pt mine_diffusers --format diffusers
    python tools/export.py weight/demo.pt boots --format diffusers --class_name boot
    python tools/export.py weight/demo.pt demo.safetensors --format safetensors
    python tools/export.py weight/demo.pt demo.onnx --format onnx

diffusers: a folder that DDPMPipeline and DDIMPipeline load. It is unconditional, so that of a network
with classes one is chosen and becomes part of the weights. safetensors: all weights under our names,
with the config in the header; our own scripts, but not the server, read it like the checkpoint. onnx:
the network as a graph, for any batch; it needs requirements-export.txt.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils import options as opt
from utils.class_names import label_of
from utils.options import Option, shared

# fmt: off
OPTIONS: opt.Table = {
    "what": [
        Option("weight",       None,        opt.path,           "the checkpoint"),
        Option("out",          None,        opt.path,           "file to write; with --format diffusers a folder, which must not be there yet"),
        Option("--format",     "diffusers", opt.EXPORT_FORMATS, "what is written"),
        shared("--class_name", None,        "with --format diffusers: the class that the pipeline draws"),
        shared("--use_ema", True),
    ],
}
# fmt: on


def build_parser() -> opt.Parser:
    return opt.make_parser(__doc__, OPTIONS)


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    if args.class_name is not None and args.format != "diffusers":
        raise opt.UserError("--class_name belongs to --format diffusers")
    if args.out.exists():
        raise opt.UserError(f"{args.out} exists: choose another name")
    if not args.out.parent.is_dir():
        raise opt.UserError(f"the folder {args.out.parent} does not exist")
    export(args)


def export(args) -> None:
    """Read the checkpoint and write what is asked for."""
    from utils.runs.checkpoint import Checkpoint

    checkpoint = Checkpoint.read(args.weight)
    checkpoint.check_unsteered()
    if checkpoint.config.get("codec", {}).get("name") == "joint":
        raise opt.UserError(
            f"{args.weight} makes images together with masks, which other programs do not know"
        )
    if args.format == "diffusers":
        from utils.exchange.to_diffusers import export_pipeline

        export_pipeline(checkpoint, args.out, chosen_label(args, checkpoint), args.use_ema)
    elif args.format == "safetensors":
        from utils.exchange.to_files import export_safetensors

        export_safetensors(checkpoint, args.out, args.use_ema)
    else:
        from utils.exchange.to_files import export_onnx

        export_onnx(checkpoint, args.out, args.use_ema)
    if checkpoint.guide is not None and args.format != "safetensors":
        opt.say("the guide that the weights hold stays behind")
    opt.say(f"{args.weight} as {args.format} in {args.out}")


def chosen_label(args, checkpoint) -> int | None:
    """The number of the class. Raises UserError for one that the network does not know."""
    if args.class_name is None:
        return None
    label = label_of(args.class_name, checkpoint.class_names)
    if label is None:
        known = opt.name_list(checkpoint.class_names) or "none"
        raise opt.UserError(f"--class_name {args.class_name!r} is unknown; known are {known}")
    return label


if __name__ == "__main__":
    opt.run_script(main)
