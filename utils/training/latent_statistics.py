"""Mean and standard deviation of each latent channel, which latents are normalised with."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from model.codecs import (
    LatentCodec,
    PixelCodec,
    frozen_autoencoder,
    images_per_call,
    latent_shape,
)
from model.samplers.base import evaluation_mode
from utils.console import Progress
from utils.data import ImageSet
from utils.errors import ReadError, UserError
from utils.ranks import Ranks
from utils.runs.autoencoders import StoredAutoencoder
from utils.training.held_out import first_by_content
from utils.training.state import TrainState

MOST_MEASURED = 10_000  # images, where the autoencoder is ready-made


class LatentStatistics:
    """Called after the last step of an autoencoder's training: adds latents_mean and latents_std,
    over all training images, to the checkpoint's config.
    """

    def __init__(self, dataset: ImageSet, device: torch.device, ranks: Ranks):
        self.dataset = dataset
        self.device = device
        self.ranks = ranks

    def __call__(self, state: TrainState) -> None:
        """All processes call it together. Raises ReadError where an image cannot be read."""
        mean, std = latent_statistics(state.ema.network, self.dataset, self.device, self.ranks)
        state.config["latents_mean"] = mean
        state.config["latents_std"] = std


def build_latent_codec(
    stored: StoredAutoencoder, dataset: ImageSet, device: torch.device, ranks: Ranks
) -> LatentCodec:
    """The codec of a stored autoencoder, on the device. Where the file does not say with which
    numbers to normalise its latents, they are measured on the training images.

    All processes call it together. Raises UserError for what does not fit.
    """
    try:
        network = frozen_autoencoder(stored.network, stored.weights)
        latent_shape(network, dataset.image_size, dataset.channels)  # before the long work
        mean, std = stored.latents_mean, stored.latents_std
        if mean is None or std is None:
            some = dataset.subset(first_by_content(dataset, MOST_MEASURED))
            mean, std = latent_statistics(network.to(device), some, device, ranks)
        return LatentCodec(network, mean, std).to(device)
    except ValueError as error:
        raise UserError(f"{stored.source}: {error}") from None


def latent_statistics(
    network: nn.Module, dataset: ImageSet, device: torch.device, ranks: Ranks
) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel of draws from the posteriors, over images and
    places. The processes of a run share the work, and call it together.

    Raises ReadError where an image cannot be read.
    """
    sums = torch.zeros(2, cast(int, network.latent_channels), dtype=torch.float64)  # of z and z^2
    mine = range(ranks.rank, len(dataset), ranks.world_size)
    height, width = dataset.image_size
    at_once = images_per_call(height, width)
    title = "statistics of the latents"
    with Progress(len(mine), title=title, leave=False, shown=ranks.is_main) as progress:
        for first in range(0, len(mine), at_once):
            pixels = _pixels(dataset, mine[first : first + at_once])
            sums += moment_sums(network, pixels.to(device))
            progress.update(len(pixels))
    factor = cast(int, network.downsample_factor)
    count = len(dataset) * (height // factor) * (width // factor)
    first_moment, second_moment = ranks.start_sum(sums).get() / count
    deviation = (second_moment - first_moment.square()).sqrt()
    return first_moment.tolist(), deviation.tolist()


@torch.no_grad()
def moment_sums(network: nn.Module, pixels: Tensor) -> Tensor:
    """(B,C,H,W) uint8 -> the sums of E[z] and of E[z^2] over images and places, (2,c) float64, on
    the CPU. z is drawn from the posterior: E[z^2] = mean^2 + variance.
    """
    with evaluation_mode(network):
        mean, logvar = cast(Any, network).encode(PixelCodec().encode(pixels))
    mean, variance = mean.double().cpu(), logvar.double().exp().cpu()
    return torch.stack([mean.sum((0, 2, 3)), (mean.square() + variance).sum((0, 2, 3))])


def _pixels(dataset: ImageSet, places: range) -> Tensor:
    items: list[Any] = [dataset[place] for place in places]
    for item in items:
        if isinstance(item, ReadError):
            raise item
    return torch.stack([item[0] for item in items])
