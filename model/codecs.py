"""From images to what the diffusion sees, and back: the pixels, or latents of an autoencoder."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from model.autocast import without_autocast
from model.blended_tiles import in_tiles
from model.networks import AUTOENCODERS, build_network, check_image_size
from model.networks.autoencoder import Autoencoder

HALF_RANGE = 127.5  # of 8-bit pixels
HALF_RANGE_16 = 32767.5

# In pixels. One call of an autoencoder takes no more of them than such a tile has, so that its
# memory is bounded: of small images many, and of a larger image a tile. With the network of Stable
# Diffusion in float32 that is about 1 GB.
TILE_SIDE = 512
TILE_OVERLAP = 128
HASH_DIGITS = 16
LARGEST_NUMBER = 1e30  # of a mean or deviation, and of its inverse: float32 ends at 3e38


class PixelCodec:
    """8-bit pixels 0..255 <-> numbers in [-1, 1]. The diffusion sees the pixels themselves."""

    name = "pixels"
    downsample_factor = 1  # what a side of the image is divided by
    is_bounded = True  # in [-1, 1], so that an estimate of x0 may be clipped

    def __init__(self) -> None:
        self.config: dict[str, Any] = {"name": self.name}

    def shape(self, image_size: tuple[int, int], channels: int) -> tuple[int, int, int]:
        """(C,H,W) of what the diffusion sees of an image."""
        return (channels, *image_size)

    def encode(self, pixels: Tensor) -> Tensor:
        """(B,C,H,W) uint8 -> (B,C,H,W) float in [-1, 1]."""
        return pixels.to(torch.get_default_dtype()) / HALF_RANGE - 1

    def decode(self, x: Tensor) -> Tensor:
        """(B,C,H,W) float -> (B,C,H,W) uint8: clamped first, so that nothing wraps."""
        return ((x.clamp(-1, 1) + 1) * HALF_RANGE).round().to(torch.uint8)

    def to(self, device: torch.device | str) -> "PixelCodec":
        """Itself: it works on any device."""
        return self


class Grey16Codec(PixelCodec):
    """Grey of 16 bits, 0..65535, as its high and its low byte <-> numbers in [-1, 1]."""

    name = "grey16"

    def shape(self, image_size: tuple[int, int], channels: int) -> tuple[int, int, int]:
        return (1, *image_size)

    def encode(self, pixels: Tensor) -> Tensor:
        """(B,2,H,W) uint8 -> (B,1,H,W) float in [-1, 1]."""
        high, low = pixels.to(torch.get_default_dtype()).split(1, dim=1)
        return (256 * high + low) / HALF_RANGE_16 - 1

    def decode(self, x: Tensor) -> Tensor:
        """(B,1,H,W) float -> (B,2,H,W) uint8: clamped first, so that nothing wraps."""
        levels = ((x.clamp(-1, 1) + 1) * HALF_RANGE_16).round().to(torch.int32)
        return torch.cat([levels // 256, levels % 256], dim=1).to(torch.uint8)


class JointCodec(PixelCodec):
    """8-bit pixels and a label map of them, made together: behind the numbers of the image lies one
    for each label, 1 where a pixel has it and -1 elsewhere (Chen et al. 2208.04202 call such
    numbers analog).
    """

    name = "joint"

    def __init__(self, image_channels: int, values: Sequence[int]):
        """`values`: the labels' numbers, 0..255, ascending. Raises ValueError."""
        values = list(values)
        are_labels = all(type(value) is int and 0 <= value <= 255 for value in values)
        if not are_labels or len(values) < 2 or sorted(set(values)) != values:
            raise ValueError(
                f"labels are at least 2 ascending numbers from 0 to 255, not {values!r:.80}"
            )
        if type(image_channels) is not int or image_channels not in (1, 3, 4):
            raise ValueError(f"images with masks have 1, 3 or 4 channels, not {image_channels}")
        self.image_channels = image_channels
        self.values = values
        self._tables: dict[torch.device, Tensor] = {}  # of the values, copied to a device once
        self.config = {"name": self.name, "image_channels": image_channels, "values": values}

    def shape(self, image_size: tuple[int, int], channels: int) -> tuple[int, int, int]:
        return (self.image_channels + len(self.values), *image_size)

    def encode(self, pixels: Tensor) -> Tensor:
        """(B,C+1,H,W) uint8, the label map behind the image -> (B,C+K,H,W) float in [-1, 1]."""
        image = super().encode(pixels[:, : self.image_channels])
        values = self._table(pixels.device).view(1, -1, 1, 1)
        has_label = pixels[:, self.image_channels :] == values
        return torch.cat([image, 2 * has_label.to(image) - 1], dim=1)

    def decode(self, x: Tensor) -> Tensor:
        """(B,C+K,H,W) float -> the image alone, (B,C,H,W) uint8."""
        return super().decode(x[:, : self.image_channels])

    def decode_masks(self, x: Tensor) -> Tensor:
        """(B,C+K,H,W) float -> the number of each pixel's label, (B,1,H,W) uint8."""
        places = x[:, self.image_channels :].argmax(1, keepdim=True)
        return self._table(x.device)[places]

    def _table(self, device: torch.device) -> Tensor:
        if device not in self._tables:
            self._tables[device] = torch.tensor(self.values, dtype=torch.uint8, device=device)
        return self._tables[device]


