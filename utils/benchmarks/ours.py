"""This project as a contender: what tools/train.py and tools/generate.py do."""

import copy
import functools

import torch
from torch import Tensor, nn

from model.codecs import PixelCodec
from model.samplers import build_sampler
from utils.benchmarks.case import Case
from utils.benchmarks.contenders import Contender
from utils.benchmarks.own_steps import process, step_of
from utils.devices import Precision
from utils.host_memory import keep_freed_memory
from utils.training.diffusion_task import DiffusionTask
from utils.training.recipe import LOSS_WEIGHT, usual_time_steps


def build(
    case: Case, precision: Precision, weights: dict[str, Tensor] | None, optimizer: str
) -> Contender:
    """The U-Net in the layout that suits the device, trained by the loop of every run."""
    if precision.device.type == "cpu":
        keep_freed_memory()  # as `choose_device` does
    network = precision.place(case.build_network(weights))
    task = DiffusionTask(
        process(),
        PixelCodec(),
        conditional=False,
        loss_weight=LOSS_WEIGHT,
        time_steps=usual_time_steps(LOSS_WEIGHT),
    )
    sampler = build_sampler(
        "ddim", process().config, sample_steps=case.sample_steps, device=precision.device
    )
    x, t = case.noisy(precision.device)

    @functools.cache
    def frozen() -> nn.Module:
        return precision.place_for_calls(copy.deepcopy(network)).eval()

    def predict(x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        with precision.autocast():
            return frozen()(x, t, labels)

    @torch.no_grad()
    def call() -> None:
        predict(x, t)

    def sample() -> Tensor:
        seeds = range(case.batch_size)
        return sampler.sample(predict, len(seeds), case.image_size, case.channels, seeds=seeds)

    return Contender(
        network=network,
        frozen=frozen,
        operations=case.operations(),
        train=step_of(task, case.pixels(), network, precision, optimizer),
        call=call,
        sample=sample,
    )
