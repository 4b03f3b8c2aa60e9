"""Images on their way from noise to picture: all that a sampler keeps of them between two steps."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from model.guidance import Label, guided_places, needs_null
from model.transfer import numbers_on

Call = tuple[int, int, int]  # (t, t_prev, stage) of one network call; t_prev -1: the clean image


@dataclass(frozen=True)
class Trajectory:
    """B images, each at its own step of its own plan. A sampler makes it and moves it on.

    What the host must know to prepare a step (which call, which label, which scale) it keeps as
    plain numbers, so that nothing is ever read back from the device.
    """

    settings: dict  # of the sampler that it belongs to
    x: Tensor  # (B,C,H,W), on the sampler's device
    history: dict[str, Tensor]  # what the sampler remembers of earlier steps: name -> (B, ...)
    plans: tuple[tuple[Call, ...], ...]  # the network calls of each image
    position: tuple[int, ...]  # how many of them are done, for each image
    labels: tuple[Label, ...]  # NO_LABEL where there is none
    scales: tuple[float, ...]  # of guidance
    guided_steps: tuple[tuple[int, int], ...]  # first and last time step that is guided
    generators: tuple[torch.Generator, ...]  # of the noise that steps add, one per image
    null_label: int  # what stands for "no label" in the network's rows
    condition: Tensor | None = None  # (B,K,H,W): what goes in behind x

    def __len__(self) -> int:
        return len(self.plans)

    @cached_property
    def calls(self) -> list[Call]:
        """The next network call of each image. Raises ValueError where an image has none left."""
        if self.any_done:
            raise ValueError("a finished image has no next step: select those that are not done")
        return [plan[done] for plan, done in zip(self.plans, self.position, strict=True)]

    @cached_property
    def current_scales(self) -> tuple[float, ...]:
        """The guidance scale of each image's next call: outside its guided steps none (1)."""
        return tuple(
            scale if not needs_null(scale) or first <= t <= last else 1.0
            for scale, (first, last), (t, _, _) in zip(
                self.scales, self.guided_steps, self.calls, strict=True
            )
        )

    @cached_property
    def call_numbers(self) -> tuple[Tensor, ...]:
        """t, t_prev and stage of each image's next network call, each (B,) long, on x's device."""
        by_kind = list(zip(*self.calls, strict=True))
        return numbers_on(by_kind, self.x.device, torch.long).unbind()

    @cached_property
    def guided_places(self) -> list[int]:
        """The places of the images whose next call needs a second row, without the label."""
        is_conditioned = self.condition is not None
        return guided_places(self.labels, self.current_scales, is_conditioned)

    @property
    def done(self) -> Tensor:
        """(B,) bool, on the CPU: which images are finished."""
        return torch.tensor(self._done(), dtype=torch.bool)

    @property
    def any_done(self) -> bool:
        return any(self._done())

    @property
    def all_done(self) -> bool:
        return all(self._done())

    def _done(self) -> list[bool]:
        return [done >= len(plan) for plan, done in zip(self.plans, self.position, strict=True)]

    def moved_on(
        self, x: Tensor, history: dict[str, Tensor], generators: tuple[torch.Generator, ...]
    ) -> "Trajectory":
        """The same images, one call later."""
        position = tuple(done + 1 for done in self.position)
        return replace(self, x=x, history=history, position=position, generators=generators)

    def select(self, indices: Sequence[int] | Tensor) -> "Trajectory":
        """The images at these places, in this order. A mask (B,) bool works too.

        Raises ValueError for a mask of another length.
        """
        places = _places(indices, len(self))
        index = numbers_on(places, self.x.device, torch.long)
        return Trajectory(
            settings=self.settings,
            x=self.x.index_select(0, index),
            history={key: value.index_select(0, index) for key, value in self.history.items()},
            plans=tuple(self.plans[i] for i in places),
            position=tuple(self.position[i] for i in places),
            labels=tuple(self.labels[i] for i in places),
            scales=tuple(self.scales[i] for i in places),
            guided_steps=tuple(self.guided_steps[i] for i in places),
            generators=tuple(self.generators[i] for i in places),
            null_label=self.null_label,
            condition=None if self.condition is None else self.condition.index_select(0, index),
        )

    @staticmethod
    def cat(trajectories: Sequence["Trajectory"]) -> "Trajectory":
        """The images of several trajectories of one sampler in one, whatever steps they are at.

        Raises ValueError for trajectories that do not belong together: of other samplers, sizes
        or networks.
        """
        first = trajectories[0]
        for other in trajectories[1:]:
            ours, theirs = first._batch_facts(), other._batch_facts()
            if ours != theirs:
                raise ValueError(
                    "trajectories can share a batch only where sampler, image size, number format, "
                    f"null label and kind of condition agree, not {ours} and {theirs}"
                )
        conditions = [each.condition for each in trajectories if each.condition is not None]
        history = {
            key: torch.cat([each.history[key] for each in trajectories]) for key in first.history
        }
        return Trajectory(
            settings=first.settings,
            x=torch.cat([each.x for each in trajectories]),
            history=history,
            plans=sum((each.plans for each in trajectories), ()),
            position=sum((each.position for each in trajectories), ()),
            labels=sum((each.labels for each in trajectories), ()),
            scales=sum((each.scales for each in trajectories), ()),
            guided_steps=sum((each.guided_steps for each in trajectories), ()),
            generators=sum((each.generators for each in trajectories), ()),
            null_label=first.null_label,
            condition=torch.cat(conditions) if conditions else None,
        )

    def _batch_facts(self) -> tuple:
        """What all images of a batch have in common."""
        condition = None if self.condition is None else self.condition.shape[1:]
        return (self.settings, self.x.shape[1:], self.x.dtype, self.null_label, condition)


def _places(indices: Sequence[int] | Sequence[bool] | Tensor, n: int) -> list[int]:
    """Places among n as numbers. (A tensor here is the caller's, on the CPU: such as `done`.)"""
    numbers = indices.tolist() if hasattr(indices, "tolist") else list(indices)
    numbers = [each.item() if hasattr(each, "item") else each for each in numbers]  # of numpy
    if numbers and all(isinstance(number, bool) for number in numbers):
        if len(numbers) != n:
            raise ValueError(f"a mask of {len(numbers)} images was given for {n}")
        return [place for place, chosen in enumerate(numbers) if chosen]
    return [int(number) for number in numbers]
