"""A training run, whatever is trained: from its options to the end of its last step.

A script of tools/ says what is trained, in the order of execution:

    run = TrainingRun(options, kind, ranks, usual_epochs)    device, the folder that it alone writes
    split = run.split(images)                    which images are held out
    state = run.build_state(config)              network, EMA, optimizer
    run.restore(state, len(dataset))             resume or pretrain: refused before any long work
    length = run.length(state, task, dataset, images, previews, evaluations_of)    steps
    run.train(Work(...))                         plan, fit
"""

from functools import partial
from pathlib import Path
from typing import Any

from utils.console import say
from utils.data import ImageSet, StepSampler, TrainingSet, build_loader
from utils.data.near_copies import near_copy_finder
from utils.data.split import Split, recorded_split, split_set
from utils.devices import choose_device, choose_precision, prepare_for_training
from utils.errors import UserError, advice_on_memory
from utils.free_memory import free_memory
from utils.ranks import Ranks, bits_of
from utils.runs.checkpoint import Checkpoint
from utils.runs.folder import RunFolder
from utils.training.fit import fit
from utils.training.length import Pace, RunLength, kept_steps, minutes_remarks, twice_as_long
from utils.training.new_state import new_state
from utils.training.open_options import settled_values
from utils.training.plan import Previews, remark_lines, size_of_checkpoint
from utils.training.prefetch import PreparedBatches
from utils.training.recorder import Recorder, RunRecorder, SilentRecorder
from utils.training.resume import (
    check_pretrain,
    learning_rate_remark,
    open_resumed,
    output_remark,
    pretrain,
    resume,
)
from utils.training.run_length import EvaluationsOf, fitted_length, known_length
from utils.training.run_options import RunOptions
from utils.training.run_plan import lines_of_run, schedule_remarks
from utils.training.run_schedule import rate_at, schedule_of
from utils.training.schedule import Schedule
from utils.training.state import TrainState
from utils.training.stepping import Stepping
from utils.training.work import Task, Work


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
        self.seconds_ahead = 0.0  # about, of what is still to be done before the first step
        self._restored: list[str] = []  # remarks
        self._source: Path | None = None  # what the run resumes from
        self._minutes_remarks: list[str] = []
        self.resumed: Checkpoint | None = None
        self._length_before: dict | None = None  # of the run that is resumed
        if options.resume:
            self.resumed = open_resumed(kind, options.folder, options.start_epoch)
            self._length_before = self.resumed.config.get("length", {})
            kept_steps(self._length_before, options.minutes)  # refused before any long work
        elif options.pretrain and options.pretrain_path is not None:
            check_pretrain(kind, options.pretrain_path)
        device = choose_device(options.use_gpu, ranks)
        self._settled = settled_values(options, self.resumed, device, usual_epochs)
        self.precision, self.precision_remark = choose_precision(self._settled["amp"], device)
        self.take(options)
        prepare_for_training(device)

    def take(self, options: RunOptions) -> None:
        """Go on with these options, in which more is settled than at the start."""
        self.options = options.with_settled(**self._settled)
        self.stepping = Stepping(self.options, self.precision, self.ranks)

    @property
    def before(self) -> dict[str, Any]:
        """What decided the result of the run that is resumed, by the options' names."""
        return {} if self.resumed is None else self.resumed.config["training"]

    def log(self, text: str) -> None:
        """Said and kept in the run's log by the main process."""
        if self.folder is not None:
            self.folder.log(text)

    def free_memory(self) -> float:
        """Bytes that this process may take: of its GPU, or its share of this machine's."""
        return free_memory(self.precision.device, self.ranks.local_world_size)

    # --- Data ---

    def split(self, images: ImageSet) -> Split:
        """Which images are held out: for a run that is resumed, the same as before.

        Returns when every process has its images: decoding is exempt from --timeout.
        """
        split = self._choose_split(images) if self.ranks.is_main else None
        self.ranks.wait_for_all()
        self._check_start(images)
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
        return split_set(images.checksums, images.label_table(), share, finder, is_asked_for)

    def _check_start(self, images: ImageSet) -> None:
        """Raise UserError where another machine was given other options or images, before anything
        is shared that depends on them.
        """
        may_differ = dict.fromkeys(self.options.of_a_machine)
        facts = {**self.options.record, **may_differ, "images": len(images)}
        facts["the images"] = images.fingerprint()
        self.ranks.check_agreement(facts)

    # --- What is trained, and for how long ---

    def build_state(self, config: dict) -> TrainState:
        """The network of config["network"], its EMA and optimizer, untrained; see `new_state`."""
        return new_state(self.kind, config, self.options, self.precision, self.ranks)

    @property
    def global_batch(self) -> int:
        """Images that an optimizer step sees, on all processes."""
        return self.options.global_batch(self.ranks.world_size)

    def length(
        self,
        state: TrainState,
        task: Task,
        dataset: TrainingSet,
        images: int,
        previews: Previews | None,
        evaluations_of: EvaluationsOf,
        rows_at_the_end: float = 0.0,
    ) -> RunLength:
        """How long the run on so many images is; it goes into the state's config.

        With --minutes, as many steps as fit, measured on images of `dataset` by the main process; a
        resumed run keeps its length. `rows_at_the_end`: see `Work`.
        """
        length = self._known_length(images)
        if length is None:
            pace = Pace(
                self.stepping.seconds(state, task, dataset),
                self.options.images_per_process,
                0.0 if previews is None else previews.network_rows,
                size_of_checkpoint(state),
                self.options.save_every_steps,
                saves_beside_steps=self.precision.device.type != "cpu",
                rows_at_the_end=rows_at_the_end,
            )
            length = fitted_length(
                self.options,
                images,
                self.global_batch,
                pace,
                evaluations_of,
                self.ranks,
                self.seconds_ahead,
            )
            assert length.minutes is not None
            self._minutes_remarks = minutes_remarks(length.minutes, pace.seconds_per_step)
        state.config["length"] = length.record()
        return length

    def _known_length(self, images: int) -> RunLength | None:
        return known_length(self.options, self._length_before, images, self.global_batch)

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

    def _resume(self, state: TrainState, resumed: Checkpoint, images: int) -> list[str]:
        """Continue from a checkpoint of this run; remarks for the plan."""
        options = self.options
        remarks = resume(state, resumed, options.allow_changes)
        remarks.append(output_remark(resumed.args, options.record, options.of_the_output))
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
            lambda step, total: rate_at(options, total, step),
        )
        return remarks + ([remark] if remark else [])

    def _check_agreement(self, state: TrainState) -> None:
        """Raise UserError where another machine was given other options or images."""
        may_differ: dict[str, Any] = dict.fromkeys(self.options.of_a_machine)
        data = {**state.config["data"], "held_out": None}  # it follows the main process's word
        facts = {**state.args, **may_differ, **data, "step": state.step}
        facts["the autoencoder"] = state.config.get("codec", {}).get("hash")
        from_file = self.options.pretrain or self._source is not None
        if from_file and self.ranks.world_size > 1:
            facts["the weights to start from"] = bits_of(state.ema.network)
        self.ranks.check_agreement(facts)

    # --- Plan, fit ---

    def train(self, work: Work) -> None:
        """Say the plan, and train to the end. With --plan, stops behind the plan.

        Raises what `fit` raises.
        """
        options, state = self.options, work.state
        state.guide_step = round(options.guide_share * work.length.total_steps)
        if options.guide_share == 0:
            state.guide = None  # that a run kept which is resumed without one
        seconds_per_step = self.stepping.seconds(state, work.task, work.dataset)
        schedule = schedule_of(options, work, seconds_per_step, self.ranks)
        remarks = [
            self.precision_remark,
            self.stepping.cuda_graph_remark(state.network),
            *work.remarks,
            self._drop_late_guide(state),
            *schedule_remarks(options, schedule),
            *self._minutes_remarks,
            *self._restored,
        ]
        lines = lines_of_run(
            options, work, schedule, seconds_per_step, self.precision, self.ranks
        ) + remark_lines(remarks)
        if options.plan:
            say("\n".join(lines))
            return
        if self.folder is not None:
            self.folder.start(state.record(), state.step, self._source)
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
                    self.stepping.wrapped(state.network),
                    prepared,
                    work.task.loss,
                    state,
                    schedule,
                    recorder,
                    self.stepping.update(state.network),
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
