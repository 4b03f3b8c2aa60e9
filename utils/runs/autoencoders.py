"""The autoencoder that a latent diffusion uses: from a checkpoint or a folder of diffusers."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from utils.errors import UserError
from utils.runs.checkpoint import Checkpoint
from utils.runs.diffusers_autoencoder import read_diffusers_autoencoder
from utils.runs.files import SLIM
from utils.runs.weights import check_finite, check_tensors

KIND = "autoencoder"


@dataclass
class StoredAutoencoder:
    """An autoencoder as it lies in a file."""

    network: dict  # for build_network
    weights: dict[str, Tensor]
    source: Path | str
    latents_mean: list[float] | None = None  # of each channel; None: the file does not say
    latents_std: list[float] | None = None

    @property
    def in_channels(self) -> int:
        return self.network["in_channels"]


def read_autoencoder(path: Path) -> StoredAutoencoder:
    """From a checkpoint of train_autoencoder.py, or a folder of diffusers' AutoencoderKL.

    Raises UserError for anything else.
    """
    if path.is_dir():
        slim = path / SLIM
        if slim.exists():
            raise UserError(f"{path} is the folder of a run; name a file in it, such as {slim}")
        config, weights = read_diffusers_autoencoder(path)
        return StoredAutoencoder(config, weights, path)
    checkpoint = Checkpoint.read(path)
    checkpoint.check_kind(KIND)
    weights = checkpoint.weights()
    check_tensors(weights, path)
    check_finite(weights, path)
    return StoredAutoencoder(
        checkpoint.config["network"],
        weights,
        path,
        checkpoint.config.get("latents_mean"),
        checkpoint.config.get("latents_std"),
    )


def autoencoder_within(checkpoint: Checkpoint) -> StoredAutoencoder | None:
    """That of a diffusion on latents; None for one on pixels. UserError where it is missing."""
    codec = checkpoint.config.get("codec", {})
    if codec.get("name") != "latents":
        return None
    if checkpoint.codec is None:
        raise UserError(f"{checkpoint.source} does not hold the autoencoder of its latents")
    return StoredAutoencoder(
        codec["network"],
        checkpoint.codec,
        checkpoint.source,
        codec["latents_mean"],
        codec["latents_std"],
    )
