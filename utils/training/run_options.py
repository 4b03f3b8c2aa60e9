"""What every training script lets people choose, as plain values. Standard library only."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

AUTO = "auto"

# What helps where the images of a forward pass do not fit into memory.
SMALLER_PASSES = "a smaller --batch_size with as much more --grad_accum gives the same result"
SMALLER_NETWORK = "smaller images or a smaller network need less"


@dataclass(frozen=True)
class RunOptions:
    """The options of tools/train.py's table that do not depend on what is trained."""

    # The run and its data
    run_name: str
    dataset_path: Path
    result_path: Path
    resume: bool
    allow_changes: bool
    start_epoch: int  # -1: the last checkpoint
    pretrain: bool
    pretrain_path: Path | None
    val_fraction: float | None
    seed: int
    plan: bool
    # Optimisation
    epochs: int  # None: the run settles them, or minutes do
    minutes: float | None  # instead of epochs
    batch_size: int
    grad_accum: int
    optim: str
    lr: float
    lr_func: str
    warmup_steps: int | None  # None: a share of the run
    weight_decay: float
    grad_clip: float
    ema_length: float | None  # None: a fixed decay instead
    ema_decay: float | None
    amp: bool | str  # or AUTO
    # Saving, evaluation and previews
    save_model_interval: bool
    save_model_interval_epochs: int
    start_model_interval: int
    save_every_steps: int
    keep: int
    vis_interval_epochs: int | None
    image_format: str
    eval_interval_epochs: int | None
    log_interval: int
    # The machine
    use_gpu: int
    num_workers: int
    cache: str
    compile: bool
    cuda_graph: bool | str  # or AUTO
    gradient_compression: str
    # Only where a script has them
    ema_snapshots: int = 0  # None: the run settles them
    guide_share: float = 0.0
    # All of the script's options
    record: dict[str, Any] = field(default_factory=dict)  # as given, for the checkpoint
    of_a_machine: tuple[str, ...] = ()  # the names of those that may differ between machines
    decisions: dict[str, Any] = field(default_factory=dict)  # those that decide the result
    of_the_output: tuple[str, ...] = ()  # the names of those on what is saved, measured and drawn

    def with_settled(self, **values: Any) -> "RunOptions":
        """These options with others' values, in the record and the decisions too."""
        decided = {name: value for name, value in values.items() if name in self.decisions}
        return replace(
            self,
            **values,
            record={**self.record, **values},
            decisions={**self.decisions, **decided},
        )

    @property
    def advice_on_memory(self) -> str:
        """What would need less memory."""
        return SMALLER_PASSES if self.batch_size > 1 else SMALLER_NETWORK

    @property
    def folder(self) -> Path:
        """Where the run writes."""
        return self.result_path / self.run_name

    @property
    def images_per_process(self) -> int:
        """That an optimizer step sees in each process."""
        return self.batch_size * self.grad_accum

    def global_batch(self, processes: int) -> int:
        """Images that an optimizer step sees, on all of so many processes."""
        return self.images_per_process * processes
