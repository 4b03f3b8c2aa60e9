"""Devices, number formats and the checks before processes start. No GPU is needed: its absence is
played.
"""

import copy
import math
import signal

import pytest
import torch

from model.modules.layers import GroupNorm
from model.modules.resample import Upsample
from model.networks import build_network
from utils import launch as launch_module
from utils.devices import Precision, choose_device, choose_precision
from utils.errors import NotSaved, Stopped, UserError
from utils.launch import Processes, launch
from utils.processes_of_others import is_one_of_several, joins_others, own_environment
from utils.ranks import NOT_SAVED, Ranks, saving_key


def play_gpus(monkeypatch, count, capability=(9, 0)):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)


def test_device(monkeypatch):
    assert choose_device(-1, Ranks()).type == "cpu"
    play_gpus(monkeypatch, 2)
    assert str(choose_device(1, Ranks())) == "cuda:1" and str(choose_device(-1, Ranks())) == "cpu"
    assert str(choose_device(0, Ranks(rank=5, world_size=8, local_rank=1))) == "cuda:1"
    with pytest.raises(UserError, match="GPU 2 is not there"):
        choose_device(1, Ranks(rank=5, world_size=8, local_rank=1))
    with pytest.raises(UserError, match="GPU 2 is not there: this machine has 2"):
        choose_device(2, Ranks())


def test_precision(monkeypatch):
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    assert choose_precision(False, gpu)[0].dtype == torch.float32
    play_gpus(monkeypatch, 1, (9, 0))
    assert choose_precision(True, gpu)[0].dtype == torch.bfloat16
    play_gpus(monkeypatch, 1, (7, 5))
    assert choose_precision(True, gpu)[0].dtype == torch.float16
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    private = "_is_avx512_bf16_supported"
    monkeypatch.setattr(torch.cpu, private, lambda: True, raising=False)
    assert choose_precision(True, cpu)[0].dtype == torch.bfloat16
    monkeypatch.setattr(torch.cpu, private, lambda: False)
    precision, remark = choose_precision(True, cpu)
    assert precision.dtype == torch.float32 and "no effect" in remark


@pytest.mark.parametrize(
    ("machine", "line", "native"),
    [
        ("x86_64", "flags\t\t: fpu avx512f avx512_bf16 sha_ni", True),
        ("x86_64", "flags\t\t: fpu avx512f", False),
        ("aarch64", "Features\t: fp asimd bf16 i8mm", True),
        ("aarch64", "Features\t: fp asimd", False),
        ("arm64", None, False),  # Apple has no /proc/cpuinfo
    ],
)
def test_bf16_without_torch_s_private_function(monkeypatch, tmp_path, machine, line, native):
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported", raising=False)
    monkeypatch.setattr("platform.machine", lambda: machine)
    file = tmp_path / "cpuinfo"
    if line is not None:
        file.write_text(f"processor\t: 0\n{line}\n")
    monkeypatch.setattr("utils.devices.CPU_INFO", file)
    precision, remark = choose_precision(True, torch.device("cpu"))
    assert (precision.dtype == torch.bfloat16) == native == (remark == "")


def test_memory_layout():
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    last, kept = torch.channels_last, torch.preserve_format
    wide, narrow = torch.nn.GroupNorm(2, 32), torch.nn.GroupNorm(8, 32)
    both = torch.nn.Sequential(wide, torch.nn.Conv2d(32, 32, 1), narrow)
    without = torch.nn.Conv2d(3, 8, 1)
    for network in (wide, narrow, both, without):
        assert Precision(torch.float32, cpu).memory_format(network) == last
        assert Precision(torch.float32, gpu).memory_format(network) == kept
        assert Precision(torch.bfloat16, gpu).memory_format(network) == last
    for network, expected in ((wide, last), (narrow, kept), (both, kept), (without, last)):
        assert Precision(torch.bfloat16, cpu).memory_format(network) == expected


def test_only_fp16_scales_the_loss():
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert Precision(dtype, torch.device("cpu")).scaler().is_enabled() == (
            dtype == torch.float16
        )


