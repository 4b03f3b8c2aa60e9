"""How much memory there is for a process to take, of the host or of a GPU."""

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from utils.host_memory import give_back_freed_memory

# Of Linux: the whole host's, and the bounds of the groups that a container's processes are in.
MEMORY_INFO = Path("/proc/meminfo")
OWN_GROUP = Path("/proc/self/cgroup")
GROUPS = Path("/sys/fs/cgroup")
KIBIBYTE = 1024

# Share of the free memory that the reckoned part of a computation may take. The rest is for what is
# not reckoned: previews, the workspace of kernels, gaps between blocks, and other programs.
SHARE_OF_MEMORY = 0.8


def free_memory(device: torch.device, processes: int = 1) -> float:
    """Bytes that are free where this device computes; infinite where nothing says.

    Of a GPU, what no process has taken. Of the host, what can be had without swapping, within the
    bounds of the container, divided by the `processes` of this machine that share it.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return float(free)
    if device.type == "mps":
        taken = torch.mps.driver_allocated_memory()
        return float(torch.mps.recommended_max_memory() - taken)
    return min(_free_on_host(), _left_in_groups()) / processes


def give_back_memory() -> None:
    """What this process keeps for later, though it does not use it, becomes free for all."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()
    give_back_freed_memory()


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


@dataclass(frozen=True)
class GroupFiles:
    """How a version of Linux's control groups tells what a group may take."""

    own: str  # pattern of the line that names this process's group
    root: str  # the folder of all groups
    bound: str  # file of bytes; anything else than a number: none
    used: str  # file of bytes
    kept: str  # pattern, in memory.stat: of files that are only kept in case they are read again


VERSIONS = (
    GroupFiles(r"^0::/(.*)$", ".", "memory.max", "memory.current", r"(?:in)?active_file"),
    GroupFiles(
        r"^\d+:[^:]*\bmemory\b[^:]*:/(.*)$",
        "memory",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        r"total_(?:in)?active_file",
    ),
)


def _left_in_groups() -> float:
    """What the tightest control group that this process is in leaves it."""
    try:
        own = OWN_GROUP.read_text()
    except OSError:
        return math.inf
    left = [math.inf]
    for files in VERSIONS:
        found = re.search(files.own, own, re.M)
        if found is not None:
            root = GROUPS / files.root
            group = root / found[1]
            groups = [group, *group.parents]
            left += [_left_in_group(each, files) for each in groups[: groups.index(root) + 1]]
    return min(left)


def _left_in_group(group: Path, files: GroupFiles) -> float:
    """Its bound, less what it uses, but for files that are only kept."""
    try:
        bound = int((group / files.bound).read_text())
        used = int((group / files.used).read_text())
        kept = re.findall(rf"^{files.kept} (\d+)$", (group / "memory.stat").read_text(), re.M)
    except (OSError, ValueError):  # no such group here, or no bound: "max"
        return math.inf
    return float(bound - used + sum(map(int, kept)))
