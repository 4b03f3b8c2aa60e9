"""Orders that show as many images of each class."""

import numpy as np
import pytest
import torch

from utils.data import StepSampler
from utils.data.order import balanced

LABELS = np.repeat([0, 1, 2], [80, 15, 5])


def sampler(start=0, total=25, rank=0, world_size=1, seed=0, labels=LABELS):
    return StepSampler(range(len(labels)), 8, seed, start, total, rank, world_size, balance=labels)


def test_every_class_is_seen_as_often():
    order = sampler().epoch(0)
    counts = np.bincount(LABELS[order[:100]], minlength=3)
    assert counts.tolist() == [34, 33, 33]
    # the images of small classes equally often, too; those of the large one at most once
    within = np.bincount(order[:100], minlength=100)
    assert within[:80].max() == 1
    assert set(within[80:95]) == {2, 3} and set(within[95:]) == {6, 7}


def test_every_part_has_all_classes():
    order = np.array(sampler().epoch(0))
    for start in range(0, 90, 15):
        assert np.bincount(LABELS[order[start : start + 15]], minlength=3).min() >= 3


def test_all_images_of_a_large_class_are_seen_in_the_end():
    seen = {image for epoch in range(12) for image in sampler().epoch(epoch)}
    assert len(seen) == 100


def test_steps_are_the_same_whatever_the_processes_and_restarts():
    whole = list(sampler(total=40))
    assert list(sampler(start=17, total=40)) == whole[17 * 8 :]
    halves = [list(sampler(total=40, rank=rank, world_size=2)) for rank in range(2)]
    assert [image for pair in zip(*halves, strict=True) for image in pair] == whole
    assert list(sampler(total=40, seed=1)) != whole


@pytest.mark.parametrize("labels", [[0, 0, 0], [1, 3, 3, 3, 3]])
def test_few_images_and_missing_labels(labels):
    order = balanced(
        torch.randperm(len(labels)), torch.tensor(labels), torch.Generator().manual_seed(0)
    )
    assert len(order) == len(labels)
    counts = np.bincount(np.array(labels)[order.numpy()])
    assert counts[counts > 0].max() - counts[counts > 0].min() <= 1
