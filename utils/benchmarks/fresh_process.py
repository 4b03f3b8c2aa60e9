"""What runs in a process of its own: a contender's imports and a few training steps. Started by
`fresh.measure_fresh`.

Prints a line after the first step, and then one with the memory that all of them took.
"""

import json
import sys

from utils.benchmarks.contenders import build_contender, import_contender

STEPS = 3


def main() -> None:
    request = json.loads(sys.argv[1])
    import_contender(request["contender"])
    import torch

    from utils.benchmarks.case import Case
    from utils.benchmarks.memory import highest_memory, start_peak
    from utils.devices import Precision, choose_device, prepare_for_training
    from utils.ranks import Ranks

    torch.set_num_threads(request["threads"])
    device = choose_device(request["use_gpu"], Ranks())
    prepare_for_training(device)
    # The first optimizer imports torch's compiler, whose memory is no contender's.
    torch.optim.AdamW([torch.zeros(1)])
    precision = Precision(getattr(torch, request["number_format"]), device)

    before = start_peak(device)
    contender = build_contender(request["contender"], Case(**request["case"]), precision)
    contender.train()
    print("first step", flush=True)
    for _ in range(STEPS - 1):
        contender.train()
    print(json.dumps({"memory": highest_memory(device) - before}), flush=True)


if __name__ == "__main__":
    main()
