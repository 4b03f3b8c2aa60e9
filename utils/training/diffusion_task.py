"""What a diffusion run trains: the loss of a batch of images, and what it needs at random."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.codecs import PixelCodec
from model.diffusion import GaussianDiffusion
from model.randomness import draw_uniform
from utils.training.prefetch import Batch, Draws

FLIPPED = 0.5  # share of the images that --flip mirrors
QUARTERS = 4  # of the time steps, whose losses are logged apart


@dataclass
class DiffusionTask:
    """Batches are (pixels (B,C,H,W) uint8, labels (B,), indices (B,))."""

    diffusion: GaussianDiffusion
    codec: PixelCodec
    conditional: bool
    flip: bool = False
    loss_kind: str = "mse"
    label_drop: float = 0.1

    def draw(self, batch: Batch, generators: list[torch.Generator]) -> Draws:
        """Each image draws whether it is mirrored, then what the loss needs (on the CPU)."""
        pixels = batch[0]
        _, channels, height, width = pixels.shape
        draws: Draws = {}
        if self.flip:
            draws["mirrored"] = draw_uniform(len(pixels), generators) < FLIPPED
        shape = (len(pixels), *self.codec.shape((height, width), channels))
        draws |= self.diffusion.draw(shape, self.conditional, generators, self.label_drop)
        return draws

    def loss(self, network: nn.Module, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """The mean loss, and for the log the loss by quarter of the time steps (q1 the least
        noisy).
        """
        pixels, labels, _ = batch
        x0 = self.codec.encode(pixels)
        if self.flip:
            mirrored = draws["mirrored"].view(-1, 1, 1, 1)
            x0 = torch.where(mirrored, x0.flip(3), x0)
        losses = self.diffusion.losses_of(
            network, x0, labels if self.conditional else None, draws, self.loss_kind
        )
        return {"loss": losses.mean(), **self.by_quarter(losses.detach(), draws["t"])}

    def by_quarter(self, losses: Tensor, t: Tensor) -> dict[str, Tensor]:
        """The (sum, count) of the losses in each quarter of the time steps."""
        quarter = QUARTERS * t // self.diffusion.noise_steps  # (B,)
        numbers = torch.arange(QUARTERS, device=t.device)
        inside = (quarter[:, None] == numbers).to(losses)  # (B, QUARTERS)
        pairs = torch.stack([losses[:, None] * inside, inside], dim=2).sum(0)  # (QUARTERS, 2)
        return {f"loss_q{i + 1}": pairs[i] for i in range(QUARTERS)}
