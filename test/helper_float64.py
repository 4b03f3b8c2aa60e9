"""train.py in float64, which only tests use: rounding in float32 hides mistakes in the logic.

ONLY_RANK_NAN=r makes the loss of rank r NaN from step 5 on.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch  # noqa: E402

from tools import train  # noqa: E402
from utils import trainer  # noqa: E402


def main_of_rank(args, ranks) -> int:
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    if os.environ.get("ONLY_RANK_NAN") == str(ranks.rank):
        make = train.loss_function

        def loss_function(*arguments):
            loss_fn, calls = make(*arguments), [0]

            def poisoned(network, batch, generators):
                out, calls[0] = loss_fn(network, batch, generators), calls[0] + 1
                return out | {"loss": out["loss"] * (float("nan") if calls[0] > 10 else 1)}

            return poisoned

        train.loss_function = loss_function
    return original(args, ranks)


original, train.train = train.train, main_of_rank
if __name__ == "__main__":
    assert trainer
    train.opt.run_script(train.main)
