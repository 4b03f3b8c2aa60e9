"""How much memory is free: files of Linux as they are, and as a container has them."""

import math

import pytest
import torch

from utils import free_memory as module
from utils.free_memory import free_memory

CPU = torch.device("cpu")
MEGABYTE = 2**20


@pytest.fixture
def system(tmp_path, monkeypatch):
    """system(**files) writes what Linux says; nothing else is there."""
    monkeypatch.setattr(module, "MEMORY_INFO", tmp_path / "meminfo")
    monkeypatch.setattr(module, "OWN_GROUP", tmp_path / "cgroup")
    monkeypatch.setattr(module, "GROUPS", tmp_path / "groups")

    def write(available=1000, group="/", **groups):
        lines = ["MemTotal:       99999 kB", f"MemAvailable:   {available * 1024} kB"]
        (tmp_path / "meminfo").write_text("\n".join(lines))
        (tmp_path / "cgroup").write_text(f"1:name=systemd:/other\n0::{group}\n")
        for name, (bound, used, kept) in groups.items():
            folder = tmp_path / "groups" / ("" if name == "root" else name.replace("__", "/"))
            folder.mkdir(parents=True, exist_ok=True)
            bound = bound if bound == "max" else bound * MEGABYTE
            (folder / "memory.max").write_text(f"{bound}\n")
            (folder / "memory.current").write_text(f"{used * MEGABYTE}\n")
            (folder / "memory.stat").write_text(
                f"anon 12345\ninactive_file {(kept - kept // 2) * MEGABYTE}\n"
                f"active_file {kept // 2 * MEGABYTE}\ninactive_anon 5\n"
            )

    return write


def test_this_machine_has_some():
    assert 10 * MEGABYTE < free_memory(CPU) < 2**50


def test_what_the_host_has(system):
    system(available=1000)
    assert free_memory(CPU) == 1000 * MEGABYTE
    assert free_memory(CPU, processes=4) == 250 * MEGABYTE


@pytest.mark.parametrize(
    ("group", "groups", "free"),
    [
        ("/", {"root": (600, 200, 50)}, 450),  # files that are only kept can go
        ("/", {"root": ("max", 200, 50)}, 1000),
        ("/", {"root": (5000, 200, 50)}, 1000),  # more than the host has
        ("/a/b", {"a__b": ("max", 9, 0), "a": (300, 100, 0)}, 200),  # a group above is tighter
        ("/a/b", {"a__b": (300, 100, 0), "a": (700, 100, 0)}, 200),
        ("/a/b", {"c": (10, 0, 0)}, 1000),  # another one's
        ("/../elsewhere", {"root": (10, 0, 0)}, 10),
    ],
)
def test_a_container_has_no_more_than_its_bound(system, group, groups, free):
    system(group=group, **groups)
    assert free_memory(CPU) == free * MEGABYTE


@pytest.mark.parametrize("line", ["4:memory:/a/b", "4:cpuset,memory:/a/b"])
def test_groups_of_version_1(system, tmp_path, line):
    system(available=1000)
    (tmp_path / "cgroup").write_text(f"9:name=systemd:/memory\n{line}\n0::/\n")
    for name, bound in (("", 2**63 - 4096), ("a", 500 * MEGABYTE), ("a/b", 2**63 - 4096)):
        folder = tmp_path / "groups/memory" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "memory.limit_in_bytes").write_text(f"{bound}\n")
        (folder / "memory.usage_in_bytes").write_text(f"{200 * MEGABYTE}\n")
        kept = f"inactive_file 1\ntotal_inactive_file {20 * MEGABYTE}\n"
        kept += f"active_file 1\ntotal_active_file {10 * MEGABYTE}\n"
        (folder / "memory.stat").write_text(kept)
    assert free_memory(CPU) == 330 * MEGABYTE


def test_where_nothing_says(tmp_path, monkeypatch):
    for name in ("MEMORY_INFO", "OWN_GROUP", "GROUPS"):
        monkeypatch.setattr(module, name, tmp_path / "none")
    monkeypatch.setattr(module.os, "sysconf", lambda name: {"SC_PAGE_SIZE": 4096}.get(name, 1000))
    assert free_memory(CPU) == 4096 * 1000
    monkeypatch.delattr(module.os, "sysconf")
    assert free_memory(CPU) == math.inf
