"""Into how many forward passes a batch of images is split where it does not fit into memory."""

from typing import Any

from utils.free_memory import SHARE_OF_MEMORY
from utils.training.estimates import NetworkCost
from utils.training.run import TrainingRun
from utils.training.run_options import SMALLER_PASSES

INDENT = " " * 12
GIGABYTE = 1e9


def usable_memory(run: TrainingRun) -> float:
    """Bytes that a step may take in each process. All processes of the run call it together."""
    return min(run.ranks.gather(SHARE_OF_MEMORY * run.free_memory()))


def passes_of(batch: int, most: float) -> int:
    """Into how many equal forward passes a batch of images is split: as few as there can be with at
    most `most` images in each, and at the most one per image.
    """
    possible = (passes for passes in range(1, batch + 1) if batch % passes == 0)
    return next((passes for passes in possible if batch / passes <= most), batch)


def passes_before(global_batch: int, processes: int, grad_accum: Any) -> int:
    """Into how many forward passes a process splits its share of a batch where a run is resumed: as
    many as the checkpoint says, or with other processes fewer that divide it.
    """
    share = max(1, global_batch // processes)
    most = grad_accum if isinstance(grad_accum, int) and grad_accum > 0 else 1
    return next(passes for passes in range(min(most, share), 0, -1) if share % passes == 0)


def resumed_passes(run: TrainingRun) -> int | None:
    """The same for this run; None where it is not resumed."""
    if run.resumed is None:
        return None
    recorded = run.resumed.versions.get("grad_accum")
    return passes_before(run.before["global_batch"], run.ranks.world_size, recorded)


def settled_batch(
    run: TrainingRun,
    cost: NetworkCost,
    usual: int,  # images per process and step
    batch_size: int | None,
    grad_accum: int | None,
) -> tuple[int, int, list[str]]:
    """Images in a forward pass, how many of those a step has, and lines of the plan about it. What
    is given is taken as it is; where nothing is, the usual batch is split as memory asks for. A run
    that is resumed has as many images per step as before, and splits them as before.
    """
    dtype = run.precision.dtype
    usable = usable_memory(run)
    lines = []
    share = None  # of a step's images, where the run is resumed
    if run.resumed is not None:
        share = max(1, run.before["global_batch"] // run.ranks.world_size)
    if batch_size is None and grad_accum is None:
        fitting = passes_of(usual, cost.most_images(usable, dtype))
        grad_accum = resumed_passes(run) or fitting
        batch_size = max(1, (share or usual) // grad_accum)
        together = cost.memory(batch_size * grad_accum, dtype)
        lines = split_lines(batch_size, grad_accum, together, usable)
    passes = grad_accum or 1
    images = batch_size or (usual if share is None else max(1, share // passes))
    return images, passes, lines + shortage_lines(cost.memory(images, dtype), usable)


# --- For people ---


def in_gigabytes(size: float) -> str:
    return f"{size / GIGABYTE:.1f} GB"


def split_lines(images: int, passes: int, together: float, usable: float) -> list[str]:
    """Lines of the plan, where so many images a pass would need that much memory together."""
    if passes == 1:
        return []
    line = f"memory      {images * passes} images per step in {passes} passes of {images}, as"
    if together <= usable:
        return [f"{line} before"]
    needed, free = in_gigabytes(together), in_gigabytes(usable)
    return [line, f"{INDENT}together they need about {needed}, and {free} may be taken"]


def shortage_lines(needed: float, usable: float) -> list[str]:
    """Lines of the plan, where a pass is likely to need more memory than there is."""
    if needed <= usable:
        return []
    return [
        f"memory      about {in_gigabytes(needed)} are needed, and {in_gigabytes(usable)} may be "
        "taken; if it runs",
        f"{INDENT}out, {SMALLER_PASSES}",
    ]
