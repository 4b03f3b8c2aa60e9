"""The gradients of a step on two processes, which only tests use.

    python test/helper_gradients.py FOLDER COMPRESSION

Each process writes <rank>.pt: what its own images alone give ("own"), and what the processes have
agreed on ("shared"), each as one vector.
"""

import contextlib
import copy
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from utils.devices import wrap_network  # noqa: E402
from utils.launch import Processes, launch  # noqa: E402

MICRO_BATCHES = 2


def write_gradients(folder: Path, compression: str, ranks) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 8, 3), nn.SiLU(), nn.Conv2d(8, 1, 3))
    alone = copy.deepcopy(network)
    wrapped = wrap_network(network, ranks, False, compression)
    generator = torch.Generator().manual_seed(ranks.rank)
    for micro in range(MICRO_BATCHES):
        images = torch.randn(4, 1, 8, 8, generator=generator)
        alone(images).pow(2).mean().backward()
        is_last = micro == MICRO_BATCHES - 1
        with contextlib.nullcontext() if is_last else wrapped.no_sync():
            wrapped(images).pow(2).mean().backward()
    gradients = {"own": gradient(alone), "shared": gradient(network)}
    torch.save(gradients, folder / f"{ranks.rank}.pt")


def gradient(network: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in network.parameters()])


if __name__ == "__main__":
    work = partial(write_gradients, Path(sys.argv[1]), sys.argv[2])
    launch(work, Processes(True, 2, 0, 60.0, first_gpu=-1))
