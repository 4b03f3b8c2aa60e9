"""Where 16 bits are too few."""

import contextlib

import torch


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager:
    """What runs inside is computed in the numbers that its tensors have, whatever autocast is on
    around it.
    """
    if not torch.amp.is_autocast_available(device.type):
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)
