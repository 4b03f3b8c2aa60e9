"""The autoencoder that a latent diffusion uses: from a checkpoint or a folder of diffusers."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from model.codecs import weights_hash
from model.networks import build_network
from model.networks.autoencoder import Autoencoder
from utils.errors import UserError
from utils.runs.checkpoint import Checkpoint
from utils.runs.diffusers_autoencoder import CONFIG, read_diffusers_autoencoder
from utils.runs.names import SLIM
from utils.runs.weights import check_finite, check_fit, check_tensors

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

    @property
    def downsample_factor(self) -> int:
        return 2 ** (len(self.network["block_out_channels"]) - 1)

    @property
    def hash(self) -> str:
        return weights_hash(self.weights, self.network)

    def config(self) -> dict:
        """What is known of the codec, as a checkpoint's config has it."""
        return {"name": "latents", "network": self.network, "hash": self.hash}


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
    if path.exists() and (path.parent / CONFIG).exists() and path.name != SLIM:
        if path.name == CONFIG or path.name.startswith("diffusion_pytorch_model"):
            raise UserError(f"{path} is a part of a folder of diffusers; name the folder itself")
    checkpoint = Checkpoint.read(path)
    checkpoint.check_kind(KIND)
    found = checkpoint.ema or checkpoint.network
    if not found:
        raise UserError(f"{path} holds no weights")
    return _checked(
        StoredAutoencoder(
            checkpoint.config["network"],
            found,
            path,
            checkpoint.config.get("latents_mean"),
            checkpoint.config.get("latents_std"),
        )
    )


def autoencoder_within(checkpoint: Checkpoint) -> StoredAutoencoder | None:
    """That of a diffusion on latents; None for one on pixels, and where it is not in the file.

    Raises UserError for one that is damaged.
    """
    codec = checkpoint.config.get("codec", {})
    if codec.get("name") != "latents" or checkpoint.codec is None:
        return None
    return _checked(
        StoredAutoencoder(
            codec["network"],
            checkpoint.codec,
            checkpoint.source,
            codec["latents_mean"],
            codec["latents_std"],
        )
    )


def _checked(stored: StoredAutoencoder) -> StoredAutoencoder:
    """The same, with a config that describes an autoencoder, and weights that fit it. UserError
    where that is not so.
    """
    source = stored.source
    try:
        with torch.device("meta"):  # no memory for what a hostile file describes
            network = build_network(stored.network)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{source} describes no autoencoder that can be built: {error}") from None
    if not isinstance(network, Autoencoder):
        raise UserError(f"{source} describes a {stored.network['name']}, not an autoencoder")
    check_tensors(stored.weights, source)
    check_fit(network, stored.weights, source)
    check_finite(stored.weights, source)
    return replace(stored, network=network.config)
