"""The average covers parameters and buffers."""

import torch

from model.ema import EMA


def test_buffers_are_averaged_and_counts_copied():
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.BatchNorm2d(2))
    ema = EMA(network, decay=0.9)
    expected = network[1].running_mean.clone()
    for step in range(30):
        network(torch.randn(8, 1, 4, 4) + 3)
        ema.update(network, step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * network[1].running_mean
    assert (ema.network[1].running_mean - expected).abs().max() < 1e-6
    assert expected.abs().min() > 1e-3
    assert ema.network[1].num_batches_tracked == 30
