"""Muon: nearly orthogonal updates for matrices, AdamW for the rest, the same in any layout."""

import copy
import math
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from model.networks import build_network
from utils.ranks import PendingSum
from utils.training.muon import (
    UPDATE_RMS,
    Muon,
    _orthogonal_in_bf16,
    lying,
    matrices_of,
    orthogonal,
    orthogonal_of_all,
    shares_of,
)
from utils.training.optimizer import build_optimizer, restore_optimizer

BETAS = (0.9, 0.99)


def small_network():
    torch.manual_seed(0)
    config = {"name": "unet", "in_channels": 3, "num_classes": 4, "channels": 16}
    return build_network({**config, "channel_mult": [1, 2], "blocks_per_level": 1})


def with_gradients(network, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.grad = torch.empty_like(parameter)
        parameter.grad.copy_(torch.randn(parameter.shape, generator=generator))
    return network


@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 16, 144), (5, 48, 49)])
def test_singular_values_become_nearly_equal(shape):
    """And the singular vectors stay: the product with the polar factor is near the identity."""
    stack = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    (found,) = orthogonal([stack])
    found = found.double()
    values = torch.linalg.svdvals(found)
    assert values.max() < 1.3
    if shape[2] > 2 * shape[1]:  # a square one has singular values near 0, which stay lower
        assert values.min() > 0.6
    u, _, vh = torch.linalg.svd(stack.double(), full_matrices=False)
    closeness = (found * (u @ vh)).sum((1, 2)) / shape[1]  # the mean singular value
    assert (closeness > 0.75).all()


def test_a_zero_matrix_stays_zero():
    (found,) = orthogonal([torch.zeros(2, 16, 20)])
    assert found.abs().max() == 0


def rounds_on(stack):
    """The rounds as Jordan et al. write them, in float64."""
    x = stack.double()
    x = x / x.norm(dim=(1, 2), keepdim=True)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x


@pytest.mark.parametrize("smallest", [1.0, 1e-2, 1e-4, 1e-6])
def test_rounds_on_gram_matrices_are_those_on_the_matrices(smallest):
    """Whatever the singular values, though their squares are what is computed with; and stacks
    whose matrices are as high go together, whatever their length.
    """
    generator = torch.Generator().manual_seed(0)
    stacks = []
    for shape in ((2, 32, 288), (1, 32, 33), (3, 48, 48), (1, 32, 96)):
        u, values, vh = torch.linalg.svd(torch.randn(shape, generator=generator), False)
        fading = torch.logspace(0, math.log10(smallest), shape[1])
        stacks.append(u @ torch.diag_embed(fading * values.mean()) @ vh)
    for stack, found in zip(stacks, orthogonal(stacks), strict=True):
        wanted = rounds_on(stack)
        assert found.shape == stack.shape
        assert (found - wanted).norm() / wanted.norm() < 2e-3
    for stack, found in zip(stacks, orthogonal([s.double() for s in stacks]), strict=True):
        assert (found - rounds_on(stack)).abs().max() < 1e-9


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e6])
def test_the_scale_of_a_gradient_is_of_no_account(scale):
    stack = torch.randn(2, 16, 40, generator=torch.Generator().manual_seed(0))
    (plain,), (scaled,) = orthogonal([stack]), orthogonal([scale * stack])
    assert (plain - scaled).abs().max() < 1e-4


def test_in_16_bits_the_rounds_go_the_same_way():
    """What a GPU does: coarser, but with the same result on average."""
    stack = torch.randn(3, 32, 288, generator=torch.Generator().manual_seed(0))
    wanted, found = rounds_on(stack), _orthogonal_in_bf16(stack).double()
    assert (found - wanted).norm() / wanted.norm() < 0.2
    assert ((found * wanted).sum() / wanted.square().sum() - 1).abs() < 0.02


def test_matrices_that_are_not_there():
    """As in a process that has no share of a shape."""
    empty, stack = torch.zeros(0, 16, 20), torch.randn(1, 16, 20)
    found = orthogonal([empty, stack, torch.zeros(0, 24, 30)])
    assert [len(stack) for stack in found] == [0, 1, 0]


def test_which_weights_are_matrices():
    network = small_network()
    chosen = {id(weight) for weight in matrices_of(network)}
    names = [name for name, weight in network.named_parameters() if id(weight) in chosen]
    assert "down.level0_block0.block.conv1.weight" in names
    assert "condition.time_mlp.0.weight" in names
    assert "conv_in.weight" in names  # 16 x 27
    assert "conv_out.weight" not in names  # 3 x 144
    assert "condition.label.weight" not in names  # a table
    assert not any(name.endswith("bias") or "norm" in name for name in names)


