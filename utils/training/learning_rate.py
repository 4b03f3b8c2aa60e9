"""The learning rate: a pure function of the step, so that nothing needs to be saved."""

import math

LONGEST_WARMUP = 0.1  # of the run
USUAL_WARMUP = 0.05  # of the run
LONGEST_USUAL_WARMUP = 5000  # steps: DDPM's


def learning_rate(
    step: int, total_steps: int, lr: float, schedule: str, warmup_steps: int
) -> float:
    """The rate of step 0..total_steps-1. Never zero.

    `schedule` is linear, cosine, warmup_cosine or constant.
    """
    if schedule == "constant":
        return lr
    if schedule == "linear":
        return lr * (1 - step / total_steps)
    if schedule not in ("cosine", "warmup_cosine"):
        raise ValueError(f"learning rate schedule {schedule!r} is unknown")
    warmup = 1.0
    if schedule == "warmup_cosine":
        warmup = min(1.0, (step + 1) / max(1, warmup_steps))
    return warmup * lr * (1 + math.cos(math.pi * step / total_steps)) / 2


def allowed_warmup(warmup_steps: int | None, total_steps: int) -> int:
    """The steps of the warm-up: at most a tenth of the run, since a longer one would leave its
    highest rate unused. None: the usual share of the run.
    """
    if warmup_steps is None:
        return min(LONGEST_USUAL_WARMUP, round(USUAL_WARMUP * total_steps))
    return min(warmup_steps, int(total_steps * LONGEST_WARMUP))
