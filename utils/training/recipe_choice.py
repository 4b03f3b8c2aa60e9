"""Which preset suits a run, found by measuring steps; and what its neighbours would cost."""

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from model.condition import Condition
from utils.data import steps_per_epoch
from utils.errors import UserError, is_out_of_memory
from utils.start import seconds_since_start
from utils.training.estimates import NetworkCost, cost_of
from utils.training.length import SECONDS_PER_MINUTE, RunLength
from utils.training.passes import (
    INDENT,
    in_gigabytes,
    passes_of,
    shortage_lines,
    split_lines,
    usable_memory,
)
from utils.training.recipe import (
    PRESETS,
    largest_affordable,
    nearest_preset,
    neighbours,
    options_of,
    shallow_remark,
    short_run_remark,
)
from utils.training.recipe_timing import seconds_of_recipe
from utils.training.run import TrainingRun
from utils.training.run_options import AUTO

# Where --epochs sets the length, no network is chosen that would take longer.
LONGEST_RUN = 2 * 3600.0  # seconds

# Of the minutes there are: previews, evaluations and saves take the rest.
SHARE_OF_STEPS = 0.93

# How many times faster than the smallest network's a larger one's operations may be: small ones do
# not fill a GPU.
MOST_SPEED_UP = {"cpu": 2.0}
MOST_SPEED_UP_OF_GPU = 40.0

# A preset beside the chosen one is timed for the plan where a step of it is likely to be shorter.
SHORT_STEP = 1.0  # seconds


