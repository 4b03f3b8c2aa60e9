"""Freed memory is used again."""

import platform
import subprocess
import sys

import pytest
from helpers import ROOT

# Prints how many pages the system had to hand out for large tensors that come and go.
CODE = """
import resource
import torch
from utils.devices import choose_device
from utils.ranks import Ranks

def come_and_go():
    for megabytes in (1, 4, 40, 100):
        tensors = [torch.ones(megabytes * 2**18) for _ in range(3)]

{before}
for _ in range(3):
    come_and_go()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    come_and_go()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def pages(before: str) -> int:
    command = [sys.executable, "-c", CODE.format(before=before)]
    return int(subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators do as they do")
def test_a_process_that_computes_on_the_cpu_uses_freed_memory_again():
    fresh = pages("")
    assert fresh > 300_000  # nine rounds' worth of every tensor: without it, all of them
    # Mostly it is none. A small block that settles in a hole may cost one tensor's place once.
    assert pages("choose_device(-1, Ranks())") < fresh / 10