class LatentCodec:
    """8-bit pixels 0..255 <-> an autoencoder's latents, each channel with mean 0 and standard
    deviation 1 over the training images.

    latents_mean, latents_std: of each channel of draws from the posteriors, as the network gives
    them. The network is frozen and computes in the numbers of its own weights (on GPUs perhaps in
    TF32); what goes in and comes out is in torch's default ones. An image with more than 512 x 512
    pixels is worked on in tiles. That is an approximation: the network's group norms and its
    attention see the tile, no longer the whole image. Raises ValueError for means and deviations
    that are none.
    """

    name = "latents"
    is_bounded = False  # nothing may clip an estimate of x0

    def __init__(
        self, network: Autoencoder, latents_mean: Sequence[float], latents_std: Sequence[float]
    ):
        count = network.latent_channels
        means = _channel_numbers("latents_mean", latents_mean, count)
        stds = _channel_numbers("latents_std", latents_std, count)
        if min(stds) < 1 / LARGEST_NUMBER:
            raise ValueError(f"latents_std must be above 0, not {latents_std}")
        self.network = network.eval().requires_grad_(False)
        self.downsample_factor = network.downsample_factor
        self.mean = torch.tensor(means)[:, None, None].to(self.device)  # (c,1,1)
        self.std = torch.tensor(stds)[:, None, None].to(self.device)
        self.config: dict[str, Any] = {
            "name": self.name,
            "network": network.config,
            "latents_mean": means,
            "latents_std": stds,
            "hash": weights_hash(network.state_dict(), network.config),
        }

    @property
    def device(self) -> torch.device:
        return self.network.encoder.conv_in.weight.device

    def to(self, device: torch.device | str) -> "LatentCodec":
        """Itself, moved to a device."""
        self.network.to(device)
        self.mean, self.std = self.mean.to(device), self.std.to(device)
        return self

    def shape(self, image_size: tuple[int, int], channels: int) -> tuple[int, int, int]:
        """(c,h,w) of what the diffusion sees of an image.

        Raises ValueError where the network does not take images of this size or so many channels.
        """
        return latent_shape(self.network, image_size, channels)

    def encode(self, pixels: Tensor) -> Tensor:
        """(B,C,H,W) uint8 -> (B,c,h,w): the posterior's mean, normalised."""
        return self.encode_moments(pixels)[0]

    def encode_moments(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(B,C,H,W) uint8 -> the posterior's mean and standard deviation, (B,c,h,w) each,
        normalised: mean + std * noise is a draw from it. Raises ValueError as `shape` does.
        """
        return self.normalise_moments(*self.posterior(pixels))

    @torch.no_grad()
    def posterior(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """The same as the network gives them, not normalised."""
        _, channels, height, width = pixels.shape
        self.shape((height, width), channels)
        chunks = pixels.split(images_per_call(height, width))
        moments = torch.cat([self._moments(chunk.to(self.device)) for chunk in chunks])
        mean, std = moments.chunk(2, dim=1)
        return mean, std

    def normalise_moments(self, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of a posterior (B,c,h,w), of normalised latents."""
        return self.normalise(mean), std / self.std.to(std)

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """(B,c,h,w) normalised -> (B,C,H,W) uint8, clamped there only."""
        if z.shape[1] != self.network.latent_channels:
            raise ValueError(
                f"the autoencoder has latents of {self.network.latent_channels} channels, "
                f"not {z.shape[1]}"
            )
        factor = self.downsample_factor
        z = z.to(self.device, torch.get_default_dtype())
        chunks = z.split(images_per_call(z.shape[2] * factor, z.shape[3] * factor))
        return torch.cat([PixelCodec().decode(self._images(chunk)) for chunk in chunks])

    def normalise(self, latents: Tensor) -> Tensor:
        """(B,c,h,w) as the network gives them -> with mean 0 and standard deviation 1."""
        return (latents - self.mean.to(latents)) / self.std.to(latents)

    def denormalise(self, z: Tensor) -> Tensor:
        """The inverse of `normalise`."""
        return z * self.std.to(z) + self.mean.to(z)

    def _moments(self, pixels: Tensor) -> Tensor:
        """Pixels -> the network's mean and standard deviation, one behind the other: (B,2c,h,w)."""
        x = PixelCodec().encode(pixels)
        if is_tiled(x.shape[2], x.shape[3]):
            tile, overlap = self._tile()
            return in_tiles(self._call_encoder, x, tile, overlap, unit_in=self.downsample_factor)
        return self._call_encoder(x)

    def _images(self, z: Tensor) -> Tensor:
        """Normalised latents -> images, not clamped."""
        latents = self.denormalise(z)
        factor = self.downsample_factor
        if is_tiled(z.shape[2] * factor, z.shape[3] * factor):
            tile, overlap = self._tile()
            return in_tiles(self._call_decoder, latents, tile, overlap, unit_out=factor)
        return self._call_decoder(latents)

    def _tile(self) -> tuple[int, int]:
        """Side and overlap of a tile, in places of the latents."""
        return TILE_SIDE // self.downsample_factor, TILE_OVERLAP // self.downsample_factor

    def _call_encoder(self, x: Tensor) -> Tensor:
        with without_autocast(x.device):  # 16 bits change latents, and fp16 overflows
            mean, logvar = self.network.encode(x.to(self.network.encoder.conv_in.weight.dtype))
        std = torch.exp(logvar.to(x) / 2)
        return torch.cat([mean.to(x), std], dim=1)

    def _call_decoder(self, latents: Tensor) -> Tensor:
        with without_autocast(latents.device):
            x = self.network.decode(latents.to(self.network.decoder.conv_in.weight.dtype))
        return x.to(latents)


def latent_shape(
    network: Autoencoder, image_size: tuple[int, int], channels: int
) -> tuple[int, int, int]:
    """(c,h,w) of the latent of an image (H, W). Raises ValueError where the network does not take
    images of this size or so many channels.
    """
    if channels != network.in_channels:
        raise ValueError(
            f"the autoencoder takes images of {network.in_channels} channels, not {channels}"
        )
    height, width = image_size
    factor = network.downsample_factor
    check_image_size(height, width, factor)
    return (network.latent_channels, height // factor, width // factor)


def images_per_call(height: int, width: int) -> int:
    """How many images of this size, or tiles of them, an autoencoder takes at once."""
    return max(1, TILE_SIDE**2 // (height * width))


def is_tiled(height: int, width: int) -> bool:
    """Whether an image of this size is worked on in tiles."""
    return height * width > TILE_SIDE**2


def weights_hash(weights: Mapping[str, Tensor], network_config: dict) -> str:
    """The first digits of the SHA-256 of an autoencoder: its weights, whatever their order and
    their kind of floating-point number, and its config.
    """
    digest = hashlib.sha256(json.dumps(network_config, sort_keys=True).encode())
    for name in sorted(weights):
        numbers = weights[name].detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name} {tuple(numbers.shape)}".encode())
        digest.update(numbers.view(-1).numpy().data)
    return digest.hexdigest()[:HASH_DIGITS]


def _channel_numbers(name: str, values: Any, count: int) -> list[float]:
    """A list of one finite number for each channel; ValueError where it is not."""
    is_list = isinstance(values, list | tuple) and len(values) == count
    if not is_list or not all(type(value) in (int, float) for value in values):  # no True
        raise ValueError(
            f"{name} is one number for each of {count} latent channels, not {values!r:.80}"
        )
    if not all(abs(value) <= LARGEST_NUMBER for value in values):  # NaN is not, either
        raise ValueError(f"{name} must be finite, not {values!r:.80}")
    return [float(value) for value in values]


# --- From a config ---

Codec = PixelCodec | LatentCodec
CODECS: dict[str, type[Codec]] = {
    "pixels": PixelCodec,
    "grey16": Grey16Codec,
    "joint": JointCodec,
    "latents": LatentCodec,
}
LATENT_OPTIONS = ("network", "latents_mean", "latents_std", "hash")
JOINT_OPTIONS = ("image_channels", "values")


def build_codec(config: dict, weights: Mapping[str, Tensor] | None = None) -> Codec:
    """A codec from a plain dict; "name" chooses the class. For latents, `weights` are those of the
    autoencoder, with the hash that the config names.

    ValueError for an unknown name, for options that are missing or out of bounds, and where there
    are no weights, or other ones.
    """
    arguments = dict(config)
    name = arguments.pop("name", "pixels")
    if name not in list(CODECS):
        raise ValueError(f"codec {name!r} is unknown; known are {', '.join(CODECS)}")
    options = {LatentCodec.name: LATENT_OPTIONS, JointCodec.name: JOINT_OPTIONS}.get(name, ())
    unknown = [repr(key) for key in arguments if key not in options]
    if unknown:
        raise ValueError(f"codec {name!r} has no option {', '.join(unknown)}")
    missing = [repr(key) for key in options if key not in arguments]
    if missing:
        raise ValueError(f"codec {name!r} needs {', '.join(missing)}")
    if name == PixelCodec.name:
        return PixelCodec()
    if name == Grey16Codec.name:
        return Grey16Codec()
    if name == JointCodec.name:
        return JointCodec(**arguments)
    if weights is None:
        raise ValueError(f"codec {name!r} needs the weights of its autoencoder, and there are none")
    network = frozen_autoencoder(arguments["network"], weights)
    codec = LatentCodec(network, arguments["latents_mean"], arguments["latents_std"])
    if codec.config["hash"] != arguments["hash"]:
        raise ValueError(
            f"the weights of the autoencoder are others than those that the latents were made "
            f"with: their hash is {codec.config['hash']}, not {arguments['hash']!r:.80}"
        )
    return codec


def frozen_autoencoder(config: dict, weights: Mapping[str, Tensor]) -> Autoencoder:
    """The autoencoder of a config with these weights, in torch's default kind of number.

    ValueError where it is none, or the weights do not fit.
    """
    if not isinstance(config, dict) or config.get("name") not in list(AUTOENCODERS):
        known = ", ".join(AUTOENCODERS)
        raise ValueError(f"the network of latents is an autoencoder ({known}), not {config!r:.80}")
    with torch.device("meta"):  # no memory before the weights are seen to fit
        network = build_network(config)
    assert isinstance(network, Autoencoder)
    own = network.state_dict()
    wrong = [
        key
        for key in {**own, **weights}
        if key not in own or key not in weights or not _fits(weights[key], own[key])
    ]
    if wrong:
        raise ValueError(
            f"the weights do not fit the autoencoder: {len(wrong)} are missing, unexpected or of "
            f"another shape, the first {wrong[0]!r}"
        )
    bad = [key for key, value in weights.items() if not value.isfinite().all()]
    if bad:
        raise ValueError(f"the weights of the autoencoder are not finite: {bad[0]!r}")
    network.load_state_dict(weights, assign=True)
    return network.to(torch.get_default_dtype())


def _fits(found: object, own: Tensor) -> bool:
    if not isinstance(found, Tensor) or found.is_meta or found.layout != torch.strided:
        return False
    return found.is_floating_point() and found.shape == own.shape
