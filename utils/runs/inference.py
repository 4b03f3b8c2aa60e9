"""From a checkpoint of any kind to the network that it describes."""

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
    try:
        # No memory for what a hostile file describes, before its tensors are seen to fit.
        with torch.device("meta"):
            network = build_network(checkpoint.config["network"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{checkpoint.source} describes no network that can be built: {error}"
        ) from None
    load_weights(network, weights, checkpoint.source, assign=True)
    check_finite(weights, checkpoint.source)
    return network.to(torch.get_default_dtype()).eval().requires_grad_(False)
