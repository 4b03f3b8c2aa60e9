"""Images of several jobs in one network call: which of them take part, and one step of all.

Images with different samplers, steps, classes and guidance share a call. What they share nothing
of is everything else: an image comes out as it would alone (model/samplers/base.py).
"""

import heapq
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from model.editing import FillIn
from model.guidance import NO_LABEL, NOTHING, Label, needs_null
from model.samplers import BaseDiffusion, Trajectory
from utils.editing import Edit
from utils.serving.jobs import Job

NetworkCall = Callable[[Tensor, Tensor, Tensor | None], Tensor]


@dataclass(eq=False)  # compared and hashed as the object it is
class ImageTask:
    """One image of a job, under way."""

    job: Job
    place: int  # in the job
    is_steered: bool = False  # by an image
    change: FillIn | None = None  # between its steps, as it stands

    @property
    def seed(self) -> int:
        return self.job.request.seeds[self.place]

    @property
    def label(self) -> Label:
        labels = self.job.request.labels
        return NO_LABEL if labels is None else labels[self.place]

    @property
    def rows(self) -> int:
        """Rows of a network call that it takes."""
        is_told = self.label != NO_LABEL or self.is_steered
        return 2 if is_told and needs_null(self.job.request.sampling.cfg_scale) else 1


@dataclass(eq=False)
class JobShare:
    """A job in the engine, and how much of the network it has had."""

    job: Job
    order: int  # in which jobs came
    sampler: BaseDiffusion
    edit: Edit | None  # what its images begin with
    conditions: Tensor | None  # what steers them, (n,P,H,W) uint8
    waiting: list[ImageTask]  # images that are not done, the first ones first
    served: float = 0.0  # rows so far, beginning where the others were when it came


@dataclass(eq=False)
class Bundle:
    """Images whose state lies in one trajectory: `tasks[i]` is its i-th image."""

    sampler: BaseDiffusion
    trajectory: Trajectory
    tasks: list[ImageTask]

    def select(self, places: Sequence[int]) -> "Bundle":
        """Some of the images."""
        return Bundle(self.sampler, self.trajectory.select(places), [self.tasks[i] for i in places])


@dataclass
class Advanced:
    """A bundle after a step, with the estimates of x0 (B,C,H,W). The tasks' changes are as before
    it, until `keep_changes`.
    """

    bundle: Bundle
    x0: Tensor
    changes: list[FillIn | None]

    def keep_changes(self) -> None:
        for task, change in zip(self.bundle.tasks, self.changes, strict=True):
            task.change = change


@dataclass
class Choice:
    """The images that take part in a step."""

    tasks: list[ImageTask] = field(default_factory=list)
    rows: int = 0


# --- Which images take part ---


def choose_images(shares: Collection[JobShare], budget: int) -> Choice:
    """Images for a call of at most `budget` rows, and one image in any case.

    Each goes to the job that has had the fewest rows so far, so that all jobs get the same share of
    the network, however many images they ask for (fair queueing). Within a job the first images go
    first: they are finished before the last ones begin.
    """
    heap = [(share.served, share.order, 0, share) for share in shares if share.waiting]
    heapq.heapify(heap)
    choice = Choice()
    while heap:
        served, order, place, share = heapq.heappop(heap)
        task = share.waiting[place]
        if choice.tasks and choice.rows + task.rows > budget:
            continue  # another job's images may take fewer rows
        choice.tasks.append(task)
        choice.rows += task.rows
        if place + 1 < len(share.waiting):
            heapq.heappush(heap, (served + task.rows, order, place + 1, share))
    return choice


# --- Bundles of just these images ---

StartImages = Callable[[list[ImageTask]], list[Bundle]]


def regroup(
    bundles: Sequence[Bundle], tasks: Sequence[ImageTask], start: StartImages
) -> tuple[list[Bundle], list[Bundle]]:
    """Bundles of exactly these images, one for each kind of trajectory, and those of all others.

    Images that are in no bundle yet are started. Where the images are the same as in the last step,
    nothing is copied.
    """
    wanted = set(tasks)
    active: list[Bundle] = []
    parked: list[Bundle] = []
    for bundle in bundles:
        inside = [i for i, task in enumerate(bundle.tasks) if task in wanted]
        outside = [i for i, task in enumerate(bundle.tasks) if task not in wanted]
        if inside:
            active.append(bundle.select(inside) if outside else bundle)
        if outside:
            parked.append(bundle.select(outside) if inside else bundle)
    begun = {task for bundle in active for task in bundle.tasks}
    new = [task for task in tasks if task not in begun]
    if new:
        active += start(new)
    return joined(active), parked


