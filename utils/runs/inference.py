"""From a checkpoint of any kind to the network that it describes."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from model.networks import build_network
from utils.errors import UserError
from utils.runs.checkpoint import Checkpoint
from utils.runs.weights import check_finite, load_weights


def inference_network(checkpoint: Checkpoint, use_ema: bool = True) -> nn.Module:
    """The network that a checkpoint's metadata describes, with its EMA or its raw weights, in
    evaluation mode, on the CPU. Raises UserError for what cannot be built or does not fit.
    """
    weights = checkpoint.weights(use_ema)
    # No memory for what a hostile file describes, before its tensors are seen to fit.
    network = network_without_weights(checkpoint.config["network"], checkpoint.source)
    load_weights(network, weights, checkpoint.source, assign=True)
    check_finite(weights, checkpoint.source)
    return network.to(torch.get_default_dtype()).eval().requires_grad_(False)


def guide_network(checkpoint: Checkpoint) -> nn.Module:
    """The same with the weights of the guide that it holds."""
    return inference_network(replace(checkpoint, ema=checkpoint.guide))


def network_without_weights(config: dict, source: Path | str) -> nn.Module:
    """The network of a config from a file, on the meta device, where it takes no memory.

    Raises UserError for what cannot be built.
    """
    try:
        with torch.device("meta"):
            return build_network(config)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{source} describes no network that can be built: {error}") from None
