"""How a user's mistake ends a script: one sentence. Standard library only."""

import contextlib
from collections.abc import Iterable, Iterator

# In the messages of errors for which torch has no class: the host's allocator, that of Apple's
# GPUs and CUDA itself ("out of memory"), and CUDA's libraries (CUBLAS_STATUS_ALLOC_FAILED).
MEMORY_HAS_RUN_OUT = ("DefaultCPUAllocator", "out of memory", "_ALLOC_FAILED")

TOO_LITTLE_MEMORY = "too little memory"  # where an error itself says nothing


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
    text = str(error)
    return isinstance(error, RuntimeError) and any(words in text for words in MEMORY_HAS_RUN_OUT)


class TooLittleMemory(MemoryError):
    """Memory, of the host or of a GPU, has run out: one sentence, with what would need less."""


@contextlib.contextmanager
def advice_on_memory(advice: str) -> Iterator[None]:
    """Raise TooLittleMemory with this advice where memory runs out."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error) or isinstance(error, TooLittleMemory):
            raise
        found = f" ({error})" if str(error) else ""
        raise TooLittleMemory(f"memory has run out; {advice}{found}") from error


class Stopped(Exception):
    """A signal asked a run to stop, and it has saved. `status` is the exit status to end with."""

    def __init__(self, signal_number: int):
        super().__init__(f"stopped by signal {signal_number}")
        self.status = 128 + signal_number


class NotSaved(Exception):
    """A run has come to its end, but its last checkpoint could not be written."""
