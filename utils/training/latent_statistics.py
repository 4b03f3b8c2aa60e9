"""Mean and standard deviation of each latent channel, which latents are normalised with."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from model.codecs import LatentCodec, frozen_autoencoder, images_per_call
from utils.console import Progress
from utils.data import ImageSet
from utils.data.image_set import stacked_pixels
from utils.data.split import lowest_numbers
from utils.devices import Precision
from utils.errors import UserError
from utils.ranks import Ranks
from utils.runs.autoencoders import StoredAutoencoder
from utils.training.state import TrainState

MOST_MEASURED = 10_000  # images, where the autoencoder is ready-made

# What encoding an image takes, as a share of a forward pass in a training step. It is always done
# in 32 bits, which steps in 16 are up to twice as fast as.
ENCODER_SHARE = 0.65
ENCODER_SHARE_OF_HALF = 1.1

Statistics = tuple[list[float], list[float]]  # mean and standard deviation of each channel


class LatentStatistics:
    """Called after the last step of an autoencoder's training: adds latents_mean and latents_std,
    over all training images, to the checkpoint's config.
    """

    def __init__(self, dataset: ImageSet, device: torch.device, ranks: Ranks):
        self.dataset = dataset
        self.device = device
        self.ranks = ranks

    def network_rows(self, precision: Precision) -> float:
        """How many forward passes of a training step take as long in each process, about."""
        share = ENCODER_SHARE if precision.dtype == torch.float32 else ENCODER_SHARE_OF_HALF
        return share * len(self.dataset) / self.ranks.world_size

    def __call__(self, state: TrainState, should_stop: Callable[[], bool]) -> bool:
        """All processes call it together. False where it was asked to stop.

        Raises ReadError where an image cannot be read.
        """
        found = latent_statistics(
            state.ema.network, self.dataset, self.device, self.ranks, should_stop
        )
        if found is None:
            return False
        state.config["latents_mean"], state.config["latents_std"] = found
        return True


def build_latent_codec(
    stored: StoredAutoencoder, dataset: ImageSet, device: torch.device, ranks: Ranks
) -> LatentCodec:
    """The codec of a stored autoencoder, on the device. Where the file does not say with which
    numbers to normalise its latents, they are measured on images of `dataset`.

    All processes call it together. Raises UserError for what does not fit.
    """
    try:
        network = frozen_autoencoder(stored.network, stored.weights)
        mean, std = stored.latents_mean, stored.latents_std
        if mean is None or std is None:
            some = dataset.subset(lowest_numbers(dataset.checksums, MOST_MEASURED))
            found = latent_statistics(network, some, device, ranks, lambda: False)
            assert found is not None  # nothing asks it to stop
            mean, std = found
        return LatentCodec(network, mean, std).to(device)
    except ValueError as error:
        raise UserError(f"{stored.source}: {error}") from None


def latent_statistics(
    network: torch.nn.Module,
    dataset: ImageSet,
    device: torch.device,
    ranks: Ranks,
    should_stop: Callable[[], bool],
) -> Statistics | None:
    """Mean and standard deviation of each channel of draws from the posteriors, over images and
    places; None where it was asked to stop. The processes of a run share the work, and call it
    together.

    Raises ReadError where an image cannot be read, and ValueError for images that the network does
    not take.
    """
    channels = int(network.latent_channels)  # type: ignore[arg-type]
    codec = LatentCodec(network, [0.0] * channels, [1.0] * channels).to(device)  # type: ignore[arg-type]
    _, height, width = codec.shape(dataset.image_size, dataset.channels)
    sums = torch.zeros(2, channels, dtype=torch.float64)  # of z and of z^2
    mine = range(ranks.rank, len(dataset), ranks.world_size)
    at_once = images_per_call(*dataset.image_size)
    longest = math.ceil(len(dataset) / ranks.world_size)  # of the processes' shares
    title = "statistics of the latents"
    with Progress(len(mine), title=title, leave=False, shown=ranks.is_main) as progress:
        for first in range(0, longest, at_once):
            if should_stop():
                return None
            places = mine[first : first + at_once]
            if len(places):
                sums += moment_sums(codec, stacked_pixels(dataset, places))
            progress.update(len(places))
    count = len(dataset) * height * width
    first_moment, second_moment = ranks.start_sum(sums).get() / count
    deviation = (second_moment - first_moment.square()).clamp(min=0).sqrt()
    return first_moment.tolist(), deviation.tolist()


def moment_sums(codec: LatentCodec, pixels: Tensor) -> Tensor:
    """(B,C,H,W) uint8 -> the sums of E[z] and of E[z^2] over images and places, (2,c) float64, on
    the CPU. z is drawn from the posterior: E[z^2] = mean^2 + variance.
    """
    mean, std = (moment.cpu().double() for moment in codec.posterior(pixels))
    return torch.stack([mean.sum((0, 2, 3)), (mean.square() + std.square()).sum((0, 2, 3))])
