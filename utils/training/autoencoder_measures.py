"""What an autoencoder's run measures and draws: held-out images decoded from their latents, and at
its end the statistics of the latents.
"""

from functools import partial

import torch
from torch import Tensor, nn

from model.codecs import PixelCodec, images_per_call
from model.samplers.base import evaluation_mode
from utils.console import Progress
from utils.data import ImageSet
from utils.data.split import Split
from utils.devices import Precision
from utils.errors import ReadError
from utils.evaluation.restoration import Convention
from utils.ranks import Ranks
from utils.training.evaluation import EvaluationPlan
from utils.training.restoration import (
    Originals,
    RestorationPreviews,
    RestorationScore,
    chosen_places,
)
from utils.training.state import TrainState


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


class LatentStatistics:
    """Measures mean and standard deviation of each latent channel over the training images, of
    draws from the posterior, and adds them to the config as latents_mean and latents_std: what the
    latents are normalised with. The processes of a run share the work.
    """

    def __init__(self, dataset: ImageSet, precision: Precision, ranks: Ranks):
        self.dataset = dataset
        self.precision = precision
        self.ranks = ranks

    def __call__(self, state: TrainState) -> None:
        """All processes call it together. Raises ReadError where an image cannot be read."""
        network = state.ema.network
        channels = state.config["network"]["latent_channels"]
        sums = torch.zeros(2, channels, dtype=torch.float64)  # of z and of z^2
        mine = range(self.ranks.rank, len(self.dataset), self.ranks.world_size)
        at_once = images_per_call(*self.dataset.image_size)
        title = "statistics of the latents"
        with Progress(len(mine), title=title, leave=False, shown=self.ranks.is_main) as progress:
            for first in range(0, len(mine), at_once):
                pixels = self._pixels(mine[first : first + at_once])
                sums += moment_sums(network, pixels.to(self.precision.device))
                progress.update(len(pixels))
        height, width = self.dataset.image_size
        factor = int(network.downsample_factor)  # type: ignore[arg-type]
        count = len(self.dataset) * (height // factor) * (width // factor)
        first_moment, second_moment = self.ranks.start_sum(sums).get() / count
        variance = second_moment - first_moment.square()
        state.config["latents_mean"] = first_moment.tolist()
        state.config["latents_std"] = variance.sqrt().tolist()

    def _pixels(self, places: range) -> Tensor:
        items = [self.dataset[place] for place in places]
        for item in items:
            if isinstance(item, ReadError):
                raise item
        return torch.stack([item[0] for item in items])  # type: ignore[index]


@torch.no_grad()
def moment_sums(network: nn.Module, pixels: Tensor) -> Tensor:
    """(B,C,H,W) uint8 -> the sums of E[z] and of E[z^2] over images and places, (2,c) float64, on
    the CPU. z is drawn from the posterior: E[z^2] = mean^2 + variance.
    """
    with evaluation_mode(network):
        mean, logvar = network.encode(PixelCodec().encode(pixels))  # type: ignore[operator]
    mean, variance = mean.double().cpu(), logvar.double().exp().cpu()
    return torch.stack([mean.sum((0, 2, 3)), (mean.square() + variance).sum((0, 2, 3))])
