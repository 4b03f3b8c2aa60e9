"""What a comparison found. Plain values, of which the JSON file holds all."""

import statistics
from dataclasses import asdict, dataclass, field
from typing import Any

from utils.benchmarks.turns import spread_of

FORMAT_VERSION = 1
TRAINING_PASSES = 3  # forward passes that a training step is counted as: backward costs two


@dataclass
class Measure:
    """Of one thing that was timed in turns, on a batch of images."""

    seconds: list[float]  # of each round
    images: int
    operations: float  # floating-point, on one image
    peak: float  # floating-point operations per second of the fastest convolution

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        return spread_of(self.seconds)

    @property
    def images_per_second(self) -> float:
        return self.images / self.median

    @property
    def operations_per_second(self) -> float:
        return self.operations * self.images_per_second

    @property
    def share_of_peak(self) -> float:
        return self.operations_per_second / self.peak

    def to_dict(self) -> dict[str, Any]:
        return {
            "seconds": self.seconds,
            "median": self.median,
            "spread": self.spread,
            "images_per_second": self.images_per_second,
            "gflops": self.operations_per_second / 1e9,
            "share_of_peak": self.share_of_peak,
        }


@dataclass
class ContenderResult:
    """Of one contender in one number format."""

    key: str  # of contenders.ENTRIES
    number_format: str
    parameters: int
    training: Measure
    call: Measure | None = None  # None: as of another contender with the same network
    sampling: Measure | None = None
    sampler_overhead: list[float] = field(default_factory=list)  # shares, one a round
    start_up: list[float] = field(default_factory=list)  # seconds, one a process
    memory: list[int] = field(default_factory=list)  # bytes, one a process

    def add_process(self, start_up: float, memory: int) -> None:
        """What another process of it took."""
        self.start_up.append(start_up)
        self.memory.append(memory)

    def to_dict(self) -> dict[str, Any]:
        measures = {"training": self.training, "call": self.call, "sampling": self.sampling}
        as_dicts = {name: each and each.to_dict() for name, each in measures.items()}
        return {
            "contender": self.key,
            "number_format": self.number_format,
            "parameters": self.parameters,
            **as_dicts,
            "sampler_overhead": self.sampler_overhead,
            "start_up_seconds": self.start_up,
            "memory_bytes": self.memory,
        }


@dataclass
class CaseResult:
    """Of one image size."""

    name: str
    preset: str
    batch_size: int
    sample_steps: int
    network: dict[str, Any]
    largest_difference: float | None  # between our output and diffusers'; None: it is not there
    contenders: list[ContenderResult]

    def to_dict(self) -> dict[str, Any]:
        contenders = [each.to_dict() for each in self.contenders]
        return {**asdict(self), "contenders": contenders}


@dataclass
class Peak:
    """The fastest 3x3 convolution in one number format."""

    number_format: str
    operations_per_second: float
    convolution: str

    def to_dict(self) -> dict[str, Any]:
        return {
            "number_format": self.number_format,
            "gflops": self.operations_per_second / 1e9,
            "convolution": self.convolution,
        }


@dataclass
class LoaderShare:
    """Of the time of training steps on images from a folder, one value a step."""

    case: str
    number_format: str
    images: int  # in the folder
    seconds: list[float]
    seconds_in_loader: list[float]

    @property
    def share(self) -> float:
        return sum(self.seconds_in_loader) / sum(self.seconds)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "share": self.share}


@dataclass
class Comparison:
    """All that was found."""

    date: str
    machine: dict[str, Any]
    versions: dict[str, str]
    options: dict[str, Any]
    left_out: list[str]  # a sentence for each peer that is not installed
    peaks: list[Peak] = field(default_factory=list)
    cases: list[CaseResult] = field(default_factory=list)
    loader: LoaderShare | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "format_version": FORMAT_VERSION,
            "date": self.date,
            "machine": self.machine,
            "versions": self.versions,
            "options": self.options,
            "left_out": self.left_out,
            "convolution_peaks": [each.to_dict() for each in self.peaks],
            "cases": [each.to_dict() for each in self.cases],
            "loader": None if self.loader is None else self.loader.to_dict(),
        }
