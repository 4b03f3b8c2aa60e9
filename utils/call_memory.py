"""How much memory a network call takes, found out without computing anything: on the meta device,
where tensors have shapes and no numbers.
"""

import weakref
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model.modules.attention import FEW_POSITIONS
from model.networks import build_network

# What a call takes as a share of its tensors in 32 bits: those, and what convolutions work in.
# Measured: 1.3 to 1.8 in 32 bits, 0.8 to 1.0 in bf16.
SHARE_OF_TENSORS = {torch.float32: 1.8, torch.bfloat16: 1.0, torch.float16: 1.0}


def memory_of_row(
    network: dict[str, Any], size: tuple[int, int], dtype: torch.dtype = torch.float32
) -> float:
    """Bytes that a call of a denoiser without gradients takes, about, for each image (or latent) of
    that height and width, computed in that number format.

    Raises ValueError for a network that cannot be built.
    """
    with torch.device("meta"):
        built = build_network(network)
    peaks = []
    for rows in (1, 2):
        with torch.device("meta"):
            images = torch.empty(rows, network["in_channels"], *size)
            t = torch.zeros(rows, dtype=torch.long)
        with torch.no_grad(), FusedAttention(), PeakOfTensors() as tensors:
            built(images, t)
        peaks.append(tensors.peak)
    of_row = peaks[1] - peaks[0]  # without what is done to the weights, once per call
    return of_row * SHARE_OF_TENSORS[dtype]


class PeakOfTensors(TorchDispatchMode):
    """Counts the bytes of the tensors that are made and not yet let go of; `peak`: the most."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._now = 0
        self._sizes: dict[int, int] = {}  # by storage

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        for each in tree_leaves(out):
            if isinstance(each, Tensor):
                self._add(each.untyped_storage())
        self.peak = max(self.peak, self._now)
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self._now += storage.nbytes()
            weakref.finalize(storage, self._remove, key)

    def _remove(self, key: int) -> None:
        self._now -= self._sizes.pop(key)


class FusedAttention(TorchFunctionMode):
    """Attention over many positions keeps its inputs and its output, as the kernels of devices do:
    on the meta device it would keep the weights of all pairs of positions.
    """

    def __torch_function__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if function is F.scaled_dot_product_attention:
            query, key, value = args[:3]
            if query.shape[-2] > FEW_POSITIONS:
                return query * key * value  # which keeps as much
        return function(*args, **(kwargs or {}))
