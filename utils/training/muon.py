"""Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/), with AdamW for the rest.

A matrix is moved along its momentum with all singular values made nearly equal, so that directions
which the gradient seldom takes are learned as fast as the others.
"""

import functools
import heapq
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from utils.devices import computes_in_bf16
from utils.ranks import Ranks

MOMENTUM = 0.95
SMALLEST_SIDE = 16  # of a matrix: in thinner ones there are few singular values to make equal

# The root mean square of a matrix's update, in learning rates; AdamW's is about as large.
UPDATE_RMS = 0.5

# Newton-Schulz: x -> a x + b x^3 + c x^5, which brings singular values in 0..1 near 1.
ROUNDS = 5
A, B, C = 3.4445, -4.7750, 2.0315
SMALLEST_NORM = 1e-7

# The work of a matrix (r,c) is about that of two products of r x c with r x r, and of as many with
# r x r as would be made by so many times r further columns.
ROWS_AS_COLUMNS = 10

# Where many processes share few matrices, most of what they gather is padding: from so many times
# the matrices on, a sum over the processes moves fewer bytes (each twice, and no padding).
DEAREST_PADDING = 2

EPS = 1e-8  # of AdamW
FUSES_ADAMW = ("cuda", "cpu")  # kinds of device on which its whole step is one kernel