class RecipeChoice:
    """The preset of a run, and the options that it gives where none are given.

    `preset` may be "auto": the one as wide as the given `channels`, or the largest one that gets
    enough steps in the run's time. A preset's batch that does not fit into memory is split into
    several forward passes; `auto` chooses no preset of which not even one image fits, if there is
    a smaller one. All processes of the run make the choice together. Raises UserError where the
    given options go with no preset.
    """

    def __init__(
        self,
        run: TrainingRun,
        preset: str,
        given: dict[str, Any],  # options by name; None: left open
        size: tuple[int, int],  # of what the diffusion sees
        images: int,  # in the whole set
        trained_on: int,  # of them
        network_of: Callable[[dict[str, Any]], dict[str, Any]],  # a network's config
        condition: Condition | None = None,
        known: Mapping[str, Any] | None = None,  # options of the weights that the run begins with
        checkpointed: Sequence[int] = (),  # levels that keep no activations
    ):
        self.run = run
        self.given = given
        self.size = size
        self.images = images
        self.trained_on = trained_on
        self.network_of = network_of
        self.condition = condition
        self.known = known or {}
        self.checkpointed = checkpointed
        self.splits = given["batch_size"] is None and given["grad_accum"] is None
        self._memory = usable_memory(run)
        self._seconds: dict[str, float] = {}  # of a step, by preset
        self._costs: dict[str, NetworkCost] = {}
        width: int | None = given["channels"] or self.known.get("channels")
        self.is_given = width is not None
        self.is_chosen = preset == AUTO and width is None
        self._why_not_smaller = ""  # where the smallest presets do not go with the given options
        if self.is_chosen:
            self._smallest = self._smallest_possible()
            self._seconds_left = self._time_for_steps()
            preset = largest_affordable(filter(self._is_possible, PRESETS), self._steps_of)
        elif preset == AUTO and width is not None:
            preset = nearest_preset(width, size)
        self.preset = preset
        self.values = self.values_of(preset)
        if not self.is_given:
            self._time_neighbours()

    def values_of(self, preset: str) -> dict[str, Any]:
        """The options with that preset, its batch in as many forward passes as memory asks for."""
        values = options_of(preset, self.size, self.given, self.images, self.known)
        if not self.splits or not self._is_possible(preset):
            return values
        batch = values["batch_size"]
        passes = passes_of(batch, self._most_images(preset))
        return {**values, "batch_size": batch // passes, "grad_accum": passes}

    def cost_of(self, preset: str) -> NetworkCost:
        """Raises ValueError where its network cannot be built with the given options, or does not
        take the size.
        """
        if preset not in self._costs:
            values = options_of(preset, self.size, self.given, self.images, self.known)
            self._costs[preset] = cost_of(
                self.network_of(values),
                self.size,
                self.checkpointed,
                has_averages=bool(self.run.options.ema_snapshots),
            )
        return self._costs[preset]

    def _is_possible(self, preset: str) -> bool:
        try:
            self.cost_of(preset)
        except ValueError:
            return False
        return True

    # --- Memory ---

    def _most_images(self, preset: str) -> float:
        """How many images of a forward pass fit into memory."""
        return self.cost_of(preset).most_images(self._memory, self.run.precision.dtype)

    def _fits(self, preset: str) -> bool:
        """Whether the images of a forward pass do, as far as is known."""
        if self._seconds.get(preset) == math.inf:
            return False
        return self.values_of(preset)["batch_size"] <= self._most_images(preset)

    def _needs(self, preset: str, images: int) -> float:
        """Bytes for so many images in a forward pass."""
        return self.cost_of(preset).memory(images, self.run.precision.dtype)

    # --- Choosing ---

    def _smallest_possible(self) -> str:
        """The smallest that goes with the given options; keeps why no smaller one does."""
        reasons = []
        for name in PRESETS:
            try:
                self.cost_of(name)
            except ValueError as error:
                reasons.append(str(error))
            else:
                self._why_not_smaller = reasons[0] if reasons else ""
                return name
        raise UserError(reasons[0])

    def _time_for_steps(self) -> float:
        """Seconds of steps that --minutes leave, by the main process's clock; unbounded with
        --epochs.
        """
        minutes = self.run.options.minutes
        if minutes is None:
            return math.inf
        ranks = self.run.ranks
        mine = minutes * SECONDS_PER_MINUTE - seconds_since_start() - self.run.seconds_ahead
        return SHARE_OF_STEPS * ranks.gather(mine)[ranks.main_rank]

    def _steps_of(self, preset: str) -> float:
        """The steps that a preset would get, none where it does not fit into memory. Of smaller
        batches than its own, as many count for one as show as many images.
        """
        if not self._fits(preset):
            return 0
        options = self.run.options
        own_batch, fewest_steps = PRESETS[preset].batch_size, PRESETS[preset].fewest_steps
        counts_for = min(1.0, self._global_batch(preset) / own_batch)
        if options.minutes is not None:
            left = self._seconds_left * counts_for
            return left / self._seconds_of(preset, left / fewest_steps)
        steps = options.epochs * self._steps_per_epoch(preset)
        if steps * counts_for < fewest_steps:
            return steps * counts_for
        affordable = LONGEST_RUN / steps
        return steps * counts_for if self._seconds_of(preset, affordable) <= affordable else 0

    def _seconds_of(self, preset: str, affordable: float) -> float:
        """Seconds of a step; where they are surely more than what is affordable, at least that."""
        smallest = self._smallest
        if preset != smallest:
            kind = self.run.precision.device.type
            speed_up = MOST_SPEED_UP.get(kind, MOST_SPEED_UP_OF_GPU)
            ratio = self._operations(preset) / self._operations(smallest)
            at_least = self._measured(smallest) * ratio / speed_up
            if at_least > affordable:
                return at_least
        return self._measured(preset)

    def _steps_per_epoch(self, preset: str) -> int:
        return steps_per_epoch(self.trained_on, self._global_batch(preset))

    def _global_batch(self, preset: str) -> int:
        return self._images_per_process(preset) * self.run.ranks.world_size

    def _images_per_process(self, preset: str) -> int:
        values = self.values_of(preset)
        return values["batch_size"] * values["grad_accum"]

    def _operations(self, preset: str) -> float:
        """Of a step."""
        return self.cost_of(preset).operations * self._images_per_process(preset)

    def _measured(self, preset: str) -> float:
        """Seconds of a step with that preset, on blank images; the main process's word counts.
        Infinite where memory runs out.
        """
        if preset not in self._seconds:
            self._seconds[preset] = self._measure(preset)
        return self._seconds[preset]

    def _measure(self, preset: str) -> float:
        run, values = self.run, self.values_of(preset)
        try:
            mine = seconds_of_recipe(
                run, values, self.network_of(values), self.size, self.condition, self.checkpointed
            )
        except (RuntimeError, MemoryError) as error:
            # Other processes would wait for this one, and of no smaller network anything is known
            alone = run.ranks.world_size == 1 and preset != self._smallest
            if not (alone and is_out_of_memory(error)):
                raise
            return math.inf
        return run.ranks.gather(mine)[run.ranks.main_rank]

    def _time_neighbours(self) -> None:
        """Time the presets beside the chosen one, so that the plan need not reckon, where that is
        soon done.
        """
        for name in filter(self._is_possible, neighbours(self.preset)):
            if name != self.preset and self._fits(name) and self._is_short(name):
                self._measured(name)

    def _is_short(self, preset: str) -> bool:
        """Whether a step is likely to be, by what is known of other presets."""
        return any(
            seconds * self._operations(preset) / self._operations(known) <= SHORT_STEP
            for known, seconds in self._seconds.items()
        )

    # --- The plan ---

    def lines(self, seconds: float, length: RunLength) -> list[str]:
        """Lines of the plan: this preset and those beside it, with parameters, time and memory.

        `seconds` is what a step of this run takes; what the others take is reckoned from it.
        """
        if self.known:
            lines = [f"preset      {self.preset}, with the network of the weights to start from"]
        elif self.is_given:  # the others would be as wide
            lines = [f"preset      {self.preset}, but for what is given"]
        else:
            why = PRESETS[self.preset].about
            if self.is_chosen:
                why = "chosen for the time there is"
                if self._why_not_smaller and self.preset == self._smallest:
                    why = "the smallest that goes with what is given"
            lines = [f"preset      {self.preset} ({why})"]
            for name in filter(self._is_possible, neighbours(self.preset)):
                lines.append(f"{INDENT}{self._in_words(name, seconds, length)}")
        return lines + self._memory_lines()

    def remarks(self, length: RunLength, factor: int) -> list[str]:
        """Where the run is too short for the preset, or images of that size give a shallow network;
        a side of what the diffusion sees is a side of the images, divided by `factor`.
        """
        if self.known:
            return []
        remarks = [short_run_remark(self.preset, length.total_steps, self._why_not_smaller)]
        if self.given["channel_mult"] is None:
            remarks.append(shallow_remark(self.preset, self.size, factor))
        return [remark for remark in remarks if remark]

    def _memory_lines(self) -> list[str]:
        """What is done, or could be, where a step's images do not fit into memory at once."""
        images, passes = self.values["batch_size"], self.values["grad_accum"]
        lines = []
        if self.splits:
            together = self._needs(self.preset, images * passes)
            lines = split_lines(images, passes, together, self._memory)
        return lines + shortage_lines(self._needs(self.preset, images), self._memory)

    def _times_as_long(self, preset: str) -> float:
        """A step with that preset beside a step of this run: as they were timed for the choice, or
        as many times as many operations where one of them was not.
        """
        if preset in self._seconds and self.preset in self._seconds:
            return self._seconds[preset] / self._seconds[self.preset]
        return self._operations(preset) / self._operations(self.preset)

    def _in_words(self, name: str, of_this_run: float, length: RunLength) -> str:
        """A preset, with what it costs; `of_this_run`: seconds of a step of the chosen one."""
        needed = self._needs(name, self.values_of(name)["batch_size"])
        memory = f"about {in_gigabytes(needed)} of memory"
        network = f"{name:7} {self.cost_of(name).parameters / 1e6:6.1f} M parameters"
        if name != self.preset and not self._fits(name):
            return f"{network}, {memory}, which there is not"
        seconds = of_this_run * self._times_as_long(name)
        about = "" if name == self.preset else "about "
        if length.minutes is None:
            steps = length.epochs * self._steps_per_epoch(name)
            whole = timedelta(seconds=round(steps * seconds))
            time = f"{about}{whole}"
        else:
            fitting = length.total_steps * of_this_run / seconds
            time = f"{about}{fitting:,.0f} steps in {length.minutes:g} minutes"
        return f"{network}, {time}, {memory}"
