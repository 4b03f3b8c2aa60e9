"""What a network is told beside the image: the time step and the class label."""

import math

import torch
from torch import Tensor, nn


def sinusoidal_embedding(
    t: Tensor, dim: int, freq_shift: float = 0.0, cos_first: bool = True
) -> Tensor:
    """Time steps (B,) -> (B, dim): sines and cosines, frequencies from 1 down to 1/10,000 (Ho et
    al. 2006.11239).
    """
    half = dim // 2
    frequencies = torch.exp(
        -math.log(10_000) * torch.arange(half, device=t.device) / (half - freq_shift)
    )
    angles = t[:, None].to(frequencies.dtype) * frequencies[None]
    parts = (angles.cos(), angles.sin()) if cos_first else (angles.sin(), angles.cos())
    return torch.cat(parts, dim=1)


class ConditionEmbedding(nn.Module):
    """Time steps (B,) and labels (B,) -> one vector per image (B, out_dim) for the residual blocks.

    The label table has num_classes + 1 rows; the last one is the null label, which stands for "no
    label".
    """

    def __init__(
        self, dim: int, out_dim: int, num_classes: int | None, freq_shift: float, cos_first: bool
    ):
        super().__init__()
        self.dim, self.num_classes, self.freq_shift, self.cos_first = (
            dim,
            num_classes,
            freq_shift,
            cos_first,
        )
        self.time_mlp = nn.Sequential(
            nn.Linear(dim, out_dim), nn.SiLU(), nn.Linear(out_dim, out_dim)
        )
        self.label = None if num_classes is None else nn.Embedding(num_classes + 1, out_dim)

    def forward(self, t: Tensor, labels: Tensor | None) -> Tensor:
        embedding = sinusoidal_embedding(t, self.dim, self.freq_shift, self.cos_first)
        embedding = self.time_mlp(embedding.to(self.time_mlp[0].weight.dtype))
        if self.label is None:
            if labels is not None:
                raise ValueError(
                    "labels were given to a network that was built without classes (num_classes=None)"
                )
            return embedding
        if labels is None:
            labels = torch.full_like(t, self.num_classes)
        return embedding + self.label(labels)
