"""benchmark_processes.py trains on both sides; what it measures is for people."""

import re

import pytest

TINY = ["--channels", 8, "--channel_mult", "4,8", "--image_size", 8, "--rounds", 1, "--steps", 1]
TINY += ["--optim", "adamw"]


@pytest.mark.fault
def test_both_sides_train(script):
    out = script("benchmark_processes", *TINY, "--batch_size", 4, "--threads", 2).stdout
    sides = re.findall(r"^processes (\d), threads of each (\d) +([\d.]+) images/s", out, re.M)
    assert [side[:2] for side in sides] == [("1", "2"), ("2", "1")]
    assert all(float(speed) > 0 for *_, speed in sides)


def test_what_cannot_be_shared_out_is_refused(script):
    for options, sentence in [
        (["--batch_size", 5, "--threads", 2], "a global batch of 5 images cannot be shared"),
        (["--batch_size", 4, "--threads", 1], "2 processes need a thread each, and there are 1"),
        (["--processes", 1], "--processes 1 is what the first side has"),
        (["--threads", 2, "--image_size", 9], "9"),
    ]:
        assert sentence in script("benchmark_processes", *TINY, *options, status=2).stderr
