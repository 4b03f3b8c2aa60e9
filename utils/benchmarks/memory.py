"""How much memory is in use, of the GPU or of this process, in bytes."""

import re
import sys
from pathlib import Path

import torch

STATUS = Path("/proc/self/status")  # Linux
CLEAR = Path("/proc/self/clear_refs")
CLEAR_PEAK = "5"  # sets the peak to what is resident now


def highest_memory(device: torch.device) -> int:
    """The most that was in use until now.

    Not ru_maxrss on Linux: a new process inherits there what its parent had.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    from_status = _status("VmHWM")
    if from_status is not None:
        return from_status
    import resource  # which Windows lacks

    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def start_peak(device: torch.device) -> int:
    """What is in use now; from here on `highest_memory` is that of what follows, where the system
    can forget an earlier peak.
    """
    if device.type == "cuda":
        torch.cuda.init()
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    try:
        CLEAR.write_text(CLEAR_PEAK)
    except OSError:
        pass  # then the earlier peak stays, and the difference to it is what can be said
    return highest_memory(device)


def _status(name: str) -> int | None:
    """A line of Linux's status file, or None elsewhere."""
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB", STATUS.read_text(), re.M)
    except OSError:
        return None
    return None if found is None else 1024 * int(found[1])
