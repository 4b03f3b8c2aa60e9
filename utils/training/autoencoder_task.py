"""What a run of an autoencoder trains: the loss of a batch of images, and what it needs at random.

The loss of an image is

    L1 + ssim_weight (1 - SSIM) + feature_weight D + kl_weight KL / N

with L1 the mean over the N = C H W pixel values in [-1, 1], KL in nats summed over the latent, and
D the distance of features. Times N that is the loss of latent diffusion (Rombach et al.
2112.10752): errors and KL summed, the latter times 1e-6.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.codecs import PixelCodec
from model.metrics.psnr_ssim import WINDOW_SIZE, ms_ssim, structural_similarity
from model.networks import check_image_size
from model.randomness import draw_normal, draw_uniform
from utils.training.diffusion_task import FLIPPED
from utils.training.fit import mean_as_pair
from utils.training.prefetch import Batch, Draws

PIXEL_RANGE = 2.0  # from black, -1, to white, 1

# Images (B,C,H,W) in [-1, 1] -> the activations of several layers, (B,C_i,H_i,W_i) each.
FeatureFunction = Callable[[Tensor], Sequence[Tensor]]


@dataclass
class AutoencoderTask:
    """Batches are (pixels (B,C,H,W) uint8, labels (B,), indices (B,)); the pixels alone count.

    The network is an Autoencoder with these latent channels and downsample_factor. L1 and SSIM
    weigh about the same by default: at a PSNR of 30 dB they are about 0.04 and 1 - 0.9. L1 alone
    blurs what it cannot place, since a grey in the middle costs least; SSIM asks for the contrast.
    """

    latent_channels: int
    downsample_factor: int
    flip: bool = False
    ssim_weight: float = 0.5
    ms_ssim: bool = False  # over several scales
    kl_weight: float = 1e-6
    features: FeatureFunction | None = None
    feature_weight: float = 0.0

    def check_image_size(self, height: int, width: int) -> None:
        """Raise ValueError for images that the network or SSIM cannot take."""
        check_image_size(height, width, self.downsample_factor)
        if self.ssim_weight and min(height, width) < WINDOW_SIZE:
            raise ValueError(
                f"image size {height},{width}: SSIM needs sides of {WINDOW_SIZE} pixels or more; "
                "--ssim_weight 0 would work"
            )

    def draw(self, batch: Batch, generators: list[torch.Generator]) -> Draws:
        """Each image draws whether it is mirrored, then the posterior's noise (on the CPU).

        Raises ValueError as `check_image_size` does.
        """
        pixels = batch[0]
        height, width = pixels.shape[2:]
        self.check_image_size(height, width)
        draws: Draws = {}
        if self.flip:
            draws["mirrored"] = draw_uniform(len(pixels), generators) < FLIPPED
        factor = self.downsample_factor
        shape = (self.latent_channels, height // factor, width // factor)
        draws["noise"] = draw_normal(len(pixels), shape, generators)
        return draws

    def loss(self, network: nn.Module, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """The mean loss, and for the log the means of its terms, before their weights."""
        x = PixelCodec().encode(batch[0])
        if self.flip:
            mirrored = draws["mirrored"].view(-1, 1, 1, 1)
            x = torch.where(mirrored, x.flip(3), x)
        # By `forward`, where DistributedDataParallel averages the gradients.
        x_hat, mean, logvar = network(x, draws["noise"].to(x))
        terms = self.terms(x_hat.to(x), x, mean.to(x), logvar.to(x))

        losses = terms["l1"] + self.kl_weight * terms["kl"] / x[0].numel()  # (B,)
        if self.ssim_weight:
            losses = losses + self.ssim_weight * (1 - terms[self.ssim_name])
        if self.features is not None:
            losses = losses + self.feature_weight * terms["features"]
        logged = {name: mean_as_pair(v.detach().mean(), len(x)) for name, v in terms.items()}
        return {"loss": losses.mean(), **logged}

    @property
    def ssim_name(self) -> str:
        """The name of the similarity in the log: its two kinds cannot be compared."""
        return "ms_ssim" if self.ms_ssim else "ssim"

    def terms(self, x_hat: Tensor, x: Tensor, mean: Tensor, logvar: Tensor) -> dict[str, Tensor]:
        """Of each image, (B,): mean absolute error, SSIM, distance of features, and KL in nats."""
        terms = {"l1": (x_hat - x).abs().flatten(1).mean(1)}
        if self.ssim_weight:
            similarity = ms_ssim if self.ms_ssim else structural_similarity
            # From black as 0 on: SSIM compares ratios of brightness.
            terms[self.ssim_name] = similarity(x_hat + 1, x + 1, PIXEL_RANGE)
        if self.features is not None:
            with torch.no_grad():
                wanted = self.features(x)
            terms["features"] = feature_distances(self.features(x_hat), wanted).to(x)
        terms["kl"] = kl_divergence(mean, logvar)
        return terms


def kl_divergence(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mean, exp(logvar)) || N(0, 1)) in nats, (B,c,h,w) twice -> (B,), summed over c,h,w."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).flatten(1).sum(1)


def feature_distances(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    """Activations (B,C_i,H_i,W_i) of several layers, twice -> (B,): 0 where equal, at most 4.

    At each place the channels are scaled to length 1; the squared distance, the mean over the
    places, then over the layers: LPIPS (Zhang et al. 1801.03924) without its learned weights.
    """
    layers = []
    for a, b in zip(found, wanted, strict=True):
        squared = (F.normalize(a, dim=1) - F.normalize(b, dim=1)).square().sum(1)  # (B,H_i,W_i)
        layers.append(squared.flatten(1).mean(1))
    return torch.stack(layers).mean(0)
