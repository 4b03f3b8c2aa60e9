"""Whether another program has started this process as one of several. Standard library only."""

import os

# What torchrun sets, and torch's own `env://` asks for; also set by hand with srun and mpirun.
NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def are_others() -> bool:
    """Whether torchrun, or another launcher, says that this process is one of several."""
    if any(not os.environ.get(name) for name in NEEDED):
        return False
    return "TORCHELASTIC_RUN_ID" in os.environ or os.environ["WORLD_SIZE"] != "1"


def number_of(name: str) -> int | None:
    """A number in the environment; None where it is not there, or no number."""
    value = os.environ.get(name, "")
    return int(value) if value.isascii() and value.isdecimal() else None
