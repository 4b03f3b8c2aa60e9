"""Images that steer images: a mask, edges, a photograph, as channels beside the noisy image.

In latent mode they lie beside latents: pictures as latents of the same autoencoder, label maps as
the share that each label has of what a latent stands for.

A network that is conditioned takes these channels behind those of x_t. The last of them is 1 where
there is a condition: with all of them 0 there is none, which guidance needs (Ho & Salimans
2207.12598), and which some training images are shown with.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model.codecs import Codec, LatentCodec, PixelCodec

MOST_LABELS = 64  # of a label map


class PictureCondition:
    """A picture with 1 or 3 channels, as numbers in [-1, 1]."""

    name = "picture"
    is_latent = False  # whether it lies beside latents

    def __init__(self, planes: int):
        if type(planes) is not int or planes not in (1, 3):
            raise ValueError(f"a condition is a grey or an RGB picture, not one of {planes} planes")
        self.planes = planes  # of its pixels
        self.config: dict[str, Any] = {"name": self.name, "planes": planes}

    @property
    def channels(self) -> int:
        """That the network takes beside those of x_t."""
        return self.planes + 1

    def use(self, codec: Codec) -> None:
        """Say what the diffusion sees of images; pictures beside pixels need not know."""

    def encode(self, pixels: Tensor) -> Tensor:
        """(B,planes,H,W) uint8 -> (B,channels,H,W) float."""
        return _with_presence(PixelCodec().encode(pixels))


class LabelCondition:
    """A label map: each pixel has one of at most 64 labels, and each label a channel."""

    name = "labels"
    is_latent = False  # whether it lies beside latents
    planes = 1

    def __init__(self, values: Sequence[int]):
        """`values`: the labels' numbers in the files, 0..255, ascending. Raises ValueError."""
        values = list(values)
        if not all(type(value) is int and 0 <= value <= 255 for value in values):
            raise ValueError(f"labels are numbers from 0 to 255, not {values!r:.80}")
        if not 1 <= len(values) <= MOST_LABELS or sorted(set(values)) != values:
            raise ValueError(f"labels are 1 to {MOST_LABELS} ascending numbers, not {values!r:.80}")
        self.values = values
        self._tables: dict[torch.device, Tensor] = {}  # copied to a device once
        self.config: dict[str, Any] = {"name": self.name, "values": values}

    @property
    def channels(self) -> int:
        """That the network takes beside those of x_t."""
        return len(self.values) + 1

    def use(self, codec: Codec) -> None:
        """Say what the diffusion sees of images; label maps need not know."""

    def encode(self, pixels: Tensor) -> Tensor:
        """(B,1,H,W) uint8 -> (B,channels,H,W) float: 1 in the channel of each pixel's label. A
        number that is no label is 0 in all of them.
        """
        return _with_presence(self._one_hot(pixels))

    def _one_hot(self, pixels: Tensor) -> Tensor:
        device = pixels.device
        if device not in self._tables:
            self._tables[device] = torch.tensor(self.values, device=device).view(1, -1, 1, 1)
        return (pixels == self._tables[device]).to(torch.get_default_dtype())


# --- Beside latents ---


class LatentPictureCondition(PictureCondition):
    """A picture as latents of the images' autoencoder, normalised as theirs are."""

    name = "latent picture"
    is_latent = True

    def __init__(self, planes: int, latent_channels: int):
        super().__init__(planes)
        if type(latent_channels) is not int or latent_channels < 1:
            raise ValueError(f"latents have 1 channel or more, not {latent_channels!r:.80}")
        self.latent_channels = latent_channels
        self.config = {"name": self.name, "planes": planes, "latent_channels": latent_channels}
        self._codec: LatentCodec | None = None

    @property
    def channels(self) -> int:
        return self.latent_channels + 1

    def use(self, codec: Codec) -> None:
        """The images' autoencoder, before anything is encoded."""
        assert isinstance(codec, LatentCodec)
        self._codec = codec

    def encode(self, pixels: Tensor) -> Tensor:
        """(B,planes,H,W) uint8 -> (B,channels,h,w) float."""
        assert self._codec is not None
        return _with_presence(self._codec.encode(pixels))

    def of_stored(self, stored: Tensor) -> Tensor:
        """From the means of posteriors (B,c,h,w), as the network gives them."""
        assert self._codec is not None
        return _with_presence(self._codec.normalise(stored))


class LatentLabelCondition(LabelCondition):
    """A label map beside latents that stand for `factor` x `factor` pixels each."""

    name = "latent labels"
    is_latent = True

    def __init__(self, values: Sequence[int], factor: int):
        super().__init__(values)
        if type(factor) is not int or factor < 1:
            raise ValueError(f"a latent stands for 1 pixel or more, not {factor!r:.80}")
        self.factor = factor
        self.config = {"name": self.name, "values": self.values, "factor": factor}

    def encode(self, pixels: Tensor) -> Tensor:
        """(B,1,H,W) uint8 -> (B,channels,h,w) float."""
        return _with_presence(self.shares(pixels))

    def shares(self, pixels: Tensor) -> Tensor:
        """(B,1,H,W) uint8 -> (B,labels,h,w) float: how much of each latent a label has."""
        return F.avg_pool2d(self._one_hot(pixels), self.factor)

    def of_stored(self, stored: Tensor) -> Tensor:
        """From the shares (B,labels,h,w)."""
        return _with_presence(stored)


def beside_latents(
    condition: "Condition", latent_channels: int, factor: int
) -> "LatentPictureCondition | LatentLabelCondition":
    """A condition of pixels as one of latents that stand for `factor` x `factor` pixels each."""
    if isinstance(condition, LabelCondition):
        return LatentLabelCondition(condition.values, factor)
    return LatentPictureCondition(condition.planes, latent_channels)


def _with_presence(channels: Tensor) -> Tensor:
    return torch.cat([channels, torch.ones_like(channels[:, :1])], dim=1)


Condition = PictureCondition | LabelCondition
LatentCondition = LatentPictureCondition | LatentLabelCondition
CONDITIONS: dict[str, type[Condition]] = {
    kind.name: kind
    for kind in (PictureCondition, LabelCondition, LatentPictureCondition, LatentLabelCondition)
}


def build_condition(config: dict) -> Condition:
    """A condition from a plain dict; "name" chooses the class. Raises ValueError for one that is
    none.
    """
    arguments = dict(config)
    name = arguments.pop("name", None)
    if name not in list(CONDITIONS):
        raise ValueError(f"condition {name!r} is unknown; known are {', '.join(CONDITIONS)}")
    try:
        return CONDITIONS[name](**arguments)
    except TypeError:
        raise ValueError(f"condition {name!r} has other options than {arguments!r:.80}") from None


def without_condition(condition: Tensor, chosen: Tensor) -> Tensor:
    """Conditions (B,K,H,W), with those of the chosen images (B,) bool taken away."""
    return torch.where(chosen.view(-1, 1, 1, 1), 0.0, condition)