def test_the_step_of_a_matrix_is_as_large_as_said():
    network = with_gradients(small_network())
    before = copy.deepcopy(network)
    Muon(network, 0.01, BETAS, weight_decay=0.0).step()
    for new, old in zip(matrices_of(network), matrices_of(before), strict=True):
        rms = (new - old).square().mean().sqrt()
        assert rms.item() / (0.01 * UPDATE_RMS) == pytest.approx(1, abs=0.35), new.shape


def test_momentum_looks_ahead():
    """Nesterov's, of 0.95: the second step goes along 0.05 g2 + 0.95 m2, m2 = 0.95 m1 + 0.05 g2."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(32, 16, bias=False)
    optimizer = Muon(layer, 0.1, BETAS, weight_decay=0.0)
    first, second = torch.randn(2, 16, 32)
    layer.weight.grad = first.clone()
    optimizer.step()
    before = layer.weight.detach().clone()
    layer.weight.grad = second.clone()
    optimizer.step()
    momentum = 0.95 * 0.05 * first + 0.05 * second
    (direction,) = orthogonal([(0.05 * second + 0.95 * momentum)[None]])
    expected = before - 0.1 * UPDATE_RMS * 32**0.5 * direction[0]
    assert (layer.weight - expected).abs().max() < 1e-4


def test_the_rest_moves_as_with_adamw():
    ours, theirs = small_network(), small_network()
    muon = Muon(ours, 0.01, BETAS, weight_decay=0.1)
    adamw = torch.optim.AdamW(theirs.parameters(), 0.01, BETAS, weight_decay=0.1)
    for seed in range(3):
        with_gradients(ours, seed)
        with_gradients(theirs, seed)
        muon.step()
        adamw.step()
    chosen = {id(weight) for weight in matrices_of(ours)}
    pairs = zip(ours.parameters(), theirs.parameters(), strict=True)
    rest = [(a, b) for a, b in pairs if id(a) not in chosen]
    assert len(rest) > 20
    assert all((a - b).abs().max() < 1e-6 for a, b in rest)


def test_weight_decay_shrinks_matrices():
    network = small_network()
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = copy.deepcopy(network)
    Muon(network, 0.1, BETAS, weight_decay=0.5).step()
    for new, old in zip(matrices_of(network), matrices_of(before), strict=True):
        assert (new - 0.95 * old).abs().max() < 1e-6


def test_channels_last_makes_the_same_steps():
    """Up to rounding: the columns of the matrices stand in another order."""
    plain, last = small_network().double(), small_network().double()
    last = last.to(memory_format=torch.channels_last)
    for network in (plain, last):
        optimizer = Muon(network, 0.01, BETAS, weight_decay=0.1)
        for seed in range(3):
            with_gradients(network, seed)
            optimizer.step()
    pairs = zip(plain.parameters(), last.parameters(), strict=True)
    assert max((a - b).abs().max() for a, b in pairs) < 1e-10


def test_standing_matrices_are_laid_down():
    assert lying(torch.zeros(20, 16)).shape == (16, 20)
    assert lying(torch.zeros(16, 20)).shape == (16, 20)


class Meeting:
    """Processes played by threads, which exchange what Muon exchanges."""

    def __init__(self, count):
        self.barrier = threading.Barrier(count)
        self.brought = [None] * count
        self.gathered, self.summed = [], []  # what each exchange moved, of the first process

    def exchange(self, rank, tensor):
        self.brought[rank] = tensor
        self.barrier.wait()
        found = list(self.brought)
        self.barrier.wait()
        return found


class PlayedRanks:
    def __init__(self, meeting, rank, count):
        self.meeting, self.rank, self.world_size = meeting, rank, count

    def concatenate(self, mine):
        if self.rank == 0:
            self.meeting.gathered.append(mine)
        return torch.cat(self.meeting.exchange(self.rank, mine))

    def start_sum(self, mine):
        if self.rank == 0:
            self.meeting.summed.append(mine)
        return PendingSum(sum(self.meeting.exchange(self.rank, mine)))


def shared_out(stacks, count):
    """What each of so many processes gets, and their meeting."""
    meeting = Meeting(count)
    with ThreadPoolExecutor(count) as pool:
        jobs = [
            pool.submit(orthogonal_of_all, stacks, PlayedRanks(meeting, rank, count))
            for rank in range(count)
        ]
        return [job.result(timeout=60) for job in jobs], meeting


@pytest.mark.parametrize("count", [2, 3, 8])
def test_processes_share_the_matrices(count):
    """Each computes its share of them, and all get all of them, the same to the bit."""
    generator = torch.Generator().manual_seed(1)
    shapes = [(5, 16, 24), (1, 16, 40), (8, 20, 20), (2, 24, 30)]
    stacks = [torch.randn(shape, generator=generator) for shape in shapes]
    everyones, meeting = shared_out(stacks, count)
    for stack, alone, *others in zip(stacks, orthogonal(stacks), *everyones, strict=True):
        for found in others:
            assert found.shape == stack.shape
            assert torch.equal(found, others[0])
            assert (found - alone).abs().max() < 1e-5
    assert len(meeting.gathered) == 1 and not meeting.summed


def test_a_process_without_a_share_gets_all_the_same():
    stacks = [torch.randn(2, 16, 24, generator=torch.Generator().manual_seed(1))]
    everyones, meeting = shared_out(stacks, 3)
    assert len(meeting.gathered) == 1 and not meeting.summed
    for (found,) in everyones:
        assert (found - orthogonal(stacks)[0]).abs().max() < 1e-5


@pytest.mark.parametrize("count", [1, 2, 3, 8, 40])
def test_each_matrix_is_in_one_share(count):
    shapes = ((5, 16, 24), (1, 16, 40), (8, 20, 20), (2, 24, 30), (3, 16, 144))
    shares = shares_of(shapes, count)
    assert len(shares) == count
    for place, (matrices, _, _) in enumerate(shapes):
        owned = [range(matrices)[share[place]] for share in shares]
        assert [number for part in owned for number in part] == list(range(matrices))


def test_shares_are_about_equal():
    """Matrices whose shape no other one has do not all go to the first process."""
    network = build_network({"name": "unet", "in_channels": 3, "channels": 32})
    matrices = [lying(weight.flatten(1)) for weight in matrices_of(network)]
    shapes = tuple((1, *matrix.shape) for matrix in matrices)
    for count in (2, 4):
        sizes = [
            sum(
                shape[1] * shape[2]
                for shape, part in zip(shapes, share, strict=True)
                if range(1)[part]
            )
            for share in shares_of(shapes, count)
        ]
        assert max(sizes) < 1.15 * sum(sizes) / count


@pytest.mark.parametrize("processes", [3, 8])
def test_many_more_processes_than_matrices_send_no_padding(processes):
    """Each matrix comes from one process, and the others add zeros to it."""
    stack = torch.randn(1, 16, 24, generator=torch.Generator().manual_seed(1))
    everyones, meeting = shared_out([stack], processes)
    assert meeting.gathered == [] and [part.numel() for part in meeting.summed] == [stack.numel()]
    for (found,) in everyones:
        assert torch.equal(found, orthogonal([stack])[0])


def test_state_comes_back():
    network = with_gradients(small_network())
    saved = build_optimizer("muon", network, 0.01, 0.1)
    saved.step()
    again = build_optimizer("muon", network, 0.02, 0.2)
    assert restore_optimizer(again, saved.state_dict())
    assert again.param_groups[0]["weight_decay"] == 0.2
    for weight in matrices_of(network):
        assert torch.equal(
            again.state[weight]["momentum_buffer"], saved.state[weight]["momentum_buffer"]
        )


@pytest.mark.parametrize(("before", "now"), [("muon", "adamw"), ("adamw", "muon"), ("sgd", "muon")])
def test_another_optimizer_s_state_is_left(before, now):
    network = with_gradients(small_network())
    saved = build_optimizer(before, network, 0.01, 0.1)
    saved.step()
    optimizer = build_optimizer(now, network, 0.01, 0.1)
    assert not restore_optimizer(optimizer, saved.state_dict())
    assert not optimizer.state


def test_a_quadratic_is_minimised():
    torch.manual_seed(0)
    network = torch.nn.Linear(24, 20)
    target = torch.randn(20, 24)
    optimizer = build_optimizer("muon", network, 0.05, 0.0)
    for step in range(200):
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * (1 - step / 200)
        optimizer.zero_grad()
        (network.weight - target).square().sum().backward()
        network.bias.grad = torch.zeros(20)
        optimizer.step()
    assert (network.weight - target).abs().max() < 0.05


def test_a_network_without_matrices_is_moved_as_fast():
    network = torch.nn.Sequential(torch.nn.Linear(4, 4))
    optimizer = Muon(network, lr=1e-3, betas=(0.9, 0.999), weight_decay=0.0)
    assert [len(group["params"]) for group in optimizer.param_groups] == [0, 2]
    assert optimizer.param_groups[1]["fused"]
