"""The images of a run, and as what its diffusion sees them."""

from dataclasses import dataclass, replace

import numpy as np

from model.codecs import Grey16Codec, JointCodec, PixelCodec
from model.condition import Condition, LabelCondition
from utils.data import ImageSet
from utils.data.conditions import ConditionedSet
from utils.errors import UserError
from utils.image_facts import CHANNELS, GREY_16
from utils.runs.autoencoders import StoredAutoencoder


@dataclass(frozen=True)
class DiffusedImages:
    """Images that are diffused as pixels or as latents; alone, steered by others, or with masks."""

    images: ImageSet
    autoencoder: StoredAutoencoder | None = None  # whose latents are diffused; None: pixels are
    paired: ConditionedSet | None = None  # the images, with what steers them or with their masks
    condition: Condition | None = None  # what steers them
    masks: LabelCondition | None = None  # that are made together with them

    def subset(self, places: np.ndarray) -> "DiffusedImages":
        """The images at these places, with what belongs to them."""
        paired = None if self.paired is None else self.paired.subset(places)
        return replace(self, images=self.images.subset(places), paired=paired)

    @property
    def factor(self) -> int:
        """How many pixels a side of what the diffusion sees stands for."""
        return 1 if self.autoencoder is None else self.autoencoder.downsample_factor

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of what the diffusion sees."""
        height, width = self.images.image_size
        return height // self.factor, width // self.factor

    @property
    def channels(self) -> int:
        """Of what the diffusion sees. Raises UserError as `pixel_codec` does."""
        if self.autoencoder is not None:
            return self.autoencoder.network["latent_channels"]
        channels, *_ = self.pixel_codec().shape(self.images.image_size, self.images.channels)
        return channels

    def pixel_codec(self) -> PixelCodec:
        """What turns the pixels, and the masks that are made with them, into what the diffusion
        sees, and back. Raises UserError where they do not go together.
        """
        if self.masks is not None:
            try:
                return JointCodec(CHANNELS[self.images.mode], self.masks.values)
            except ValueError as error:
                raise UserError(f"--joint_masks: {error}") from None
        return Grey16Codec() if self.images.mode == GREY_16 else PixelCodec()

    def codec_config(self) -> dict:
        """What is known of the codec before anything is measured, as a checkpoint has it."""
        if self.autoencoder is not None:
            return self.autoencoder.config()
        return self.pixel_codec().config

    def data_config(self) -> dict:
        """What a checkpoint keeps of what steers the images, or of their masks."""
        return {} if self.paired is None else {"conditions": self.paired.conditions.fingerprint()}