def processes(world_size, main_rank=0, first_gpu=0, distributed=True):
    return Processes(distributed, world_size, main_rank, timeout=10, first_gpu=first_gpu)


def test_wrong_numbers_of_processes(monkeypatch):
    for main_rank in (2, 5):
        with pytest.raises(UserError, match="outside the 2 processes 0..1"):
            launch(None, processes(2, main_rank))
    play_gpus(monkeypatch, 2)
    with pytest.raises(UserError, match="4 processes on this machine need a GPU each, it has 2"):
        launch(None, processes(4))
    with pytest.raises(UserError, match="a GPU each from --use_gpu 1 on, it has 2"):
        launch(None, processes(2, first_gpu=1))
    launch_module._check(processes(1, first_gpu=1), 1)
    launch_module._check(processes(4, first_gpu=-1), 4)  # on the CPU there may be any number


def end_with(error):
    def worker(ranks):
        if error is not None:
            raise error

    return worker


OF_ANOTHER_LAUNCHER = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (OF_ANOTHER_LAUNCHER, True),
        (OF_ANOTHER_LAUNCHER | {"WORLD_SIZE": "1"}, False),  # a leftover, or nothing to share
        (OF_ANOTHER_LAUNCHER | {"WORLD_SIZE": "1", "TORCHELASTIC_RUN_ID": "x"}, True),
        (OF_ANOTHER_LAUNCHER | {"RANK": ""}, False),
        ({"TORCHELASTIC_RUN_ID": "x"}, False),  # of a program that torchrun has started
        ({}, False),
    ],
)
def test_who_has_started_this_process(monkeypatch, facts, expected):
    for name in (*OF_ANOTHER_LAUNCHER, "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in facts.items():
        monkeypatch.setenv(name, value)
    assert is_one_of_several() is expected
    assert joins_others(distributed=True) is expected
    assert joins_others(distributed=False) is (expected and "TORCHELASTIC_RUN_ID" in facts)
    assert not {*OF_ANOTHER_LAUNCHER, "TORCHELASTIC_RUN_ID"} & set(own_environment())


def test_another_launcher_has_to_say_which_process_of_the_machine_it_is(monkeypatch):
    for name, value in OF_ANOTHER_LAUNCHER.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="no number is in LOCAL_RANK, LOCAL_WORLD_SIZE: start them"):
        launch(None, processes(2, first_gpu=-1))


