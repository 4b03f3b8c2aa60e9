"""A network that enlarges, and the samples of images: pixels with or without opacity."""

from collections.abc import Iterator
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.networks import UPSCALERS
from model.samplers.base import evaluation_mode
from model.tiling import ReadWindow, fitting_tile, upscaled, upscaled_strips
from utils.devices import Precision
from utils.errors import UserError
from utils.image_facts import CHANNELS
from utils.runs.checkpoint import Checkpoint
from utils.runs.inference import inference_network

# Pixels that the network is given at a time, by its scale: the networks' defaults then need about
# 400 MB on a CPU.
LARGEST_WINDOW = {2: 256**2, 3: 224**2, 4: 192**2}
LARGEST_SAMPLE = {torch.uint8: 255, torch.uint16: 65535}
WITH_ALPHA = (2, 4)  # channels: grey and opacity, RGB and opacity


class Upscaler:
    """Enlarges images by `scale`.

    The samples are those of a file: uint8 or uint16, in whatever colour space. Grey and colour
    images are taken by any network: one for colour gets a grey image three times and the mean of
    its output counts; one for grey gets each channel on its own.
    """

    def __init__(
        self,
        network: nn.Module,  # on the precision's device; also one that is being trained
        precision: Precision,
        tile: int | None = None,  # pixels of the input a side; 0: whole images; None: what fits
    ):
        self.network = network
        self.precision = precision
        self.tile = tile
        self.scale = cast(int, network.scale)
        self.radius = cast(int, network.receptive_radius)
        self._channels = cast(dict, network.config)["in_channels"]
        self._largest_window = LARGEST_WINDOW[self.scale]

    @classmethod
    def from_checkpoint(
        cls,
        checkpoint: Checkpoint,
        precision: Precision,
        use_ema: bool = True,
        tile: int | None = None,
    ) -> "Upscaler":
        """The upscaler that a checkpoint holds. Raises UserError for one of another kind, and for
        what cannot be built.
        """
        checkpoint.check_kind("upscaler")
        config = checkpoint.config["network"]
        if config.get("name") not in list(UPSCALERS):  # a hostile name may be a list
            raise UserError(
                f"{checkpoint.source} describes no upscaler: its network is "
                f"{config.get('name')!r}, known are {', '.join(UPSCALERS)}"
            )
        network = inference_network(checkpoint, use_ema)
        return cls(precision.place_for_calls(network), precision, tile)

    def pixels(self, pixels: Tensor) -> Tensor:
        """(B,C,H,W) uint8 or uint16 -> (B,C,sH,sW) of the same type, on the CPU.

        C is 1 (grey) or 3 (RGB), with the opacity as one more channel where there is one. Without
        opacity this is what `PixelCodec` makes of the network's output.
        """
        height, width = pixels.shape[-2:]
        tile = self._tile((height, width))
        at_once = max(1, self._largest_window // (height * width))
        with evaluation_mode(self.network):
            parts = [
                upscaled(self._samples, part, self.scale, self.radius, tile)
                for part in pixels.split(at_once)
            ]
        return torch.cat(parts)

    def strips(self, read: ReadWindow, size: tuple[int, int]) -> Iterator[Tensor]:
        """The same of one image of `size` (H, W), of which `read` gives windows (1,C,h,w), in
        strips (1,C,n,sW) from top to bottom. The memory does not grow with the height.
        """
        with evaluation_mode(self.network):
            yield from upscaled_strips(
                self._samples, read, size, self.scale, self.radius, self._tile(size)
            )

    def _tile(self, size: tuple[int, int]) -> int:
        if self.tile is not None:
            return self.tile
        return fitting_tile(size, self.radius, self._largest_window)

    @torch.inference_mode()
    def _samples(self, samples: Tensor) -> Tensor:
        """(B,C,h,w) of a window -> (B,C,sh,sw), on the CPU."""
        largest = LARGEST_SAMPLE[samples.dtype]
        values = samples.to(torch.get_default_dtype()).to(self.precision.device)
        if samples.shape[1] in WITH_ALPHA:
            enlarged = self._with_alpha(values, largest)
        else:
            enlarged = self._values(values, largest)
        return enlarged.round().cpu().to(samples.dtype)

    def _with_alpha(self, values: Tensor, largest: int) -> Tensor:
        """Colour and opacity, both 0..largest. The colour counts as much as it is opaque, so that
        what lies unseen under transparent pixels does not show at their edges.
        """
        colour, alpha = values[:, :-1], values[:, -1:]
        opacity = self._alpha(alpha, largest) / largest
        weighted = self._values(colour * (alpha / largest), largest)
        colour = (weighted / opacity).clamp(max=largest)
        is_seen = (opacity * largest).round() > 0
        return torch.cat([colour.where(is_seen, 0), opacity * largest], dim=1)

    def _alpha(self, alpha: Tensor, largest: int) -> Tensor:
        """The opacity (B,1,h,w), enlarged as a grey image. It stays between the least and the
        greatest of the pixel and its neighbours: what is opaque or transparent throughout stays so
        to the bit, and nothing rings.
        """
        greatest = F.max_pool2d(alpha, 3, stride=1, padding=1)
        least = -F.max_pool2d(-alpha, 3, stride=1, padding=1)
        if torch.equal(greatest, least):
            return self._repeated(alpha)
        enlarged = self._values(alpha, largest)
        return enlarged.clamp(self._repeated(least), self._repeated(greatest))

    def _repeated(self, values: Tensor) -> Tensor:
        return F.interpolate(values, scale_factor=float(self.scale), mode="nearest")

    def _values(self, values: Tensor, largest: int) -> Tensor:
        """(B,1 or 3,h,w) of 0..largest -> (B,C,sh,sw) of 0..largest, not rounded."""
        half_range = largest / 2
        enlarged = self._call(values / half_range - 1)
        return (enlarged.clamp(-1, 1) + 1) * half_range

    def _call(self, x: Tensor) -> Tensor:
        """(B,C,h,w) in [-1, 1] -> (B,C,sh,sw), unbounded: the network, whatever its channels."""
        channels = x.shape[1]
        if channels == self._channels:
            return self._network_call(x)
        if channels == CHANNELS["L"]:
            return self._network_call(x.expand(-1, self._channels, -1, -1)).mean(1, keepdim=True)
        alone = self._network_call(x.flatten(0, 1).unsqueeze(1))
        return alone.unflatten(0, (len(x), channels)).squeeze(2)

    def _network_call(self, x: Tensor) -> Tensor:
        with self.precision.autocast():
            return self.network(x).to(torch.get_default_dtype())
