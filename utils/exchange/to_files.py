"""A checkpoint's network as one file: safetensors or ONNX."""

import contextlib
import importlib.util
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from utils.errors import UserError
from utils.runs import safetensors
from utils.runs.checkpoint import Checkpoint
from utils.runs.exported import to_exported
from utils.runs.inference import inference_network

ONNX_PACKAGES = ("onnx", "onnxscript")
INSTALL = "pip install -r requirements-export.txt"
BATCH = 2  # of the example that the graph is made from; any other works too


def export_safetensors(checkpoint: Checkpoint, file: Path, use_ema: bool = True) -> None:
    """All weights that images are made with, and in the header what they are for; see
    `utils.runs.exported`.
    """
    weights, metadata = to_exported(checkpoint, use_ema)
    safetensors.write(weights, file, metadata)


@contextlib.contextmanager
def whole_or_nothing(parent: Path) -> Iterator[Path]:
    """A folder to write into, whose contents then come to lie in `parent`; where the disk is full,
    or Ctrl-C is pressed, nothing is left.
    """
    with tempfile.TemporaryDirectory(prefix=".export-", dir=parent) as half:
        yield Path(half)
        for made in Path(half).iterdir():
            made.rename(parent / made.name)


class _Call(nn.Module):
    """A network as a graph takes it: inputs that are always there."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        return self.network(x, t, labels)


class _CallWithoutLabels(_Call):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:  # type: ignore[override]
        return self.network(x, t)


def export_onnx(checkpoint: Checkpoint, file: Path, use_ema: bool = True) -> None:
    """The network as an ONNX graph: x (B,C,H,W) at the size of training, t (B,) and, where it has
    classes, labels (B,), of which the number of classes is the null label -> prediction (B,C,H,W).

    Raises UserError where a package is missing, for a checkpoint of another kind, and for networks
    that are told numbers.
    """
    checkpoint.check_kind("diffusion")
    if checkpoint.numbers:
        raise UserError(
            f"{checkpoint.source} learned numbers, which a graph is not told: --format safetensors "
            "keeps all"
        )
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"--format onnx needs {' and '.join(missing)}: {INSTALL}")
    network = inference_network(checkpoint, use_ema)
    config = cast(dict, network.config)
    height, width = checkpoint.image_size
    factor = 1
    if "codec" in checkpoint.config and checkpoint.config["codec"]["name"] == "latents":
        channels = checkpoint.config["codec"]["network"]["block_out_channels"]
        factor = 2 ** (len(channels) - 1)
    example: tuple[Tensor, ...] = (
        torch.zeros(BATCH, config["in_channels"], height // factor, width // factor),
        torch.zeros(BATCH, dtype=torch.long),
    )
    names = ["x", "t"]
    call: nn.Module = _CallWithoutLabels(network)
    if config["num_classes"] is not None:
        call = _Call(network)
        example = (*example, torch.zeros(BATCH, dtype=torch.long))
        names.append("labels")
    batch = torch.export.Dim("batch")
    with whole_or_nothing(file.parent) as half:
        torch.onnx.export(
            call.eval(),
            example,
            str(half / file.name),  # its name is in it, where its numbers are a file of their own
            input_names=names,
            output_names=["prediction"],
            dynamic_shapes=tuple({0: batch} for _ in example),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