def joined(bundles: Sequence[Bundle]) -> list[Bundle]:
    """Those that can be updated together, in one bundle each."""
    kinds: dict[tuple, list[Bundle]] = {}
    for bundle in bundles:
        kinds.setdefault(kind_of(bundle.trajectory), []).append(bundle)
    result = []
    for same in kinds.values():
        if len(same) == 1:
            result += same
            continue
        tasks = [task for bundle in same for task in bundle.tasks]
        trajectory = Trajectory.cat([bundle.trajectory for bundle in same])
        result.append(Bundle(same[0].sampler, trajectory, tasks))
    return result


def kind_of(trajectory: Trajectory) -> tuple:
    """What must be equal for trajectories to be joined, beside shape and number format, which are
    the same for all images of one network at one size.
    """
    return (*sorted(trajectory.settings.items()), trajectory.null_label)


# --- One step ---


def advance(call: NetworkCall, bundles: Sequence[Bundle], null_label: int | None) -> list[Advanced]:
    """One network call for all images, and their states after it. The bundles given stay as they
    were, so that a step that fails can be tried again.

    null_label: what a row without a label gets where others have one; None: a network without
    classes.
    """
    rows = [bundle.sampler.rows(bundle.trajectory) for bundle in bundles]
    counts = [len(x) for x, _, _ in rows]
    x = torch.cat([x for x, _, _ in rows])
    t = torch.cat([t for _, t, _ in rows])
    output = call(x, t, _labels_of_rows([labels for _, _, labels in rows], counts, null_label))
    results = []
    for bundle, part in zip(bundles, output.split(counts), strict=True):
        trajectory, x0 = bundle.sampler.update(bundle.trajectory, part)
        trajectory, changes = _changed(bundle, trajectory)
        results.append(Advanced(Bundle(bundle.sampler, trajectory, bundle.tasks), x0, changes))
    return results


def _changed(bundle: Bundle, after: Trajectory) -> tuple[Trajectory, list[FillIn | None]]:
    """The trajectory to go on from, where images are changed between steps, and the changes as they
    stand then. Each image has one of its own, since others may be at another step.
    """
    changes = [None if task.change is None else task.change.copy() for task in bundle.tasks]
    if not any(changes):
        return after, changes
    images = []
    for place, change in enumerate(changes):
        image = after.select([place])
        if change is not None:
            image = change(bundle.trajectory.select([place]), image)
        images.append(image)
    return Trajectory.cat(images), changes


def _labels_of_rows(
    parts: Sequence[Tensor | None], counts: Sequence[int], null_label: int | None
) -> Tensor | None:
    """The labels of all rows, (R,), or (R,W) where some have several; None where no row has one."""
    given = [labels for labels in parts if labels is not None]
    if not given:
        return None
    if any(labels.dim() == 2 for labels in given):
        return _wide_labels(parts, counts, given[0].device)
    assert null_label is not None  # where there are labels, there are classes
    filled = [
        given[0].new_full((count,), null_label) if labels is None else labels
        for labels, count in zip(parts, counts, strict=True)
    ]
    return torch.cat(filled)


def _wide_labels(
    parts: Sequence[Tensor | None], counts: Sequence[int], device: torch.device
) -> Tensor:
    """(R,W): single labels beside rows of several become rows too, which end with nothing."""
    given = [labels for labels in parts if labels is not None]
    width = max(labels.shape[1] if labels.dim() == 2 else 1 for labels in given)
    wide = torch.full((sum(counts), width), NOTHING, device=device)
    start = 0
    for labels, count in zip(parts, counts, strict=True):
        if labels is not None:
            rows = labels if labels.dim() == 2 else labels[:, None]
            wide[start : start + count, : rows.shape[1]] = rows.to(wide)
        start += count
    return wide


def singles(bundles: Sequence[Bundle]) -> Iterator[Bundle]:
    """Each image in a bundle of its own."""
    for bundle in bundles:
        for place in range(len(bundle.tasks)):
            yield bundle.select([place])