@pytest.mark.parametrize(("gpus", "gpu"), [(1, 0), (4, 3)])
def test_processes_of_another_launcher_may_see_one_gpu_each(monkeypatch, gpus, gpu):
    """Or all of the machine's."""
    play_gpus(monkeypatch, gpus)
    facts = OF_ANOTHER_LAUNCHER | {"RANK": "3", "WORLD_SIZE": "4"}
    for name, value in (facts | {"LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "4"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(launch_module, "_end_with_launcher", lambda: None)
    monkeypatch.setattr(launch_module, "_met", lambda processes: None)
    found = []

    def run_rank(_worker, _processes, ranks):
        found.append(ranks)
        raise SystemExit

    monkeypatch.setattr(launch_module, "_run_rank", run_rank)
    with pytest.raises(SystemExit):
        launch(None, processes(2))
    assert str(choose_device(0, found[0])) == f"cuda:{gpu}" and found[0].local_world_size == 4


class Counts(dict):
    """A store's counts."""

    def add(self, key, amount):
        self[key] = self.get(key, 0) + amount
        return self[key]


class Ended:
    """A process that has ended."""

    def __init__(self, exitcode):
        self.exitcode = exitcode

    def is_alive(self):
        return False


def test_a_signal_and_a_last_save_that_failed():
    stopped = [Ended(143), Ended(143)]
    assert launch_module._wait_for(stopped, [signal.SIGTERM], Counts()) == 143
    assert launch_module._wait_for(stopped, [signal.SIGTERM], Counts({NOT_SAVED: 1})) == 1
    starting = [Ended(0), Ended(-signal.SIGTERM)]
    assert launch_module._wait_for(starting, [signal.SIGTERM], Counts()) == 143


def test_a_signal_that_comes_when_all_is_done_changes_nothing():
    assert launch_module._wait_for([Ended(0), Ended(0)], [signal.SIGTERM], Counts()) == 0


def test_a_sentence_with_a_name_that_is_not_utf_8_is_said_once():
    ranks = Ranks(store=torch.distributed.HashStore())
    sentence = "x\udcff.png cannot be read"
    said = [launch_module._is_first_to_say(sentence, ranks) for _ in range(3)]
    assert said == [True, False, False]
    assert launch_module._is_first_to_say("another", ranks)


def test_what_cannot_be_explained_ends_the_process_too(monkeypatch, capsys):
    """Its error is printed: nobody else would."""

    def fails(*_):
        raise RuntimeError("in the worker")

    def ends(status):
        raise SystemExit(f"os._exit({status})")

    monkeypatch.setattr(launch_module, "join_group", lambda *_: None)
    monkeypatch.setattr(launch_module, "_explain", lambda *_: 1 / 0)
    monkeypatch.setattr(launch_module.os, "_exit", ends)
    with pytest.raises(SystemExit, match=r"os._exit\(1\)"):
        launch_module._run_rank(fails, None, Ranks())
    assert "in the worker" in capsys.readouterr().err


def test_a_dead_process_does_not_save():
    dead, waiting = object(), object()
    counts = Counts({saving_key(0): 1})
    assert not launch_module._one_saves([dead, waiting], [waiting], counts)
    assert launch_module._one_saves([dead, waiting], [dead, waiting], counts)


@pytest.mark.parametrize(
    ("error", "status"), [(None, 0), (Stopped(15), 143), (NotSaved("no room"), 1)]
)
def test_one_process_needs_no_group(error, status, capsys):
    with pytest.raises(SystemExit) as stop:
        launch(end_with(error), processes(2, 1, distributed=False))
    assert stop.value.code == status
    assert ("no room" in capsys.readouterr().err) == (status == 1)
    tensor = torch.ones(2)
    ranks = Ranks()
    assert (
        ranks.start_sum(tensor).get() is tensor
        and ranks.any(True) is True
        and ranks.gather(3) == [3]
    )


def test_errors_of_one_process_go_through():
    for error in (UserError("a"), OSError("b"), RuntimeError("c")):
        with pytest.raises(type(error)):
            launch(end_with(error), processes(2, 1, distributed=False))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", ["unet", "cspdarkunet"])
def test_a_network_for_calls_computes_the_same_bits(name, dtype):
    """As autocast does with weights in fp32, in half the memory."""
    torch.manual_seed(0)
    config = {"name": name, "in_channels": 3, "num_classes": 4, "channels": 32}
    plain = build_network({**config, "augmentation": 9, "numbers": 2}).eval()
    for weight in plain.parameters():  # the last layers start at zero
        torch.nn.init.normal_(weight, std=0.05)
    precision = Precision(dtype, torch.device("cpu"))
    converted = precision.place_for_calls(copy.deepcopy(plain))
    plain = precision.place(plain)
    x, t = torch.randn(3, 3, 16, 16), torch.tensor([0, 500, 999])
    labels = torch.tensor([[0.5, math.nan, 1, 3], [1.0, 2.0, 0, math.nan], [math.nan] * 4])
    with torch.no_grad(), precision.autocast():
        expected, found = plain(x, t, labels), converted(x, t, labels)
    assert expected.std() > 0.01
    assert torch.equal(expected, found)
    summed = [layer.conv for layer in converted.modules() if isinstance(layer, Upsample)]
    assert summed
    kept = {
        type(layer)
        for layer in converted.modules()
        for weight in layer.parameters(False)
        if weight.dtype != dtype and layer not in summed
    }
    assert kept <= {GroupNorm, torch.nn.Embedding, torch.nn.BatchNorm2d}
