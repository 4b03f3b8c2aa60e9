"""What a network for classification sees in images, layer by layer: for a loss."""

import torch
from torch import Tensor, nn

from utils.errors import UserError
from utils.evaluation.features import (
    EFFICIENTNET_PACKAGE,
    IMAGENET_MEAN,
    IMAGENET_STD,
    INSTALL,
    MissingPackage,
    efficientnet_network,
    is_installed,
)


class PerceptualFeatures:
    """EfficientNet-Lite0's activations, with gradients to the images; its weights are frozen.

    Images keep their size, since a loss is about all their pixels.
    """

    def __init__(self, network: nn.Module, device: torch.device):
        self.network = network.eval().requires_grad_(False).to(device)
        self.mean = torch.tensor(IMAGENET_MEAN, device=device)[:, None, None]
        self.std = torch.tensor(IMAGENET_STD, device=device)[:, None, None]

    def __call__(self, images: Tensor) -> list[Tensor]:
        """(B,1,H,W) or (B,3,H,W) in [-1, 1] -> features (B,C_i,H_i,W_i) of five layers."""
        x = ((images + 1) / 2).expand(-1, 3, -1, -1)
        return self.network.activations((x - self.mean) / self.std)  # type: ignore[operator]


def perceptual_features(device: torch.device, channels: int) -> PerceptualFeatures:
    """The features of images with so many channels.

    MissingPackage where requirements-metrics.txt is not installed; UserError for other images than
    grey and colour ones.
    """
    if channels not in (1, 3):
        raise UserError(
            f"the feature loss is for images of 1 or 3 channels (grey or colour), not {channels}"
        )
    if not is_installed(EFFICIENTNET_PACKAGE):
        raise MissingPackage(
            f"the feature loss needs the package {EFFICIENTNET_PACKAGE}, which is not installed: "
            f"{INSTALL}"
        )
    return PerceptualFeatures(efficientnet_network(), device)
