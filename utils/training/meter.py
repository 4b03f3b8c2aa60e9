"""Measurements since the last flush, kept on the device, since reading them would wait for it."""

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from utils.ranks import PendingSum, Ranks


@dataclass
class _Measured:
    """One training step."""

    step: int
    lr: float
    grad_norm: Tensor
    names: list[str]
    sums: PendingSum  # (names, 2): sum and count of each, over all processes


class Meter:
    """Scalars of each step, left on the device until `flush`."""

    def __init__(self, ranks: Ranks):
        self.ranks = ranks
        self._steps: list[_Measured] = []
        self._images = 0
        self._start = time.perf_counter()

    def restart_clock(self) -> None:
        """What happened until now does not count as training time."""
        self._start = time.perf_counter()

    def add(
        self, step: int, lr: float, grad_norm: Tensor, sums: dict[str, Tensor], images: int
    ) -> None:
        """`sums`: name -> (sum, count), (2,), of this process; `images`: of all processes.

        The processes begin to sum at once, so that what they measured is known up to the last step
        even if one of them is lost after it.
        """
        together = torch.stack(list(sums.values()))
        if together.device.type != "mps":  # which has no float64
            together = together.double()
        pending = self.ranks.start_sum(together)
        self._steps.append(_Measured(step, lr, grad_norm, list(sums), pending))
        self._images += images

    def flush(self, steps_per_epoch: int) -> list[dict[str, float]]:
        """The rows since the last flush: means over all processes, the same on each of them."""
        if not self._steps:
            return []
        sums = torch.stack([measured.sums.get() for measured in self._steps]).tolist()
        norms = torch.stack([measured.grad_norm for measured in self._steps]).tolist()
        speed = self._images / max(time.perf_counter() - self._start, 1e-9)
        rows: list[dict[str, float]] = []
        for measured, norm, pairs in zip(self._steps, norms, sums, strict=True):
            row: dict[str, float] = {
                "step": measured.step + 1,
                "epoch": measured.step // steps_per_epoch + 1,
            }
            for name, (total, count) in zip(measured.names, pairs, strict=True):
                row[name] = total / count if count else math.nan
            row |= {"lr": measured.lr, "grad_norm": norm, "images_per_second": round(speed, 1)}
            rows.append(row)
        self._steps = []
        self._images = 0
        self.restart_clock()
        return rows
