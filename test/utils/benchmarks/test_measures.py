"""What is measured, where the answer is known."""

import json
import statistics
import subprocess
import sys
import time

import pytest
import torch
from helpers import DEMO, ROOT

from utils.benchmarks import turns
from utils.benchmarks.bars import draw_bars
from utils.benchmarks.case import Case
from utils.benchmarks.comparison import machine_of, versions
from utils.benchmarks.contender_process import ContenderProcess
from utils.benchmarks.contenders import ENTRIES, TRAIN
from utils.benchmarks.memory import highest_memory, start_peak
from utils.benchmarks.report import as_markdown, write_report
from utils.benchmarks.results import CaseResult, Comparison, ContenderResult, Measure, Peak
from utils.benchmarks.shares import loader_share, sampler_overhead
from utils.benchmarks.turns import WARM_UP_ROUNDS, spread_of, take_turns, timer_of
from utils.devices import Precision
from utils.errors import UserError

CPU = torch.device("cpu")
FULL = Precision(torch.float32, CPU)
MIB = 2**20


def timers(variants):
    return {name: timer_of(run, CPU) for name, run in variants.items()}


def test_variants_take_turns_and_neither_always_comes_first():
    calls = []
    variants = {name: lambda name=name: calls.append(name) for name in ("a", "b")}
    seconds = take_turns(timers(variants), 3, lambda: calls.append("-"))
    assert calls == ["b", "-", "a", "-", "a", "-", "b", "-"] * 2 + ["b", "-", "a", "-"]
    assert [len(each) for each in seconds.values()] == [3, 3] and WARM_UP_ROUNDS == 2


def test_time_between_turns_does_not_count():
    variants = {"a": lambda: time.sleep(0.002)}
    seconds = take_turns(timers(variants), 2, lambda: time.sleep(0.2))
    assert all(0.002 <= each < 0.1 for each in seconds["a"])


def test_what_is_short_is_repeated_within_its_turn():
    calls = []

    def short():
        calls.append("short")
        time.sleep(0.005)

    variants = {"short": short, "long": lambda: calls.append("long") or time.sleep(0.05)}
    seconds = take_turns(timers(variants), 1, shortest_turn=0.05)
    assert calls.count("long") == 1 + 2 * WARM_UP_ROUNDS  # but for the first, turns begin warm
    assert calls[-4:] == ["short"] * 4
    assert 0.005 <= seconds["short"][0] < 0.05


@pytest.mark.parametrize("is_long", [False, True])
def test_turns_begin_warm_unless_a_variant_is_long(monkeypatch, is_long):
    """All alike: a warm side beside a cold one would look faster than it is."""
    monkeypatch.setattr(turns, "LONG_RUN", 0.02)
    asked = []

    def timer(name, mean):
        return lambda repeats, begins_warm: asked.append((name, begins_warm)) or mean

    timers = {"a": timer("a", 0.01), "b": timer("b", 0.03 if is_long else 0.01)}
    take_turns(timers, 1, shortest_turn=0.001)
    assert asked[-2:] == [("b", not is_long), ("a", not is_long)]
    asked.clear()
    take_turns(timers, 1)  # such as a save, which the one before it would hold up
    assert not any(begins_warm for _, begins_warm in asked)


def test_the_first_run_of_a_warm_turn_does_not_count():
    pauses = iter([0.2, 0.001, 0.001])
    assert timer_of(lambda: time.sleep(next(pauses)), CPU)(2, True) < 0.1
    pauses = iter([0.2, 0.001])
    assert timer_of(lambda: time.sleep(next(pauses)), CPU)(2, False) >= 0.1


