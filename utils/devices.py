"""Which device, and which number format and memory layout suit it."""

import contextlib
import math
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook

from model.modules.resample import Upsample
from utils.errors import UserError
from utils.host_memory import keep_freed_memory
from utils.ranks import Ranks

# From this compute capability on (Ampere), CUDA devices compute in bf16.
BF16_CAPABILITY = (8, 0)
AUTO = "auto"
WIDE_GROUP = 16  # channels of a group norm, from which on torch vectorises over them
CPU_INFO = Path("/proc/cpuinfo")  # Linux

# How gradients are packed for the way between processes. gloo sums bf16 too, so it runs on CPUs.
COMPRESSION_HOOKS = {"none": None, "bf16": bf16_compress_hook}


def choose_device(use_gpu: int, ranks: Ranks) -> torch.device:
    """The GPU numbered `use_gpu`, or where there are several processes the one as far behind it as
    this is behind the machine's first process; else the CPU.

    use_gpu -1 is the CPU. Raises UserError for a GPU that is not there. What the process then
    allocates is allocated as suits the device.
    """
    device = _find_device(use_gpu, ranks)
    if device.type == "cpu":
        keep_freed_memory()
    return device


def _find_device(use_gpu: int, ranks: Ranks) -> torch.device:
    if use_gpu < 0:
        return torch.device("cpu")
    if torch.cuda.is_available():
        index = use_gpu + ranks.local_rank
        count = torch.cuda.device_count()
        if index >= count:
            raise UserError(f"GPU {index} is not there: this machine has {count} (numbered from 0)")
        torch.cuda.set_device(index)
        return torch.device("cuda", index)
    if ranks.world_size == 1 and torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


@dataclass
class Precision:
    """The number format of the network's calls, and the memory layout that suits it."""

    dtype: torch.dtype
    device: torch.device

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')} on {self.device}"

    def autocast(self) -> contextlib.AbstractContextManager:
        """The context of a network call."""
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def scaler(self) -> torch.amp.GradScaler:
        """Scales the loss where fp16 would lose small gradients; else passes everything through."""
        return torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)

    def memory_format(self, network: nn.Module) -> torch.memory_format:
        """Channels last where the network gains from it: on a CPU, where convolutions do, and with
        16 bits on a GPU, whose tensor cores want it.

        With 16 bits on a CPU, torch's group norm takes ten times as long in that layout where a
        group has few channels, which is more than convolutions gain.
        """
        full = self.dtype == torch.float32
        if self.device.type == "cpu" and (full or smallest_group(network) >= WIDE_GROUP):
            return torch.channels_last
        if self.device.type == "cuda" and not full:
            return torch.channels_last
        return torch.preserve_format

    def place(self, network: nn.Module) -> nn.Module:
        """The network on the device, in its memory layout."""
        return network.to(self.device).to(memory_format=self.memory_format(network))

    def place_for_calls(self, network: nn.Module) -> nn.Module:
        """The same for a network that is not trained. What autocast would convert at each call, the
        weights of convolutions and linear layers, is converted once; the results are the same. The
        weights of `Upsample` are added up before they are rounded, and stay as they are.
        """
        network = self.place(network)
        summed = {id(layer.conv) for layer in network.modules() if isinstance(layer, Upsample)}
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear) and id(layer) not in summed:
                layer.to(self.dtype)
        return network


def smallest_group(network: nn.Module) -> float:
    """The fewest channels that a group of the network's group norms has; infinite without any."""
    norms = [layer for layer in network.modules() if isinstance(layer, nn.GroupNorm)]
    return min((norm.num_channels // norm.num_groups for norm in norms), default=math.inf)


def usual_amp(device: torch.device) -> bool:
    """Whether a smaller number format pays: where the hardware computes in bf16, it was faster
    wherever it was measured.
    """
    return computes_in_bf16(device)


def choose_precision(amp: bool | str, device: torch.device) -> tuple[Precision, str]:
    """The format that --amp gives on this device, and a remark where it is not the expected one.

    "auto": as `usual_amp` says. True: bf16 where the hardware computes in it, fp16 on older GPUs,
    and fp32 where a smaller format would only slow things down.
    """
    if amp == AUTO:
        amp = usual_amp(device)
    if not amp:
        return Precision(torch.float32, device), ""
    if computes_in_bf16(device):
        return Precision(torch.bfloat16, device), ""
    if device.type == "cuda":
        return Precision(torch.float16, device), ""
    remark = f"--amp has no effect: this {device.type.upper()} has no fast bf16"
    return Precision(torch.float32, device), remark


def formats_of(device: torch.device) -> list[Precision]:
    """fp32 and, where the hardware benefits from one, the smaller format that --amp gives."""
    full, _ = choose_precision(False, device)
    small, _ = choose_precision(True, device)
    return [full] if small == full else [full, small]


def computes_in_bf16(device: torch.device) -> bool:
    """Whether a device has instructions for bf16."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= BF16_CAPABILITY
    return device.type == "cpu" and cpu_computes_in_bf16()


def cpu_computes_in_bf16() -> bool:
    """Whether the CPU has instructions for bf16: AVX-512 or AMX on x86, the bf16 feature of ARM.

    Apple's CPUs are left out: torch has no fast bf16 path on them, and their GPU is the device.
    """
    if platform.machine().lower() in ("aarch64", "arm64"):
        return "bf16" in _cpu_flags()
    # Private, so it may disappear; the CPU flags of Linux hold the same information.
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    if supported is not None:
        return bool(supported())
    return "avx512_bf16" in _cpu_flags()


def _cpu_flags() -> set[str]:
    """The features of the first CPU, in Linux's names; none elsewhere."""
    try:
        lines = CPU_INFO.read_text(errors="replace").splitlines()
    except OSError:
        return set()
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip().lower() in ("flags", "features"):
            return set(value.split())
    return set()


def prepare_for_training(device: torch.device) -> None:
    """Settings of CUDA that speed training up: TF32 in fp32 matrix products and convolutions, and
    a search for the fastest convolutions, as image and batch size do not change.
    """
    if device.type != "cuda":
        return
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True


def wrap_network(
    network: nn.Module, ranks: Ranks, compiled: bool, compression: str = "none"
) -> nn.Module:
    """What the loss calls: the network itself, compiled on demand, with its gradients averaged over
    the processes. Compression "bf16": they exchange gradients in that format, and weights and
    gradients stay as they are. Raises KeyError for another one.
    """
    if compiled:
        network.compile(dynamic=False)  # sizes do not change
    if ranks.world_size == 1:
        return network
    # Gradients as views of the buckets save one copy. A static graph is not declared: torch then
    # refuses a first step that accumulates, and nothing would be gained (docs/scaling.md).
    wrapped = nn.parallel.DistributedDataParallel(network, gradient_as_bucket_view=True)
    hook = COMPRESSION_HOOKS[compression]
    if hook is not None:
        wrapped.register_comm_hook(None, hook)  # None: among all processes
    return wrapped


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Torch computes on one thread. Where the pieces of work are small, several threads gain little
    on an idle machine, and on a busy one wait for each other ten times as long.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
