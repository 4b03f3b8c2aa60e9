"""How much memory there is for a process to take, of the host or of a GPU."""

import math
import os
import re
from pathlib import Path

import torch

# Of Linux: the whole host's, and the bounds of the groups that a container's processes are in.
MEMORY_INFO = Path("/proc/meminfo")
OWN_GROUP = Path("/proc/self/cgroup")
GROUPS = Path("/sys/fs/cgroup")
KIBIBYTE = 1024


def free_memory(device: torch.device) -> float:
    """Bytes that are free where this device computes; infinite where nothing says.

    Of a GPU, what no process has taken. Of the host, what can be had without swapping, within the
    bounds of the container.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return float(free)
    if device.type == "mps":
        taken = torch.mps.driver_allocated_memory()
        return float(torch.mps.recommended_max_memory() - taken)
    return min(_free_on_host(), _left_in_groups())


def _free_on_host() -> float:
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB", MEMORY_INFO.read_text(), re.M)
    except OSError:
        return _all_of_host()
    return math.inf if found is None else float(KIBIBYTE * int(found[1]))


def _all_of_host() -> float:
    """The most that is known where the system is not Linux."""
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, OSError, ValueError):  # Windows has no sysconf
        return math.inf


def _left_in_groups() -> float:
    """What the tightest control group (version 2) that this process is in leaves it."""
    try:
        found = re.search(r"^0::/(.*)$", OWN_GROUP.read_text(), re.M)
    except OSError:
        return math.inf
    if found is None:
        return math.inf
    own = GROUPS / found[1]
    groups = [own, *own.parents]
    return min(map(_left_in_group, groups[: groups.index(GROUPS) + 1]))


def _left_in_group(group: Path) -> float:
    """Its bound, less what it uses; files that are only kept in case they are read again count as
    free.
    """
    try:
        bound = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        kept = re.search(r"^inactive_file (\d+)$", (group / "memory.stat").read_text(), re.M)
    except (OSError, ValueError):  # no such group here, or no bound: "max"
        return math.inf
    return float(bound - used + (int(kept[1]) if kept else 0))
