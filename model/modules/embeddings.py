"""What a network is told beside the image: the time step and the class label."""

import math

import torch
from torch import Tensor, nn

from model.modules.layers import zero_init

LONGEST_PERIOD = 10_000  # of the sine with the lowest frequency, in time steps (over 2 pi)


def sinusoidal_embedding(
    t: Tensor, dim: int, freq_shift: float = 0.0, cos_first: bool = True
) -> Tensor:
    """Time steps (B,) -> (B, dim): sines and cosines of falling frequency (Ho et al. 2006.11239).

    `freq_shift` and the order of the halves are details in which published weights differ.
    """
    half = dim // 2
    exponents = torch.arange(half, device=t.device) / (half - freq_shift)
    frequencies = torch.exp(-math.log(LONGEST_PERIOD) * exponents)
    angles = t[:, None].to(frequencies.dtype) * frequencies[None]  # (B, half)
    if cos_first:
        return torch.cat([angles.cos(), angles.sin()], dim=1)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class ConditionEmbedding(nn.Module):
    """Time steps (B,), labels (B,) and augmentations (B,A) -> one vector per image (B, out_dim) for
    the residual blocks.

    The label table has num_classes + 1 rows. The last one is the null label, which stands for
    "no label"; a negative label means it too, so that a caller need not know num_classes.
    Augmentations of 0 add nothing, as none do. Raises ValueError for labels or augmentations where
    the network was built without.
    """

    def __init__(
        self,
        dim: int,
        out_dim: int,
        num_classes: int | None,
        freq_shift: float = 0.0,
        cos_first: bool = True,
        augmentation: int = 0,  # numbers that describe one; 0: none
    ):
        super().__init__()
        self.dim = dim
        self.num_classes = num_classes
        self.freq_shift = freq_shift
        self.cos_first = cos_first
        self.time_mlp = nn.Sequential(
            nn.Linear(dim, out_dim), nn.SiLU(), nn.Linear(out_dim, out_dim)
        )
        self.label = None if num_classes is None else nn.Embedding(num_classes + 1, out_dim)
        self.augmentation = None
        if augmentation > 0:
            self.augmentation = zero_init(nn.Linear(augmentation, out_dim, bias=False))

    def forward(
        self, t: Tensor, labels: Tensor | None, augmentation: Tensor | None = None
    ) -> Tensor:
        embedding = sinusoidal_embedding(t, self.dim, self.freq_shift, self.cos_first)
        embedding = self.time_mlp(embedding.to(next(self.time_mlp.parameters()).dtype))
        if augmentation is not None:
            if self.augmentation is None:
                raise ValueError("a network that was built without augmentations was given some")
            embedding = embedding + self.augmentation(augmentation)
        if self.label is None or self.num_classes is None:
            if labels is not None:
                raise ValueError(
                    "labels were given to a network that was built without classes "
                    "(num_classes=None)"
                )
            return embedding
        if labels is None:
            labels = torch.full_like(t, self.num_classes)
        labels = torch.where(labels < 0, self.num_classes, labels)
        return embedding + self.label(labels)