def test_spread_is_the_distance_between_quartiles():
    assert spread_of([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx(2 / 3)
    assert spread_of([7.0]) == 0
    assert spread_of([1.0] * 9 + [100.0]) == 0  # one disturbance


def test_a_measure_follows_its_definitions():
    measure = Measure([0.5, 0.1, 0.2], images=4, operations=1e9, peak=40e9)
    assert measure.median == 0.2 and measure.images_per_second == pytest.approx(20)
    assert measure.operations_per_second == pytest.approx(20e9)
    assert measure.share_of_peak == pytest.approx(0.5)


def test_sampler_overhead_is_what_the_network_does_not_take():
    class Slow(torch.nn.Module):
        def forward(self, x):
            time.sleep(0.03)
            return x

    network = Slow()

    def sample():
        for _ in range(2):
            network(torch.zeros(1))
        time.sleep(0.02)

    shares = sampler_overhead(network, sample, CPU, rounds=3)
    assert len(shares) == 3 and not network._forward_hooks and not network._forward_pre_hooks
    assert 0.1 < statistics.median(shares) < 0.5  # 0.25 on a quiet machine


def test_loader_share_counts_real_steps():
    case = Case("tiny", 8, 1, 4, 2)
    loader = loader_share(DEMO, case, FULL, steps=3)
    assert loader.images == 2000 and len(loader.seconds) == len(loader.seconds_in_loader) == 3
    pairs = zip(loader.seconds_in_loader, loader.seconds, strict=True)
    assert all(0 < waited < step for waited, step in pairs)
    assert loader.share == pytest.approx(sum(loader.seconds_in_loader) / sum(loader.seconds))


def test_peak_memory_is_that_of_what_follows():
    """In a process of its own: the earlier peak, and the parent's memory, do not count."""
    script = """
import torch
from utils.benchmarks.memory import highest_memory, start_peak
device = torch.device("cpu")
torch.ones(64 * 2**20 // 4)
before = start_peak(device)
nothing = highest_memory(device) - before
torch.ones(32 * 2**20 // 4)
print([nothing, highest_memory(device) - before])
"""
    ballast = torch.ones(128 * MIB // 4)
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert len(ballast) > 0
    nothing, used = json.loads(done.stdout)
    assert nothing < 2 * MIB
    assert 30 * MIB < used < 40 * MIB


def test_memory_only_grows():
    before = start_peak(CPU)
    assert highest_memory(CPU) >= before > 0


def test_a_failing_process_is_named():
    with pytest.raises(UserError, match="(?s)nobody: .* ended with status 1: .*KeyError"):
        ContenderProcess("nobody", Case("tiny", 8, 1, 1, 1), FULL, threads=1)


def test_a_process_that_fails_later_is_named():
    with ContenderProcess("ours_adamw", Case("tiny", 8, 1, 1, 1), FULL, threads=1) as process:
        with pytest.raises(UserError, match="(?s)ours_adamw: .* ended with status 1: .*KeyError"):
            process.seconds("fly", 1, False)


def test_a_process_that_is_killed_between_turns_is_named():
    with ContenderProcess("ours_adamw", Case("tiny", 8, 1, 1, 1), FULL, threads=1) as process:
        assert process.seconds(TRAIN, 2, True) > 0 and 0 < process.sampler_overhead(1)[0] < 1
        process._process.kill()
        with pytest.raises(UserError, match="ours_adamw: .* ended with status -9"):
            process.seconds(TRAIN, 1, False)


# --- The report ---


def comparison():
    """Made-up numbers for every contender."""
    results = [
        ContenderResult(
            key,
            number_format,
            parameters=2_000_000,
            training=Measure([0.1 * (i + 1)], 32, 3e9, 1e12),
            call=None if entry.only_trains else Measure([0.02 * (i + 1)], 32, 1e9, 1e12),
            sampling=None if entry.only_trains else Measure([0.2 * (i + 1)], 32, 1e10, 1e12),
            sampler_overhead=[] if entry.only_trains else [0.01],
            start_up=[4.0, 3.0, 9.0],
            memory=[100 * MIB],
        )
        for number_format in ("float32", "bfloat16")
        for i, (key, entry) in enumerate(ENTRIES.items())
    ]
    case = CaseResult("28x28x1", "tiny", 32, 10, {"name": "unet"}, 1e-7, results)
    return Comparison(
        date="2026-01-01T00:00:00+00:00",
        machine=machine_of(CPU),
        versions=versions(),
        options={},
        left_out=["some_peer is left out: it is not installed (pip install some-peer)"],
        peaks=[Peak("float32", 1e12, "64 to 64 channels")],
        cases=[case, case],
    )


def test_markdown_has_the_numbers():
    text = as_markdown(comparison())
    assert "some_peer is left out: it is not installed (pip install some-peer)." in text
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    row = next(row for row in rows if row[:2] == ["diffusers, adamw", "bfloat16"])
    assert row[2:] == ["2.00 M", "300.0", "0%", "3.00", "107", "320", "32%"]
    sampling = [row for row in rows if row[:1] == ["ours"] and len(row) == 10]
    assert [row[-1] for row in sampling] == ["1.0%"] * 4
    memory = next(row for row in rows if row[:1] == ["28x28x1, ours, adamw"])
    assert memory[1:] == ["float32", "100 MiB", "4.0 s"]


def test_files_are_written(tmp_path):
    found = comparison()
    write_report(found, tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "benchmark.json",
        "benchmark.md",
        "benchmark.png",
    ]
    written = json.loads((tmp_path / "benchmark.json").read_text())
    assert written == json.loads(json.dumps(found.to_dict()))
    assert written["cases"][0]["contenders"][1]["call"] is None


def test_longer_bars_are_faster():
    """The first contender of the made-up ones is the fastest, so that its colour covers most."""
    picture = draw_bars(comparison())
    counts = {colour: count for count, colour in picture.getcolors(maxcolors=1 << 16)}
    from utils.benchmarks.bars import COLOURS

    assert counts[COLOURS["ours_muon"]] > 2 * counts[COLOURS["diffusers"]]
    assert counts[COLOURS["diffusers"]] > counts[COLOURS["denoising_diffusion_pytorch"]]
