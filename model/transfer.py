"""Small copies from the host to a device that nothing waits for."""

from collections.abc import Sequence

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on `device`. On CUDA by way of pinned memory, so that the copy is queued and
    neither the host nor the device waits.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        # Pinned memory is a copy with the same strides, which an expanded tensor's cannot have.
        return tensor.contiguous().pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def numbers_on(values: Sequence, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Host numbers, nested or not, as a tensor on `device`."""
    return to_device(torch.tensor(values, dtype=dtype), device)
