"""train.py in float64, which only tests use: rounding in float32 hides mistakes in the logic. With
accidents, as the environment says:

NAN_RANK=r: the loss of rank r is NaN from step 5 on.
DRIFT_RANK=r: the weights of rank r differ by a bit from step 3 on.
SLOW_STEP=s, SLOW_RANK=r: each forward pass takes s seconds longer from step 10 on, on all ranks or
on that one.
"""

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch  # noqa: E402

from tools import train  # noqa: E402
from utils.training.diffusion_task import DiffusionTask  # noqa: E402


def main_of_rank(args, ranks) -> None:
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    me, loss, calls = str(ranks.rank), DiffusionTask.loss, [0]

    def loss_with_accidents(self, network, batch, draws):
        calls[0] += 1  # 5 of them measure the time
        if calls[0] > 15 and os.environ.get("SLOW_RANK", me) == me:
            time.sleep(float(os.environ.get("SLOW_STEP", 0)))
        if calls[0] == 8 and os.environ.get("DRIFT_RANK") == me:
            with torch.no_grad():
                next(network.parameters()).view(-1)[0] += 1e-9
        out = loss(self, network, batch, draws)
        poisoned = calls[0] > 10 and os.environ.get("NAN_RANK") == me
        return out | {"loss": out["loss"] * (float("nan") if poisoned else 1)}

    DiffusionTask.loss = loss_with_accidents
    original(args, ranks)


original, train.train = train.train, main_of_rank
if __name__ == "__main__":
    train.opt.run_script(train.main)
