"""How much memory a network call is said to take, beside what one takes."""

import subprocess
import sys

import pytest
import torch
from helpers import ROOT

from utils.call_memory import PeakOfTensors, memory_of_row

MEGABYTE = 1e6
NETWORK = {"name": "unet", "in_channels": 3, "channels": 32, "blocks_per_level": 1}

# Prints the bytes that a call of so many images takes beyond one of a single image.
CALL = r"""
import re
from pathlib import Path
import torch
from model.networks import build_network
from utils.devices import Precision, choose_device
from utils.ranks import Ranks

torch.set_num_threads(1)
precision = Precision(torch.float32, choose_device(-1, Ranks()))
network = precision.place_for_calls(build_network({network}).eval())

def most_memory(images):
    with torch.inference_mode():
        network(torch.randn(images, 3, {side}, {side}), torch.zeros(images, dtype=torch.long))
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])

of_one = most_memory(1)
print(most_memory(1 + {images}) - of_one)
"""


def test_tensors_count_until_they_are_let_go_of():
    with torch.device("meta"), PeakOfTensors() as tensors:
        first = torch.empty(250, dtype=torch.float32)  # 1,000 bytes
        view = first.view(25, 10)
        second = first + 1
        del first
        third = second * 2  # the view still holds the first
        del view, second
        fourth = third + third
    assert tensors.peak == 3000
    assert fourth.shape == (250,)


def test_it_grows_with_the_pixels_and_the_channels():
    small = memory_of_row(NETWORK, (64, 64))
    assert 3.8 * small < memory_of_row(NETWORK, (128, 128)) < 4.2 * small
    assert 1.8 * small < memory_of_row({**NETWORK, "channels": 64}, (64, 64)) < 2.2 * small
    assert memory_of_row(NETWORK, (64, 96)) == pytest.approx(1.5 * small, rel=0.05)
    assert memory_of_row(NETWORK, (64, 64), torch.bfloat16) < 0.6 * small


def test_attention_over_many_positions_needs_no_table_of_all_pairs():
    plain = memory_of_row(NETWORK, (128, 128))
    attentive = memory_of_row({**NETWORK, "attention_levels": [0]}, (128, 128))
    assert attentive < 2 * plain < 4 * 128**4  # the table's bytes, of a single head


def test_other_networks_have_a_memory_too():
    assert memory_of_row({**NETWORK, "name": "cspdarkunet"}, (64, 64)) > MEGABYTE


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells the peak so")
def test_it_is_what_a_call_takes():
    side, images = 128, 7
    code = CALL.format(network=NETWORK, side=side, images=images)
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    taken = int(done.stdout) / images
    assert 0.8 * taken < memory_of_row(NETWORK, (side, side)) < 3 * taken
