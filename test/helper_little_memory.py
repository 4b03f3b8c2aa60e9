"""train.py whose memory runs out, as torch itself says it, in the step numbered LITTLE_MEMORY."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch  # noqa: E402

from tools import train  # noqa: E402
from utils.training.fit import TrainingLoop  # noqa: E402

MORE_THAN_THERE_IS = 2**50  # numbers


def compute_step(self, batches, lr):
    is_timed = self.schedule.total_steps == 1
    if not is_timed and self.state.step == int(os.environ.get("LITTLE_MEMORY", -1)):
        torch.empty(MORE_THAN_THERE_IS)
    return compute(self, batches, lr)


compute, TrainingLoop.compute_step = TrainingLoop.compute_step, compute_step
if __name__ == "__main__":
    train.opt.run_script(train.main)
