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
    Labels may also be rows (B,W) of floats: first the `numbers` that describe an image, then any
    count of its labels, each with NaN for what is not there. The vectors of several labels add up,
    and a row without any has the null label's.
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
        numbers: int = 0,  # that describe an image, beside its labels
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
        self.count = numbers
        self.numbers = None
        if numbers > 0:
            # Each number, or 0, and whether it is there.
            self.numbers = nn.Sequential(
                nn.Linear(2 * numbers, out_dim), nn.SiLU(), nn.Linear(out_dim, out_dim)
            )
        self.augmentation = None
        if augmentation > 0:
            self.augmentation = zero_init(nn.Linear(augmentation, out_dim, bias=False))

    def forward(
        self, t: Tensor, labels: Tensor | None, augmentation: Tensor | None = None
    ) -> Tensor:
        self._check_labels(labels)
        embedding = sinusoidal_embedding(t, self.dim, self.freq_shift, self.cos_first)
        embedding = self.time_mlp(embedding.to(next(self.time_mlp.parameters()).dtype))
        if augmentation is not None:
            if self.augmentation is None:
                raise ValueError("a network that was built without augmentations was given some")
            embedding = embedding + self.augmentation(augmentation.to(embedding.dtype))
        rows = labels if labels is not None and labels.dim() == 2 else None
        if self.numbers is not None:
            if rows is None:
                numbers = torch.full((len(t), self.count), math.nan, device=t.device)
            else:
                numbers = rows[:, : self.count]
            embedding = embedding + self._of_numbers(numbers)
        if self.label is not None:
            if rows is None:
                embedding = embedding + self._of_label(labels, t)
            else:
                embedding = embedding + self._of_several(rows[:, self.count :])
        return embedding

    def _check_labels(self, labels: Tensor | None) -> None:
        """Raise ValueError for labels that the network was built without."""
        if labels is None:
            return
        if self.label is None and self.numbers is None:
            raise ValueError(
                "labels were given to a network that was built without classes (num_classes=None)"
            )
        if self.label is None and (labels.dim() == 1 or labels.shape[1] > self.count):
            raise ValueError(
                f"labels were given to a network that takes rows of {self.count} numbers"
            )
        if labels.dim() == 2 and labels.shape[1] < self.count:
            raise ValueError(
                f"rows of labels begin with {self.count} numbers, not {labels.shape[1]}"
            )

    def _of_label(self, labels: Tensor | None, t: Tensor) -> Tensor:
        """One label an image (B,), or none."""
        assert self.label is not None and self.num_classes is not None
        if labels is None:
            labels = torch.full_like(t, self.num_classes)
        labels = torch.where(labels < 0, self.num_classes, labels)
        return self.label(labels)

    def _of_several(self, labels: Tensor) -> Tensor:
        """Any count of labels an image, (B,K) float with NaN where there are fewer."""
        assert self.label is not None and self.num_classes is not None
        is_there = ~labels.isnan()
        places = torch.where(is_there, labels, 0).long()
        vectors = self.label(places)  # (B,K,out_dim)
        total = torch.where(is_there[..., None], vectors, 0).sum(1)
        null = self.label.weight[self.num_classes].to(total.dtype)
        return torch.where(is_there.any(1, keepdim=True), total, null)

    def _of_numbers(self, numbers: Tensor) -> Tensor:
        """(B,F) float with NaN for what is not known."""
        assert self.numbers is not None
        is_there = ~numbers.isnan()
        values = torch.where(is_there, numbers, 0)
        dtype = next(self.numbers.parameters()).dtype
        return self.numbers(torch.cat([values, is_there], dim=1).to(dtype))
