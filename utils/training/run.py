"""A training run, whatever is trained: from its options to the end of its last step.

A script of tools/ says what is trained, in the order of execution:

    run = TrainingRun(options, kind, ranks, usual_epochs)    device, the folder that it alone writes
    split = run.split(images)                    which images are held out
    state = run.build_state(config)              network, EMA, optimizer
    run.restore(state, len(dataset))             resume or pretrain: refused before any long work
    length = run.length(state, task, dataset, images, previews, evaluations_of)    steps
    run.train(Work(...))                         plan, fit
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from model.ema import EMA, PowerAverages
from model.networks import build_network
from utils.console import say
from utils.data import (
    ImageSet,
    StepSampler,
    TrainingSet,
    build_loader,
    describe,
    steps_per_epoch,
)
from utils.data.near_copies import near_copy_finder
from utils.data.split import Split, recorded_split, split_set
from utils.devices import (
    choose_device,
    choose_precision,
    prepare_for_training,
    usual_amp,
    wrap_network,
)
from utils.errors import UserError, advice_on_memory
from utils.free_memory import free_memory
from utils.ranks import Ranks
from utils.runs.checkpoint import Checkpoint
from utils.runs.folder import RunFolder
from utils.training.cuda_graph import why_not_recorded
from utils.training.evaluation import EvaluateFunction, EvaluationPlan
from utils.training.fit import CompleteFunction, Update, fit
from utils.training.learning_rate import allowed_warmup, learning_rate
from utils.training.length import (
    Pace,
    RunLength,
    kept_steps,
    minutes_remarks,
    steps_within,
    twice_as_long,
    usual_preview_epochs,
    usual_save_epochs,
)
from utils.training.optimizer import build_optimizer
from utils.training.plan import (
    Cost,
    PreviewCost,
    Previews,
    evaluation_lines,
    length_remarks,
    plan_lines,
    remark_lines,
    sample_batch,
    size_of_checkpoint,
)
from utils.training.prefetch import Batch, Draws, PreparedBatches
from utils.training.recorder import Recorder, RunRecorder, SilentRecorder
from utils.training.resume import learning_rate_remark, open_resumed, pretrain, resume
from utils.training.run_options import AUTO, RunOptions
from utils.training.schedule import Schedule
from utils.training.state import TrainState
from utils.training.timing import seconds_of_step

# What is measured when in a run of that length; None: nothing is
EvaluationsOf = Callable[[RunLength], EvaluationPlan | None]


class Task(Protocol):
    """What is trained."""

    def draw(self, batch: Batch, generators: list[torch.Generator]) -> Draws:
        """What the loss of a batch needs at random, on the CPU, one generator per image."""

    def loss(self, network: nn.Module, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """{"loss": scalar, name: (sum, count), ...}"""


@dataclass
class Work:
    """What a run trains, measures and draws."""

    images: ImageSet  # all that were found
    split: Split  # which of them are held out
    dataset: TrainingSet  # what is trained on
    task: Task
    state: TrainState
    length: RunLength
    evaluations: EvaluationPlan | None = None  # None: nothing is measured
    evaluate: EvaluateFunction | None = None
    complete: CompleteFunction | None = None  # after the last step
    previews: Previews | None = None
    balance: np.ndarray | None = None  # labels of `dataset`, to see as much of each; None: as it is
    plan_lines: list[str] = field(default_factory=list)  # of this kind of run
    remarks: list[str] = field(default_factory=list)  # legal options that cannot work well


class TrainingRun:
    """One process of a run: its device, and on the main process the folder that it alone may write.

    What is not given is as in the run that is resumed; otherwise a run has `usual_epochs`. Raises
    UserError where the folder holds another run, or there is none to resume.
    """

    def __init__(self, options: RunOptions, kind: str, ranks: Ranks, usual_epochs: int):
        self.kind = kind  # of checkpoint
        self.ranks = ranks
        self.folder = None
        if ranks.is_main and not options.plan:
            self.folder = RunFolder(options.folder, options.resume)
        self._restored: list[str] = []  # remarks
        self._source: Path | None = None  # what the run resumes from
        self._seconds: tuple[TrainState, float] | None = None  # a state, and what its step takes
        self._wrapped: tuple[nn.Module, nn.Module] | None = None  # a network, and what calls it
        self.resumed: Checkpoint | None = None
        self._length_before: dict | None = None  # of the run that is resumed
        self._minutes_remarks: list[str] = []
        if options.resume:
            self.resumed = open_resumed(kind, options.folder, options.start_epoch)
            self._length_before = self.resumed.config.get("length", {})
        device = choose_device(options.use_gpu, ranks)
        self._settled = self._settle(options, device, usual_epochs)
        self.take(options)
        self.precision, self.precision_remark = choose_precision(self._settled["amp"], device)
        prepare_for_training(device)

    def _settle(
        self, options: RunOptions, device: torch.device, usual_epochs: int
    ) -> dict[str, Any]:
        """Options that were left open, as in the run that is resumed or as usual."""
        amp = bool(options.amp)
        if options.amp == AUTO:
            before = self.before.get("amp", AUTO)
            amp = usual_amp(device) if before == AUTO else bool(before)
        settled: dict[str, Any] = {"amp": amp}
        before = self._length_before or {}
        is_in_epochs = options.minutes is None and before.get("minutes") is None
        if options.epochs is None and is_in_epochs:
            settled["epochs"] = before.get("epochs") or usual_epochs
        if options.warmup_steps is None:
            settled["warmup_steps"] = self.before.get("warmup_steps")
        if options.ema_snapshots is None:
            settled["ema_snapshots"] = self._snapshots_before()
        return settled

    def _snapshots_before(self) -> int:
        """Snapshots that the run which is resumed keeps of its further averages; 0: it has none."""
        if self.resumed is None or self.resumed.averages is None:
            return 0
        recorded = self.resumed.args.get("ema_snapshots")
        return recorded if isinstance(recorded, int) and recorded > 0 else 1

    def take(self, options: RunOptions) -> None:
        """Go on with these options, in which more is settled than at the start."""
        self.options = options.with_settled(**self._settled)

    @property
    def before(self) -> dict[str, Any]:
        """What decided the result of the run that is resumed, by the options' names."""
        return {} if self.resumed is None else self.resumed.config["training"]

    def log(self, text: str) -> None:
        """Said and kept in the run's log by the main process."""
        if self.folder is not None:
            self.folder.log(text)

    # --- Data ---

    def split(self, images: ImageSet) -> Split:
        """Which images are held out: for a run that is resumed, the same as before.

        Returns when every process has its images: decoding is exempt from --timeout.
        """
        split = self._choose_split(images) if self.ranks.is_main else None
        self.ranks.wait_for_all()
        return self.ranks.gather(split)[self.ranks.main_rank]

    def _choose_split(self, images: ImageSet) -> Split:
        share = self.options.val_fraction
        record = None if self.resumed is None else self.resumed.held_out
        if self.resumed is not None and share is None:
            share = record["share"] if record else 0.0  # earlier versions held nothing out
        if record and share == record["share"]:
            split = recorded_split(record, len(images), images.fingerprint())
            if split is not None:
                return split
        finder = near_copy_finder(images)
        is_asked_for = self.options.val_fraction is not None
        return split_set(images.checksums, images.labels.array, share, finder, is_asked_for)

    # --- What is trained ---

    @property
    def global_batch(self) -> int:
        """Images that an optimizer step sees, on all processes."""
        return self.options.images_per_process * self.ranks.world_size

    def build_state(self, config: dict) -> TrainState:
        """The network of config["network"], its EMA and optimizer, untrained.

        `config` is the checkpoint's, but for "training" and "length". Raises UserError for a
        network that cannot be built.
        """
        options = self.options
        torch.manual_seed(options.seed)
        try:
            network = build_network(config["network"])
        except ValueError as error:
            raise UserError(str(error)) from None
        network = self.precision.place(network)
        return TrainState(
            network=network,
            ema=EMA(network, options.ema_decay, options.ema_length),
            optimizer=build_optimizer(
                options.optim, network, options.lr, options.weight_decay, self.ranks
            ),
            scaler=self.precision.scaler(),
            averages=PowerAverages(network) if options.ema_snapshots > 0 else None,
            seed=options.seed,
            kind=self.kind,
            config={
                **config,
                "network": network.config,
                "training": {**options.decisions, "global_batch": self.global_batch},
            },
            args={**options.record, "global_batch": self.global_batch},
            versions={
                "torch": str(torch.__version__),
                "threads": torch.get_num_threads(),
                "device": self.precision.device.type,
                "batch_size": options.batch_size,
                "grad_accum": options.grad_accum,
                "compile": options.compile,
            },
        )

    # --- What it takes ---

    def free_memory(self) -> float:
        """Bytes that this process may take: of its GPU, or its share of this machine's."""
        return free_memory(self.precision.device, self.ranks.local_world_size)

    def seconds_of_step(self, state: TrainState, task: Task, dataset: TrainingSet) -> float:
        """Seconds of a step, measured once on some images; the state stays as it is. All processes
        call it together.
        """
        options = self.options
        if self._seconds is None or self._seconds[0] is not state:
            batch = sample_batch(dataset, options.batch_size)
            with advice_on_memory(options.advice_on_memory):
                seconds = seconds_of_step(
                    self.wrapped(state), task.loss, task.draw, state, batch, self.update(state)
                )
            self._seconds = (state, seconds)
        return self._seconds[1]

    def forget_timed(self) -> None:
        """Let go of the state that was timed last, and with it of its memory."""
        self._seconds = self._wrapped = None

    def length(
        self,
        state: TrainState,
        task: Task,
        dataset: TrainingSet,
        images: int,
        previews: Previews | None,
        evaluations_of: EvaluationsOf,
    ) -> RunLength:
        """How long the run on so many images is; it goes into the state's config.

        With --minutes, as many steps as fit, measured on images of `dataset` by the main process; a
        resumed run keeps its length.
        """
        length = self._known_length(images) or self._fitted_length(
            state, task, dataset, images, previews, evaluations_of
        )
        state.config["length"] = length.record()
        return length

    def _known_length(self, images: int) -> RunLength | None:
        """The length of a run on so many images, or None where it is yet to be measured. Raises
        UserError where a run of epochs is resumed with minutes.
        """
        options = self.options
        per_epoch = steps_per_epoch(images, self.global_batch)
        if self._length_before is not None:
            steps, minutes = kept_steps(self._length_before, options.minutes)
            if steps is not None:
                return RunLength(steps, per_epoch, self.global_batch, minutes)
        if options.minutes is not None:
            return None
        return RunLength(options.epochs * per_epoch, per_epoch, self.global_batch)

    def _fitted_length(
        self,
        state: TrainState,
        task: Task,
        dataset: TrainingSet,
        images: int,
        previews: Previews | None,
        evaluations_of: EvaluationsOf,
    ) -> RunLength:
        options = self.options
        assert options.minutes is not None
        minutes, global_batch = options.minutes, self.global_batch
        per_epoch = steps_per_epoch(images, global_batch)
        pace = Pace(
            self.seconds_of_step(state, task, dataset),
            options.images_per_process,
            0.0 if previews is None else previews.network_rows,
            size_of_checkpoint(state),
            options.save_every_steps,
            saves_beside_steps=self.precision.device.type != "cpu",
        )

        def evaluation_share(steps: int) -> float:
            plan = evaluations_of(RunLength(steps, per_epoch, global_batch, minutes))
            return 0.0 if plan is None else plan.share

        self._minutes_remarks = minutes_remarks(minutes, pace.seconds_per_step)
        mine = steps_within(minutes, pace, options.vis_interval_epochs, per_epoch, evaluation_share)
        steps = self.ranks.gather(mine)[self.ranks.main_rank]
        return RunLength(steps, per_epoch, global_batch, minutes)

    def wrapped(self, state: TrainState) -> nn.Module:
        """What the loss calls: the state's network, compiled on demand, with its gradients averaged
        over the processes.
        """
        if self._wrapped is None or self._wrapped[0] is not state.network:
            options = self.options
            network = wrap_network(
                state.network, self.ranks, options.compile, options.gradient_compression
            )
            self._wrapped = (state.network, network)
        return self._wrapped[1]

    def update(self, state: TrainState) -> Update:
        """How a step changes the weights."""
        options = self.options
        return Update(
            self.precision,
            self.ranks,
            options.grad_accum,
            options.grad_clip,
            recorded=bool(options.cuda_graph) and not self._why_not_recorded(state),
        )

    def _why_not_recorded(self, state: TrainState) -> str:
        options = self.options
        checkpointed = bool(getattr(state.network, "checkpointed", ()))
        return why_not_recorded(
            self.precision, self.ranks, options.optim, options.compile, checkpointed
        )

    def _cuda_graph_remark(self, state: TrainState) -> str:
        reason = self._why_not_recorded(state)
        if self.options.cuda_graph is not True or not reason:
            return ""
        return f"--cuda_graph has no effect: {reason}"

    # --- Resume or pretrain ---

    def restore(self, state: TrainState, images: int) -> None:
        """Bring the state to where the run on so many images resumes or starts.

        Raises UserError where that does not fit, or where another machine was given other options,
        images or weights.
        """
        options = self.options
        if options.pretrain and options.pretrain_path is not None:
            self._restored = pretrain(state, options.pretrain_path)
        elif self.resumed is not None:
            self._restored = self._resume(state, self.resumed, images)
            self._source = Path(self.resumed.source)
            self.resumed = None  # it takes as much memory as the state
        self._check_agreement(state)

    # --- Plan, fit ---

    def train(self, work: Work) -> None:
        """Say the plan, and train to the end. With --plan, stops behind the plan.

        Raises what `fit` raises.
        """
        options, state = self.options, work.state
        state.guide_step = round(options.guide_share * work.length.total_steps)
        if options.guide_share == 0:
            state.guide = None  # that a run kept which is resumed without one
        schedule = self._schedule(work)

        remarks = [self.precision_remark, self._cuda_graph_remark(state), *work.remarks]
        remarks.append(self._drop_late_guide(state))
        remarks += self._length_remarks(schedule)
        remarks += self._restored
        lines = self._plan(work, schedule) + remark_lines(remarks)
        if options.plan:
            say("\n".join(lines))
            return
        if self.folder is not None:
            record = {"kind": state.kind, "args": state.args, "config": state.config}
            self.folder.start(record, state.step, self._source)
            self.folder.log("\n".join(lines))
        self._fit(work, schedule, self._recorder(work, schedule))

    def _drop_late_guide(self, state: TrainState) -> str:
        """Where a resumed run is beyond the step after which a guide would be kept, it keeps none;
        then a remark.
        """
        if state.guide is not None or not 0 < state.guide_step <= state.step:
            return ""
        asked, state.guide_step = state.guide_step, 0
        return (
            f"--guide_share {self.options.guide_share:g} has no effect: a guide is kept after step "
            f"{asked:,}, and {state.step:,} are done"
        )

    def _schedule(self, work: Work) -> Schedule:
        """The length of the run, its learning rate, and what is due when."""
        options, total_steps = self.options, work.length.total_steps
        return Schedule(
            total_steps=total_steps,
            steps_per_epoch=work.length.steps_per_epoch,
            learning_rate=partial(self._rate_at, total_steps),
            log_interval=options.log_interval,
            save_epochs=self._save_epochs(work),
            save_steps=options.save_every_steps,
            preview_epochs=self._preview_epochs(work),
            numbered_epochs=options.save_model_interval_epochs
            if options.save_model_interval
            else 0,
            first_numbered_epoch=options.start_model_interval,
            evaluation_steps=work.evaluations.interval if work.evaluations else 0,
            averages=options.ema_snapshots,
        )

    def _preview_epochs(self, work: Work) -> int:
        """Epochs between previews; 0: there are none."""
        if work.previews is None:
            return 0
        if self.options.vis_interval_epochs is not None:
            return self.options.vis_interval_epochs
        length = work.length
        pace = Pace(0.0, self.options.images_per_process, work.previews.network_rows)
        return usual_preview_epochs(
            length.total_steps, length.steps_per_epoch, pace.steps_per_preview
        )

    def _save_epochs(self, work: Work) -> int:
        """Epochs between saves; the main process's clock counts."""
        seconds_per_step = self.seconds_of_step(work.state, work.task, work.dataset)
        seconds_per_epoch = work.length.steps_per_epoch * seconds_per_step
        mine = usual_save_epochs(size_of_checkpoint(work.state), seconds_per_epoch)
        return self.ranks.gather(mine)[self.ranks.main_rank]

    def _rate_at(self, total_steps: int, step: int) -> float:
        """The learning rate at a step of a run of this length."""
        options = self.options
        warmup = allowed_warmup(options.warmup_steps, total_steps)
        return learning_rate(step, total_steps, options.lr, options.lr_func, warmup)

    def _resume(self, state: TrainState, resumed: Checkpoint, images: int) -> list[str]:
        """Continue from a checkpoint of this run; remarks for the plan."""
        options = self.options
        remarks = resume(state, resumed, options.allow_changes)
        length = self._known_length(images)
        assert length is not None  # a resumed run's is kept, or given in epochs
        if state.step > length.total_steps:
            asked = f"--epochs {options.epochs}"
            if length.minutes is not None:
                asked = f"--minutes {length.minutes:g}"
            raise UserError(
                f"{resumed.source} has done {state.step} steps; {asked} is only "
                f"{length.total_steps}"
            )
        others = (None, resumed.args.get("epochs"))
        if length.minutes is not None and options.epochs not in others:
            remarks.append(
                f"--epochs {options.epochs} has no effect: the run is {length.minutes:g} minutes "
                "long, and --minutes changes that"
            )
        earlier = resumed.config.get("length", {})
        before = earlier.get("total_steps")
        if before is None and earlier.get("epochs"):
            before = earlier["epochs"] * length.steps_per_epoch
        remark = learning_rate_remark(
            before,
            length.total_steps,
            state.step,
            lambda step, total: self._rate_at(total, step),
        )
        return remarks + ([remark] if remark else [])

    def _check_agreement(self, state: TrainState) -> None:
        """Raise UserError where another machine was given other options or images."""
        may_differ: dict[str, Any] = dict.fromkeys(self.options.of_a_machine)
        facts = {**state.args, **may_differ, **state.config["data"], "step": state.step}
        facts["the autoencoder"] = state.config.get("codec", {}).get("hash")
        self.ranks.check_agreement(facts)

    def _length_remarks(self, schedule: Schedule) -> list[str]:
        options = self.options
        remarks = []
        if options.eval_interval_epochs is not None and schedule.evaluation_steps == 0:
            remarks.append(
                f"--eval_interval_epochs {options.eval_interval_epochs} has no effect: there is "
                "nothing to measure, since no images are held out (--val_fraction)"
            )
        remarks += self._minutes_remarks
        asked = options.warmup_steps if options.lr_func == "warmup_cosine" else 0
        asked = asked or 0
        used = allowed_warmup(asked, schedule.total_steps)
        return remarks + length_remarks(schedule.total_steps, asked, used)

    def _plan(self, work: Work, schedule: Schedule) -> list[str]:
        """What the run will do, in lines. The seconds per step are measured."""
        options, state, evaluations = self.options, work.state, work.evaluations
        seconds = self.seconds_of_step(state, work.task, work.dataset)
        kept = schedule.numbered_checkpoints()
        if options.keep:
            kept = min(kept, options.keep)
        cost = Cost(
            seconds_per_step=seconds,
            images_per_step=options.images_per_process,
            steps_left=schedule.total_steps - state.step,
            previews=PreviewCost.of(work.previews, schedule.previews_left(state.step)),
            checkpoints_kept=kept,
            evaluation_share=evaluations.share if evaluations else 0.0,
            has_best=evaluations is not None,
            averages_kept=options.ema_snapshots,
            save_epochs=schedule.save_epochs,
        )
        lines = describe(work.images, all_classes=options.plan)
        lines += evaluation_lines(
            work.split, len(work.images), evaluations, work.length.steps_per_epoch
        )
        lines += work.plan_lines
        return lines + plan_lines(
            state,
            self.precision,
            self.ranks,
            cost,
            work.length,
            options.result_path,
        )

    def _recorder(self, work: Work, schedule: Schedule) -> Recorder:
        """The recorder: it writes on the main process, and is silent on the others."""
        if self.folder is None:
            return SilentRecorder(self.ranks, has_previews=work.previews is not None)
        return RunRecorder(
            self.folder,
            self.ranks,
            work.previews.draw if work.previews else None,
            schedule.total_steps,
            work.state.step,
            self.options.keep,
            self.options.image_format,
            twice_as_long(work.length.whole_epochs, work.length.minutes),
            holds_out=bool(work.state.config["data"]["held_out"]["images"]),
            kind=self.kind,
        )

    def _fit(self, work: Work, schedule: Schedule, recorder: Recorder) -> None:
        """Train from the state's step to the end of the schedule."""
        options, state, dataset = self.options, work.state, work.dataset
        order = partial(
            StepSampler, dataset, work.length.global_batch, state.seed, balance=work.balance
        )
        sampler = order(state.step, schedule.total_steps, self.ranks.rank, self.ranks.world_size)
        device = self.precision.device
        on_gpu = device.type == "cuda"
        loader = build_loader(dataset, sampler, options.batch_size, options.num_workers, pin=on_gpu)
        batches = iter(loader)
        prepared = PreparedBatches(
            batches,
            work.task.draw,
            device,
            state.seed,
            state.step,
            options.grad_accum,
            self.ranks,
        )

        def names_of(step: int) -> list[str]:
            return [dataset.name(i) for i in order(step, step + 1)]

        try:
            with advice_on_memory(options.advice_on_memory):
                fit(
                    self.wrapped(state),
                    prepared,
                    work.task.loss,
                    state,
                    schedule,
                    recorder,
                    self.update(state),
                    names_of,
                    work.evaluate,
                    work.complete,
                )
        finally:
            prepared.close()
            batches.close()  # otherwise an error would wait for the workers forever


def held_out_data(images: ImageSet, dataset: ImageSet, split: Split) -> dict:
    """What a checkpoint keeps of the images and of what is held out of them: config["data"]."""
    record = split.to_record(images.checksums, images.fingerprint())
    return {**dataset.metadata(), "held_out": record}
