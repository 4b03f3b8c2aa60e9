"""Devices, number formats and the checks before processes start. No GPU is needed: its absence is
played.
"""

import pytest
import torch

from utils import distributed
from utils.distributed import Precision, Ranks, choose_device, choose_precision, launch
from utils.errors import UserError


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
    with pytest.raises(UserError, match="GPU 2 is not there: this machine has 2"):
        choose_device(2, Ranks())


def test_precision(monkeypatch):
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    assert choose_precision(False, gpu)[0].dtype == torch.float32
    play_gpus(monkeypatch, 1, (9, 0))
    assert choose_precision(True, gpu)[0].dtype == torch.bfloat16
    play_gpus(monkeypatch, 1, (7, 5))
    assert choose_precision(True, gpu)[0].dtype == torch.float16
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert choose_precision(True, cpu)[0].dtype == torch.bfloat16
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    precision, remark = choose_precision(True, cpu)
    assert precision.dtype == torch.float32 and "no effect" in remark


def test_only_fp16_scales_the_loss():
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert Precision(dtype, torch.device("cpu")).scaler().is_enabled() == (
            dtype == torch.float16
        )


class Args:
    use_gpu = 0


def test_wrong_numbers_of_processes(monkeypatch):
    for main_gpu in (2, 5):
        with pytest.raises(UserError, match="outside the 2 processes 0..1"):
            launch(None, Args, distributed=True, world_size=2, main_gpu=main_gpu, timeout=10)
    play_gpus(monkeypatch, 2)
    with pytest.raises(UserError, match="4 processes on this machine need as many GPUs, it has 2"):
        launch(None, Args, distributed=True, world_size=4, main_gpu=0, timeout=10)
    Args.use_gpu = -1  # on the CPU there may be any number
    distributed._check_ranks(4, 0, 4, Args.use_gpu)


def test_one_process_needs_no_group():
    with pytest.raises(SystemExit) as stop:
        launch(lambda args, ranks: 7 if ranks.is_main else 0, Args, False, 2, 1, 10)
    assert stop.value.code == 7
    tensor = torch.ones(2)
    assert Ranks().sum(tensor) is tensor and Ranks().any(True) is True
