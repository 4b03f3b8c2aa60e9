"""What an autoencoder's run measures and draws: held-out images decoded from their latents."""

from functools import partial

import torch
from torch import Tensor, nn

from model.codecs import PixelCodec
from model.samplers.base import evaluation_mode
from utils.data import ImageSet
from utils.data.split import Split
from utils.devices import Precision
from utils.evaluation.restoration import Convention
from utils.ranks import Ranks
from utils.training.evaluation import EvaluationPlan
from utils.training.restoration import (
    Originals,
    RestorationPreviews,
    RestorationScore,
    chosen_places,
)


@torch.no_grad()
def reconstructed(precision: Precision, network: nn.Module, pixels: Tensor) -> Tensor:
    """(B,C,H,W) uint8 -> the same, decoded from the mean of their latents, uint8 on the CPU."""
    codec = PixelCodec()
    with evaluation_mode(network), precision.autocast():
        x_hat, _, _ = network(codec.encode(pixels.to(precision.device)))
    return codec.decode(x_hat.float()).cpu()


def build_score(
    images: ImageSet,
    split: Split,
    plan: EvaluationPlan,
    convention: Convention,
    precision: Precision,
    ranks: Ranks,
) -> RestorationScore:
    """What measures an autoencoder. Raises ReadError where an image cannot be read."""
    held_out, training = chosen_places(split, images.checksums, plan.images)
    return RestorationScore(
        partial(reconstructed, precision),
        Originals.of(images, held_out),
        Originals.of(images, training),
        convention,
        ranks,
    )


def build_previews(
    images: ImageSet, split: Split, count: int, network: nn.Module, precision: Precision
) -> RestorationPreviews:
    """What draws `count` held-out images, or training images where none are held out."""
    held_out, training = chosen_places(split, images.checksums, count)
    chosen = Originals.of(images, held_out if len(held_out) else training)
    columns = {"original": chosen.targets}
    restore = partial(reconstructed, precision, network)
    return RestorationPreviews(restore, columns, chosen.inputs, "decoded", passes=1)
