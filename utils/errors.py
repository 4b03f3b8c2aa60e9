"""How a user's mistake ends a script: one sentence. Standard library only."""

from collections.abc import Iterable


class UserError(Exception):
    """A user's mistake, in one sentence: what is wrong, what was found, what would work."""


def name_list(names: Iterable[str], limit: int = 10) -> str:
    """ "a, b, c and 7 more": names for a message."""
    names = list(names)
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


class ReadError(UserError):
    """A file that was readable and no longer is: a run saves what it has, then ends."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory, of the host or of a GPU, has run out."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True  # torch's class by its name: torch need not be imported
    # torch's allocator for the host has no class of its own.
    return type(error) is RuntimeError and "DefaultCPUAllocator" in str(error)


class Stopped(Exception):
    """A signal asked a run to stop, and it has saved. `status` is the exit status to end with."""

    def __init__(self, signal_number: int):
        super().__init__(f"stopped by signal {signal_number}")
        self.status = 128 + signal_number


class NotSaved(Exception):
    """A run has come to its end, but its last checkpoint could not be written."""
