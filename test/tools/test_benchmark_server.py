"""benchmark_server.py through its command line: what it counts, and what it refuses."""

import re

import pytest

CPU = ["--use_gpu", -1]


def test_equal_jobs_share_network_calls(script):
    out = script("benchmark_server", "sharing", "--sample_steps", 3, *CPU).stdout
    calls, times = re.search(
        r"8 equal jobs of 3 steps: (\d+) network calls, ([0-9.]+) x", out
    ).groups()
    assert 3 <= int(calls) < 8 * 3
    assert float(times) == pytest.approx(int(calls) / 3, abs=0.01)


def test_images_per_second_beside_generate(script):
    options = ["--num_images", 70, "--sample_steps", 1, "--rounds", 1, *CPU]  # more than serve.py's
    lines = script("benchmark_server", "throughput", *options).stdout.splitlines()
    rates = [re.search(r"([0-9.]+) images/s +([0-9.]+) of generate.py's", line) for line in lines]
    assert len(rates) == 3 and all(float(rate[1]) > 0 for rate in rates)
    assert float(rates[0][2]) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sample_steps", 2000], "the server refuses a job: "),
        (["--weight_path", "nowhere/x.pt"], "is no file"),
    ],
)
def test_mistakes(script, options, message):
    assert message in script("benchmark_server", "sharing", *options, *CPU, status=2).stderr
