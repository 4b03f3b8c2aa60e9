"""What every sampler shares: the state of images between two steps, and the one sampling loop."""

import bisect
import contextlib
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from model import guidance
from model.condition import without_condition
from model.diffusion import GaussianDiffusion
from model.guidance import NO_LABEL, Label, label_tensor, null_of
from model.randomness import draw_normal, image_generator
from model.samplers.time_grid import time_grid
from model.samplers.trajectory import Call, Trajectory
from model.transfer import numbers_on, to_device

DEFAULT_SAMPLE_STEPS = 50

Labels = Tensor | Sequence[Label]  # one per image
Callback = Callable[[int, Tensor, Tensor], None]


class BaseDiffusion(GaussianDiffusion):
    """A diffusion process and a way to sample from it.

    A subclass is one pure `step` over per-image tensors, and writes no loop: images at different
    steps, of different length and with different labels share a network call.
    """

    draws_noise = False  # whether `step` wants noise
    usual_steps: int | None = 50  # that images are made with where nobody says how; None: T
    usual_spacing = "trailing"

    def __init__(
        self,
        # How the network was trained: these go into the checkpoint, as `config`.
        noise_steps: int = 1000,
        noise_schedule: str = "linear",
        beta_start: float = 1e-4,
        beta_end: float = 2e-2,
        prediction: str = "eps",
        # How to sample: free to choose.
        sample_steps: int | None = None,  # S, 1..T; None: 50, or T where that is less
        timestep_spacing: str = "trailing",  # or leading, linspace, logsnr, karras
        clip_sample: bool = True,  # clip each estimate of x0 to [-1, 1]
        device: str | torch.device = "cpu",  # where `sample` works
        # Of training too, but younger.
        noise_shift: float = 1.0,
        zero_terminal_snr: bool = False,
    ):
        super().__init__(
            noise_steps,
            noise_schedule,
            beta_start,
            beta_end,
            prediction,
            noise_shift,
            zero_terminal_snr,
        )
        if sample_steps is None:
            sample_steps = min(DEFAULT_SAMPLE_STEPS, noise_steps)
        if not 1 <= sample_steps <= noise_steps:
            raise ValueError(
                f"sample_steps must lie in 1..{noise_steps}, the steps of training, "
                f"not {sample_steps}"
            )
        self.clip_sample = clip_sample
        log_ratios = (self.levels.sigmas_squared.log() - self.levels.alphas_squared.log()) / 2
        self.log_ratios: list[float] = log_ratios.tolist()  # log(sigma_t / alpha_t), ascending
        self.grid = time_grid(timestep_spacing, noise_steps, sample_steps, self.log_ratios)
        self.device = torch.device(device)

    def settings(self) -> dict:
        """What trajectories must have in common to be updated together; steps may differ."""
        return {"sampler": type(self).__name__, **self.config, "clip_sample": self.clip_sample}

    # --- The plan of a whole image ---

    def time_pairs(self) -> list[tuple[int, int]]:
        """(t, t_prev) of each step, from noise to image; t_prev is the next grid point, -1 the
        clean image.
        """
        return list(zip(self.grid, [*self.grid[1:], -1], strict=True))

    def calls(self, first_step: int = 0) -> list[Call]:
        """(t, t_prev, stage) of each network call, from step `first_step` of the grid on.

        The stage is for multistep samplers; here it is 0.
        """
        return [(t, t_prev, 0) for t, t_prev in self.time_pairs()[first_step:]]

    def guided_calls(self, cfg_interval: tuple[float, float] | None = None) -> int:
        """How many of the network calls are guided within an interval, as of `start`."""
        first, last = self._steps_within(cfg_interval)
        return sum(first <= t <= last for t, _, _ in self.calls())

    def step_of_call(self, call: int) -> int:
        """The step of the grid that the network call with this number belongs to."""
        return call

    # --- One step ---

    def new_history(self, x: Tensor) -> dict[str, Tensor]:
        """What `step` remembers of earlier steps: tensors with leading dimension B."""
        return {}

    def step(
        self,
        x_t: Tensor,
        prediction: Tensor,
        t: Tensor,
        t_prev: Tensor,
        stage: Tensor,
        history: dict[str, Tensor],
        noise: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """One step of the reverse process: x at t_prev, the estimate of x0, and the new history.

        x_t, prediction and noise (standard normal, for samplers with `draws_noise`) are (B,C,H,W);
        t, t_prev and stage (B,) long; history as from `new_history`. All are per image and on one
        device.
        """
        raise TypeError(f"{type(self).__name__} has no step: use a subclass such as DDIM")

    # --- Sampling as state ---

    def start(
        self,
        n: int,
        image_size: tuple[int, int],
        channels: int = 3,
        labels: Labels | None = None,
        cfg_scale: float | Tensor | Sequence[float] = 1.0,
        seeds: Sequence[int] | None = None,
        x_T: Tensor | None = None,
        first_call: int = 0,
        null_label: int = NO_LABEL,
        cfg_interval: tuple[float, float] | None = None,
        condition: Tensor | None = None,
    ) -> Trajectory:
        """n images before their first network call.

        labels (n,), rows of numbers and several labels (n,W), or None for none; cfg_scale: see
        model/guidance.py, one for all or (n,). With `cfg_interval`, only where sigma_t / alpha_t
        lies within it is an image guided (Kynkaanniemi et al. 2404.07724); elsewhere it is plain
        conditional and costs one row.
        Image i is a function of seeds[i] (0..2^32-1; drawn where none are given), whatever batch
        it is in: its noise x_T (n,C,H,W) unless that is given, then the noise that steps add. (A
        given x_T should not be the noise of the same seeds, which the steps then begin with.) With
        `first_call` > 0, x_T is an image at the noise level of that call, to be continued from
        there. `condition` (n,K,H,W) goes into the network behind x, see model/condition.py;
        guidance leads towards it and the label together. Raises ValueError, naming the argument,
        for what does not fit together.
        """
        if n < 1:
            raise ValueError(f"n must be at least 1, not {n}")
        if seeds is None:
            seeds = torch.randint(2**31, (n,)).tolist()
        if len(seeds) != n:
            raise ValueError(f"{len(seeds)} seeds were given for {n} images")
        generators = tuple(image_generator(operator.index(seed)) for seed in seeds)
        if not 0 <= first_call < len(self.calls()):
            raise ValueError(f"first_call must lie in 0..{len(self.calls()) - 1}, not {first_call}")
        if labels is not None and null_label != NO_LABEL:
            check_labels(labels, null_label)
        shape = (n, channels, *image_size)
        if x_T is None:
            x_T = draw_normal(n, shape[1:], generators)
        if tuple(x_T.shape) != shape:
            raise ValueError(f"x_T has shape {tuple(x_T.shape)}, but must have {shape}")
        x = to_device(x_T, self.device)
        if condition is not None:
            wanted = (n, *image_size)
            if (len(condition), *condition.shape[2:]) != wanted:
                raise ValueError(
                    f"{n} conditions of {image_size} are needed, not {condition.shape}"
                )
            condition = to_device(condition, self.device).to(x)
        plan = tuple(self.calls(self.step_of_call(first_call)))
        return Trajectory(
            settings=self.settings(),
            x=x,
            history=self.new_history(_in_full(x)),
            plans=(plan,) * n,
            position=(0,) * n,
            labels=_label_of_each(labels, n),
            scales=_scale_of_each(cfg_scale, n),
            guided_steps=(self._steps_within(cfg_interval),) * n,
            generators=generators,
            null_label=null_label,
            condition=condition,
        )

    def _steps_within(self, ratios: tuple[float, float] | None) -> tuple[int, int]:
        """The first and last time step whose sigma / alpha lies in an interval; None: all."""
        if ratios is None:
            return 0, self.noise_steps - 1
        lowest, highest = ratios
        if not 0 <= lowest < highest:
            raise ValueError(f"cfg_interval must be two ascending numbers, not {ratios}")
        first = bisect.bisect_left(self.log_ratios, math.log(lowest) if lowest > 0 else -math.inf)
        last = bisect.bisect_right(self.log_ratios, math.log(highest)) - 1
        return first, last

    def rows(self, trajectory: Trajectory) -> tuple[Tensor, Tensor, Tensor | None]:
        """The network's input for the next call: x (R,C,H,W), t (R,), labels (R,) or (R,W) or None.

        First a row for each of the B images, then a second one, without the label, for each image
        whose guidance needs both. None as labels: no row has one. Otherwise rows without a label
        hold the trajectory's null label. A condition goes in behind x, zeros in its place in rows
        without the label.
        """
        device = trajectory.x.device
        scales = trajectory.current_scales
        pairs = zip(trajectory.labels, scales, strict=True)
        labels = [label if guidance.needs_label(scale) else NO_LABEL for label, scale in pairs]
        places = trajectory.guided_places
        x = self._with_condition(trajectory, scales)
        t, _, _ = trajectory.call_numbers
        if places:
            index = numbers_on([*range(len(x)), *places], device, torch.long)
            x = x.index_select(0, index)
            if trajectory.condition is not None:
                x[len(trajectory) :, trajectory.x.shape[1] :] = 0
            t = t.index_select(0, index)
            labels = labels + [NO_LABEL] * len(places)
        return x, t, label_tensor(labels, trajectory.null_label, device)

    def _with_condition(self, trajectory: Trajectory, scales: Sequence[float]) -> Tensor:
        """x, with the condition behind it where there is one: (B,C,H,W) or (B,C+K,H,W). Images
        whose scale is 0 are not told theirs.
        """
        x, condition = trajectory.x, trajectory.condition
        if condition is None:
            return x
        if not all(guidance.needs_label(scale) for scale in scales):
            untold = [not guidance.needs_label(scale) for scale in scales]
            condition = without_condition(condition, numbers_on(untold, x.device, torch.bool))
        return torch.cat([x, condition], dim=1)

    def update(self, trajectory: Trajectory, output: Tensor) -> tuple[Trajectory, Tensor]:
        """The trajectory after the network's output (R,C,H,W) for its `rows`, and the current
        estimate of x0 (B,C,H,W).

        The trajectory given stays as it was, so that a step can be tried again.
        """
        if trajectory.settings != self.settings():
            raise ValueError(
                f"a trajectory of {trajectory.settings} was given to {self.settings()}"
            )
        x = _in_full(trajectory.x)
        prediction = self._guided(trajectory, output.to(x))
        noise, generators = self._step_noise(trajectory, x.dtype)
        t, t_prev, stage = trajectory.call_numbers
        x, x0, history = self.step(x, prediction, t, t_prev, stage, trajectory.history, noise)
        x, x0 = x.to(trajectory.x), x0.to(trajectory.x)
        return trajectory.moved_on(x, history, generators), x0

    def _guided(self, trajectory: Trajectory, output: Tensor) -> Tensor:
        places = trajectory.guided_places
        if len(output) != len(trajectory) + len(places):
            raise ValueError(
                f"the network's output has {len(output)} rows, "
                f"{len(trajectory) + len(places)} are needed"
            )
        if not places:
            return output
        scales = [trajectory.current_scales[i] for i in places]
        return guidance.combine(
            output, places, numbers_on(scales, output.device, output.dtype).view(-1, 1, 1, 1)
        )

    def _step_noise(
        self, trajectory: Trajectory, dtype: torch.dtype
    ) -> tuple[Tensor | None, tuple[torch.Generator, ...]]:
        """Noise for each image (B,C,H,W), from its own generator, and the generators afterwards.

        Zeros on the way to the clean image, where nothing is added. It is drawn while the device
        is still working on the network's call.
        """
        if not self.draws_noise:
            return None, trajectory.generators
        shape = trajectory.x.shape[1:]
        generators = tuple(generator.clone_state() for generator in trajectory.generators)
        noise = torch.stack(
            [
                draw_normal(1, shape, generator)[0] if t_prev >= 0 else torch.zeros(shape)
                for generator, (_, t_prev, _) in zip(generators, trajectory.calls, strict=True)
            ]
        )
        return to_device(noise, trajectory.x.device).to(dtype), generators

    # --- The one sampling loop ---

    @torch.no_grad()
    def denoise(
        self,
        network: Callable[..., Tensor],
        trajectory: Trajectory,
        change: Callable[[Trajectory, Trajectory], Trajectory] | None = None,
    ) -> Iterator[tuple[Trajectory, Tensor]]:
        """Denoise the images until they are done: yields the trajectory after each network call,
        and the estimate of x0 (B,C,H,W). The network should be in evaluation mode meanwhile.

        `change` gets the trajectory before and after each step, and returns the one to go on from
        (`model.editing`).
        """
        while not trajectory.all_done:
            output = network(*self.rows(trajectory))
            after, x0 = self.update(trajectory, output)
            trajectory = after if change is None else change(trajectory, after)
            yield trajectory, x0

    def finished_images(self, trajectory: Trajectory) -> Tensor:
        """The images (B,C,H,W): in [-1, 1] where x0 is clipped, otherwise unchanged."""
        return trajectory.x.clamp(-1, 1) if self.clip_sample else trajectory.x

    def sample(
        self,
        network: Callable[..., Tensor],
        n: int,
        image_size: tuple[int, int],
        channels: int = 3,
        labels: Labels | None = None,
        cfg_scale: float | Tensor | Sequence[float] = 1.0,
        seeds: Sequence[int] | None = None,
        x_T: Tensor | None = None,
        callback: Callback | None = None,
        cfg_interval: tuple[float, float] | None = None,
        condition: Tensor | None = None,
    ) -> Tensor:
        """n images, (n,C,H,W): float32, or in the number format of x_T.

        In [-1, 1] where `clip_sample`, unbounded otherwise. The arguments are those of `start`;
        `callback` gets (network calls done, x, estimate of x0) after each call. Raises ValueError
        for labels that the network does not have.
        """
        null = null_of(network, labels)
        if labels is not None:
            check_rows(labels, network)
        start = self.start(
            n,
            image_size,
            channels,
            labels,
            cfg_scale,
            seeds,
            x_T,
            null_label=null,
            cfg_interval=cfg_interval,
            condition=condition,
        )
        trajectory = start
        with evaluation_mode(network):
            for done, (trajectory, x0) in enumerate(self.denoise(network, start), start=1):
                if callback is not None:
                    callback(done, trajectory.x, x0)
        return self.finished_images(trajectory)


def _in_full(x: Tensor) -> Tensor:
    """x as a step is computed with it: in 16 bits, guidance would be mostly rounding."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def per_image(mask: Tensor) -> Tensor:
    """(B,) -> (B,1,1,1)."""
    return mask.view(-1, 1, 1, 1)


@contextlib.contextmanager
def evaluation_mode(network: Callable) -> Iterator[None]:
    """The network in evaluation mode; then, even after an error, each part in its former mode."""
    if not isinstance(network, torch.nn.Module):
        yield
        return
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def check_labels(labels: Labels, num_classes: int) -> None:
    """Raise ValueError for labels outside 0..num_classes-1; num_classes itself means no label."""
    numbers = [
        operator.index(label) for label in _plain(labels) if not isinstance(label, list | tuple)
    ]
    if any(not 0 <= label <= num_classes for label in numbers):
        raise ValueError(f"labels must lie in 0..{num_classes - 1}, not {numbers}")


def check_rows(labels: Labels, network: Callable) -> None:
    """Raise ValueError where rows, which begin with the network's numbers, hold labels outside
    0..num_classes-1; NaN means none.
    """
    network = getattr(network, "module", network)
    num_classes = getattr(network, "num_classes", None)
    if num_classes is None:
        return  # such a network says itself what it does not take
    count = getattr(network, "config", {}).get("numbers", 0)
    for row in _plain(labels):
        if not isinstance(row, list | tuple):
            continue
        labels_of_row = [label for label in row[count:] if not math.isnan(label)]
        wrong = [
            label for label in labels_of_row if not (0 <= label < num_classes and label % 1 == 0)
        ]
        if wrong:
            raise ValueError(f"labels must lie in 0..{num_classes - 1}, not {wrong}")


def _plain(values: Tensor | Sequence) -> list:
    """Numbers that the caller gave, on the host; also of an array of numpy."""
    return values.tolist() if hasattr(values, "tolist") else list(values)


def _label_of_each(labels: Labels | None, n: int) -> tuple[Label, ...]:
    if labels is None:
        return (NO_LABEL,) * n
    numbers = tuple(_label(label) for label in _plain(labels))
    if len(numbers) != n:
        raise ValueError(
            f"{len(numbers)} labels were given for {n} images: one per image is needed"
        )
    return numbers


def _label(label: Any) -> Label:
    """One image's: a number, or a row of them."""
    if isinstance(label, list | tuple):
        return tuple(float(number) for number in label)
    return operator.index(label)


def _scale_of_each(cfg_scale: float | Tensor | Sequence[float], n: int) -> tuple[float, ...]:
    values: Any = cfg_scale.tolist() if isinstance(cfg_scale, Tensor) else cfg_scale
    if isinstance(values, Real):  # one for all; numpy's too
        values = [values] * n
    scales = tuple(float(scale) for scale in values)
    if len(scales) != n:
        raise ValueError(f"{len(scales)} cfg_scale values were given for {n} images")
    if not all(math.isfinite(scale) for scale in scales):
        raise ValueError(f"cfg_scale must be finite, not {scales}")
    return scales
