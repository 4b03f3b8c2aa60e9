"""What a diffusion run trains: the loss of a batch of images, and what it needs at random."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.augmentation import augment, draw_augmentations
from model.codecs import LatentCodec, PixelCodec
from model.condition import Condition, LatentCondition
from model.diffusion import GaussianDiffusion
from model.randomness import draw_normal, draw_uniform
from utils.training.prefetch import Batch, Draws

FLIPPED = 0.5  # share of the images that --flip mirrors
BOTH_DROPPED = 0.5  # of the images whose label is dropped: those whose condition is dropped too
QUARTERS = 4  # of the time steps, whose losses are logged apart


@dataclass
class DiffusionTask:
    """Batches are (pixels (B,C,H,W) uint8, labels (B,), indices (B,))."""

    diffusion: GaussianDiffusion
    codec: PixelCodec | LatentCodec
    conditional: bool
    flip: bool = False
    loss_kind: str = "mse"
    label_drop: float = 0.1
    loss_weight: str = "uniform"
    augment: float = 0.0  # probability of each change of a non-leaky augmentation; 0: none
    condition: Condition | None = None  # whose planes lie behind those of the image
    condition_drop: float = 0.1  # share of the images that are not told theirs
    time_steps: str = "uniform"  # or "weighted": drawn in proportion to the weight of their loss

    def draw(self, batch: Batch, generators: list[torch.Generator]) -> Draws:
        """Each image draws how it is changed, then what the loss needs (on the CPU)."""
        draws: Draws = {}
        if self.augment > 0:
            draws["augmentation"] = draw_augmentations(len(batch[0]), self.augment, generators)
        if self.flip:
            draws["mirrored"] = draw_uniform(len(batch[0]), generators) < FLIPPED
        shape = self.shape(batch)
        drawn_by = self.loss_weight if self.time_steps == "weighted" else "uniform"
        draws |= self.diffusion.draw(shape, self.conditional, generators, self.label_drop, drawn_by)
        if self.condition is not None:
            draws["condition_dropped"] = self._condition_dropped(draws, generators)
        return draws

    def _condition_dropped(self, draws: Draws, generators: list[torch.Generator]) -> Tensor:
        """Which images are not told their condition, (B,) bool. Half of those without their label
        are among them: the network has to know images of neither, where guidance begins.
        """
        uniform = draw_uniform(len(draws["t"]), generators)
        dropped = uniform < self.condition_drop
        if "dropped" not in draws or self.condition_drop == 0:
            return dropped
        return torch.where(draws["dropped"], uniform < BOTH_DROPPED, dropped)

    def loss(self, network: nn.Module, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """The mean loss, and for the log the loss by quarter of the time steps (q1 the least
        noisy).
        """
        labels = batch[1] if self.conditional else None
        x0, condition = self.inputs(batch, draws)
        losses = self.diffusion.losses_of(
            network, x0, labels, draws, self.loss_kind, self.loss_weight, condition
        )
        return {"loss": losses.mean(), **self.by_quarter(losses.detach(), draws)}

    def shape(self, batch: Batch) -> tuple[int, ...]:
        """(B,C,H,W) of what the diffusion sees of a batch."""
        images, planes, height, width = batch[0].shape
        if self.condition is not None:
            planes -= self.condition.planes
        return (images, *self.codec.shape((height, width), planes))

    def inputs(self, batch: Batch, draws: Draws) -> tuple[Tensor, Tensor | None]:
        """What the diffusion sees of a batch, (B,C,H,W), and the conditions (B,K,H,W) or None; both
        changed alike.
        """
        x0, condition = self.encode(self.pixels(batch, draws))
        if self.augment == 0:
            return x0, condition
        if condition is None:
            return augment(x0, draws["augmentation"]), None
        both = augment(torch.cat([x0, condition], dim=1), draws["augmentation"])
        return both[:, : x0.shape[1]], both[:, x0.shape[1] :]

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """The planes of images and their conditions, uint8, as what the diffusion sees of both."""
        if self.condition is None:
            return self.codec.encode(pixels), None
        planes = pixels.shape[1] - self.condition.planes
        return self.codec.encode(pixels[:, :planes]), self.condition.encode(pixels[:, planes:])

    def pixels(self, batch: Batch, draws: Draws) -> Tensor:
        """The images of a batch (B,C,H,W) uint8, some of them mirrored."""
        pixels = batch[0]
        if not self.flip:
            return pixels
        mirrored = draws["mirrored"].view(-1, 1, 1, 1)
        return torch.where(mirrored, pixels.flip(3), pixels)

    def by_quarter(self, losses: Tensor, draws: Draws) -> dict[str, Tensor]:
        """The (sum, count) of the losses in each quarter of the time steps. A time step that is
        drawn twice as often counts half each time, as it does in the loss.
        """
        t = draws["t"]
        quarter = QUARTERS * t // self.diffusion.noise_steps  # (B,)
        numbers = torch.arange(QUARTERS, device=t.device)
        inside = (quarter[:, None] == numbers).to(losses)  # (B, QUARTERS)
        counts = inside
        if "density" in draws:
            counts = inside / draws["density"].to(losses)[:, None]
        pairs = torch.stack([losses[:, None] * inside, counts], dim=2).sum(0)  # (QUARTERS, 2)
        return {f"loss_q{i + 1}": pairs[i] for i in range(QUARTERS)}


@dataclass
class LatentDiffusionTask(DiffusionTask):
    """The same on latents, of which each step draws new ones from the images' posteriors.

    Batches are (moments (B,views,2,c,h,w) float, labels (B,), indices (B,)), as a LatentSet has
    them, or (pixels uint8, labels, indices), which are then encoded at each use. What is stored of
    conditions lies behind the moments, as a ConditionedLatents has it.
    """

    codec: LatentCodec
    condition: LatentCondition | None = None

    def draw(self, batch: Batch, generators: list[torch.Generator]) -> Draws:
        """Each image also draws the noise of its posterior, last."""
        draws = super().draw(batch, generators)
        images, *latent = self.shape(batch)
        return draws | {"posterior": draw_normal(images, latent, generators)}

    def shape(self, batch: Batch) -> tuple[int, ...]:
        if not is_moments(batch[0]):
            return super().shape(batch)
        return (len(batch[0]), self.codec.network.latent_channels, *batch[0].shape[4:])

    def inputs(self, batch: Batch, draws: Draws) -> tuple[Tensor, Tensor | None]:
        mean, std, condition = self.moments(batch, draws)
        return mean + std * draws["posterior"].to(mean), condition

    def moments(self, batch: Batch, draws: Draws) -> tuple[Tensor, Tensor, Tensor | None]:
        """Mean and standard deviation of each image's posterior, or of its mirror's, (B,c,h,w), and
        the conditions (B,K,h,w) or None.
        """
        if not is_moments(batch[0]):
            return self._moments_of_pixels(self.pixels(batch, draws))
        views = batch[0].to(torch.get_default_dtype())
        chosen = views[:, 0]  # (B,2,c,h,w)
        if self.flip:
            mirrored = draws["mirrored"].view(-1, 1, 1, 1, 1)
            chosen = torch.where(mirrored, views[:, 1], chosen)
        channels = self.codec.network.latent_channels
        means, stds = chosen[:, 0], chosen[:, 1]
        mean, std = self.codec.normalise_moments(means[:, :channels], stds[:, :channels])
        if self.condition is None:
            return mean, std, None
        return mean, std, self.condition.of_stored(means[:, channels:])

    def _moments_of_pixels(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        if self.condition is None:
            return *self.codec.encode_moments(pixels), None
        planes = pixels.shape[1] - self.condition.planes
        mean, std = self.codec.encode_moments(pixels[:, :planes])
        return mean, std, self.condition.encode(pixels[:, planes:])


def is_moments(item: Tensor) -> bool:
    """Whether these are the moments of latents, not pixels."""
    return item.is_floating_point()
