"""Whether another program has started this process as one of several. Standard library only."""

import os

# What torchrun sets, and torch's own `env://` asks for; with srun and mpirun, people set it.
NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
TORCHRUN = "TORCHELASTIC_RUN_ID"


def is_of_torchrun() -> bool:
    """Whether torchrun has started this process."""
    return TORCHRUN in os.environ and is_one_of_several()


def is_one_of_several() -> bool:
    """Whether the environment says that this process is one of several, or torchrun's only one."""
    if any(not os.environ.get(name) for name in NEEDED):
        return False
    return TORCHRUN in os.environ or os.environ["WORLD_SIZE"] != "1"


def joins_others(distributed: bool) -> bool:
    """Whether a script joins processes that others have started: those of torchrun always, and
    where several are asked for those of srun, mpirun and the like.
    """
    return is_of_torchrun() or (distributed and is_one_of_several())


def number_of(name: str) -> int | None:
    """A number in the environment; None where it is not there, or no number."""
    value = os.environ.get(name, "")
    return int(value) if value.isascii() and value.isdecimal() else None


def own_environment() -> dict[str, str]:
    """The environment for a script that is to run by itself."""
    return {name: value for name, value in os.environ.items() if name not in (*NEEDED, TORCHRUN)}