class Muon(torch.optim.Optimizer):
    """Muon for the matrices of a network, AdamW for everything else.

    The weights of convolutions and linear layers count as matrices (outputs, all inputs), where
    both sides are at least 16. Both kinds take the same learning rate, and a weight decay apart
    from the gradient (Loshchilov & Hutter 1711.05101). The processes of a run share the matrices,
    so that all of them make the same step to the bit, whatever computes it.
    """

    def __init__(
        self,
        network: nn.Module,
        lr: float,
        betas: tuple[float, float],  # of AdamW
        weight_decay: float,
        ranks: Ranks | None = None,
    ):
        matrices = matrices_of(network)
        chosen = {id(matrix) for matrix in matrices}
        others = [p for p in network.parameters() if id(p) not in chosen]
        fused = next(network.parameters()).device.type in FUSES_ADAMW
        groups = [
            {"params": matrices, "is_muon": True, "fused": False},
            {"params": others, "is_muon": False, "fused": fused},
        ]
        super().__init__(groups, {"lr": lr, "betas": betas, "weight_decay": weight_decay})
        self._ranks = ranks or Ranks()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step with the gradients that are there."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if group["is_muon"]:
                self._step_of_muon(weights, group["lr"], group["weight_decay"])
            else:
                self._step_of_adamw(weights, group)
        return loss

    def _step_of_muon(self, weights: list[Tensor], lr: float | Tensor, weight_decay: float) -> None:
        if not weights:
            return
        gradients = gradients_of(weights)
        for weight in weights:
            if not self.state[weight]:
                self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        momenta = [self.state[weight]["momentum_buffer"] for weight in weights]
        torch._foreach_lerp_(momenta, gradients, 1 - MOMENTUM)
        ahead = torch._foreach_lerp(gradients, momenta, MOMENTUM)  # Nesterov's momentum
        torch._foreach_mul_(weights, 1 - lr * weight_decay)
        matrices = [as_matrix(value, weight) for value, weight in zip(ahead, weights, strict=True)]
        moved = [as_matrix(weight.detach(), weight) for weight in weights]  # views
        groups = places_by_shape(matrices)
        stacks = [torch.stack([lying(matrices[place]) for place in places]) for places in groups]
        for places, updates in zip(groups, orthogonal_of_all(stacks, self._ranks), strict=True):
            # The mean square of an orthogonal matrix is one over its longer side.
            updates = updates * (-lr * UPDATE_RMS * updates.shape[2] ** 0.5)
            chosen = [lying(moved[place]) for place in places]
            torch._foreach_add_(chosen, list(updates))

    def _step_of_adamw(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        for weight in weights:
            state = self.state[weight]
            if not state:
                state["step"] = torch.zeros((), device=weight.device if group["fused"] else "cpu")
                state["exp_avg"] = torch.zeros_like(weight)
                state["exp_avg_sq"] = torch.zeros_like(weight)
        if not weights:
            return
        states = [self.state[weight] for weight in weights]
        beta1, beta2 = group["betas"]
        adamw(
            weights,
            gradients_of(weights),
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=EPS,
            maximize=False,
            fused=group["fused"],
        )


def gradients_of(weights: list[Tensor]) -> list[Tensor]:
    return [weight.grad for weight in weights if weight.grad is not None]


def matrices_of(network: nn.Module) -> list[Tensor]:
    """The weights that Muon moves."""
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    weights = [layer.weight for layer in layers]
    return [weight for weight in weights if min(weight.flatten(1).shape) >= SMALLEST_SIDE]


def as_matrix(value: Tensor, weight: Tensor) -> Tensor:
    """A value of the shape of a layer's weight as (outputs, all inputs), the inputs in the order in
    which the weight lies in memory, so that the weight's own matrix is a view.
    """
    if weight.dim() == 4 and not weight.is_contiguous():  # channels last
        value = value.permute(0, 2, 3, 1)
    return value.flatten(1)


def places_by_shape(matrices: list[Tensor]) -> list[list[int]]:
    """The places of the matrices that have one shape when they lie on their longer side."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for place, matrix in enumerate(matrices):
        groups.setdefault(tuple(sorted(matrix.shape)), []).append(place)
    return list(groups.values())


def lying(matrix: Tensor) -> Tensor:
    """The matrix, or its transpose, with at least as many columns as rows."""
    return matrix.mT if matrix.shape[0] > matrix.shape[1] else matrix


# --- Singular values made equal ---


def orthogonal_of_all(stacks: list[Tensor], ranks: Ranks) -> list[Tensor]:
    """`orthogonal` of stacks (n,r,c), each process doing its share of the matrices, and all getting
    all of them. The processes meet once.
    """
    if ranks.world_size == 1:
        return orthogonal(stacks)
    shares = shares_of(tuple(tuple(stack.shape) for stack in stacks), ranks.world_size)
    own = shares[ranks.rank]
    mine = orthogonal([stack[part] for stack, part in zip(stacks, own, strict=True)])
    longest = max(sum(sizes_of(stacks, share)) for share in shares)
    total = sum(stack.numel() for stack in stacks)
    if longest * ranks.world_size > DEAREST_PADDING * total:
        return _summed(mine, stacks, own, ranks)
    return _gathered(mine, stacks, shares, longest, ranks)


@functools.cache
def shares_of(shapes: tuple[tuple[int, ...], ...], processes: int) -> list[list[slice]]:
    """Which matrices of each stack (n,r,c) each process makes orthogonal: the costliest are dealt
    out first, each to the process that has least to do.
    """
    work = [rows**2 * (columns + ROWS_AS_COLUMNS * rows) for _, rows, columns in shapes]
    loads = [(0, rank) for rank in range(processes)]  # a heap
    counts = [[0] * len(shapes) for _ in range(processes)]
    for place in sorted(range(len(shapes)), key=lambda place: -work[place]):
        for _ in range(shapes[place][0]):
            load, rank = loads[0]
            heapq.heapreplace(loads, (load + work[place], rank))
            counts[rank][place] += 1
    ends = [list(itertools.accumulate(each)) for each in zip(*counts, strict=True)]
    return [
        [slice(end[rank] - count, end[rank]) for end, count in zip(ends, own, strict=True)]
        for rank, own in enumerate(counts)
    ]


def sizes_of(stacks: list[Tensor], share: list[slice]) -> list[int]:
    """How many numbers of each stack are in a share."""
    return [stack[part].numel() for stack, part in zip(stacks, share, strict=True)]


def _gathered(
    mine: list[Tensor],
    stacks: list[Tensor],
    shares: list[list[slice]],
    longest: int,  # numbers of a share
    ranks: Ranks,
) -> list[Tensor]:
    """The stacks put together from everyone's parts, which all send as many numbers as the
    longest share has.
    """
    flat = stacks[0].new_zeros(1, longest)
    torch.cat([part.flatten() for part in mine], out=flat[0, : sum(map(torch.numel, mine))])
    together = [torch.empty_like(stack) for stack in stacks]
    for values, share in zip(ranks.concatenate(flat), shares, strict=True):
        sizes = sizes_of(stacks, share)
        parts = values[: sum(sizes)].split(sizes)
        for whole, part, numbers in zip(together, share, parts, strict=True):
            whole[part] = numbers.view_as(whole[part])
    return together


def _summed(
    mine: list[Tensor], stacks: list[Tensor], own: list[slice], ranks: Ranks
) -> list[Tensor]:
    """The stacks as sums over the processes, with zeros where another one has computed: exact."""
    sizes = [stack.numel() for stack in stacks]
    flat = stacks[0].new_zeros(sum(sizes))
    for values, stack, part, computed in zip(flat.split(sizes), stacks, own, mine, strict=True):
        values.view_as(stack)[part] = computed
    totals = ranks.start_sum(flat).get().split(sizes)
    return [values.view_as(stack) for values, stack in zip(totals, stacks, strict=True)]


def orthogonal(stacks: list[Tensor]) -> list[Tensor]:
    """Stacks of matrices (n,r,c), r <= c -> U V^T of their singular value decompositions U S V^T,
    about: the singular values come out between 0.7 and 1.2, which serves as well and takes products
    alone. Those below a thousandth of the largest come out smaller.
    """
    device, dtype = stacks[0].device, stacks[0].dtype
    # float64 stays: who trains in it wants to see no rounding.
    if device.type == "cuda" and dtype != torch.float64 and computes_in_bf16(device):
        return [_orthogonal_in_bf16(stack) for stack in stacks]
    return _orthogonal_by_gram(stacks)


def _orthogonal_in_bf16(stack: Tensor) -> Tensor:
    """Round after round on the matrices themselves, for which 16 bits are enough: on a GPU, whose
    tensor cores are ten times as fast in them.
    """
    x = stack.to(torch.bfloat16)
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=SMALLEST_NORM)
    for _ in range(ROUNDS):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=B, alpha=C)
        x = torch.baddbmm(x, polynomial, x, beta=A)
    return x.to(stack.dtype)


def _orthogonal_by_gram(stacks: list[Tensor]) -> list[Tensor]:
    """The rounds on the Gram matrices x x^T (r,r) alone, and their product with x at the end. The
    matrices are much longer than they are high, so this takes a third of the operations, and those
    of different length go through the rounds together.

    It needs full precision: what is rounded in a Gram matrix grows by 3.4^2 a round.
    """
    grams = [stack @ stack.mT for stack in stacks]
    rows = sorted({len(gram[0]) for gram in grams if len(gram) > 0})
    found: list[Tensor] = list(stacks)  # where there is no matrix, there is nothing to do
    for count in rows:
        places = [i for i, gram in enumerate(grams) if len(gram) > 0 and len(gram[0]) == count]
        factors = _factors(torch.cat([grams[i] for i in places]))
        sizes = [len(stacks[i]) for i in places]
        for i, factor in zip(places, factors.split(sizes), strict=True):
            found[i] = factor @ stacks[i]
    return found


def _factors(grams: Tensor) -> Tensor:
    """Gram matrices (n,r,r) of matrices x -> what to multiply each x by, (n,r,r).

    A round takes x to p x with p = A + B g + C g^2, where g is the Gram matrix of x scaled to norm
    1, and so g to p g p. All are polynomials of one symmetric matrix, and their order is free.
    """
    squares = grams.diagonal(dim1=1, dim2=2).sum(1).clamp(min=SMALLEST_NORM**2)[:, None, None]
    gram = grams / squares
    factor = squares.rsqrt()
    for count in range(ROUNDS):
        polynomial = torch.baddbmm(gram, gram, gram, beta=B, alpha=C)
        polynomial.diagonal(dim1=1, dim2=2).add_(A)
        factor = polynomial * factor if count == 0 else polynomial @ factor
        if count < ROUNDS - 1:
            gram = polynomial @ (polynomial @ gram)
    return factor
