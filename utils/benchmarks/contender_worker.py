"""What runs in a process of its own: a contender's imports, a few training steps, and then what it
is asked for. Started by `ContenderProcess`.

Prints a line after the first step, one with what is known of the contender then, and from then on
one line for each that it reads, until there are no more.
"""

import json
import sys
from typing import TYPE_CHECKING, Any

from utils.benchmarks.contenders import (
    CALL,
    OVERHEAD,
    SAMPLE,
    TRAIN,
    build_contender,
    import_contender,
)

if TYPE_CHECKING:
    import torch

    from utils.benchmarks.contenders import Contender

STEPS = 3


def main() -> None:
    request = json.loads(sys.argv[1])
    import_contender(request["contender"])
    import torch

    from utils.benchmarks.case import Case
    from utils.benchmarks.memory import highest_memory, start_peak
    from utils.devices import Precision, prepare_for_training

    torch.set_num_threads(request["threads"])
    device = torch.device(request["device"])
    if device.type == "cuda":
        torch.cuda.set_device(device)
    prepare_for_training(device)
    # The first optimizer imports torch's compiler, whose memory is no contender's.
    torch.optim.AdamW([torch.zeros(1)])
    precision = Precision(getattr(torch, request["number_format"]), device)
    case = Case(**request["case"])
    weights = case.random_weights()

    before = start_peak(device)
    contender = build_contender(request["contender"], case, precision, weights)
    contender.train()
    say("first step")
    for _ in range(STEPS - 1):
        contender.train()
    say(
        {
            "memory": highest_memory(device) - before,
            "parameters": sum(each.numel() for each in contender.network.parameters()),
            "operations": contender.operations,
        }
    )
    for line in sys.stdin:
        asked = json.loads(line)
        say(answer(contender, **asked, device=device))


def answer(
    contender: "Contender", what: str, repeats: int, begins_warm: bool, device: "torch.device"
) -> float | list[float]:
    """Mean seconds of so many runs, or the overhead of so many samplings."""
    from utils.benchmarks.shares import sampler_overhead
    from utils.benchmarks.turns import timer_of

    if what == OVERHEAD:
        return sampler_overhead(contender.frozen(), contender.sample, device, repeats)
    runs = {TRAIN: contender.train, CALL: contender.call, SAMPLE: contender.sample}
    return timer_of(runs[what], device)(repeats, begins_warm)


def say(found: Any) -> None:
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
