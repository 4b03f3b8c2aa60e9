"""The same images by several samplers: how good they are, and how long they take."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from utils.evaluation.features import FeatureNetwork
from utils.evaluation.same_seeds import Answer, Questions, answer, batches_of
from utils.generation import ImageGenerator, Sampling
from utils.guidance_choice import Guidance
from utils.runs.checkpoint import Checkpoint
from utils.runs.files import save_checkpoint
from utils.runs.folder import writing_beside_runs

# What is taken for the exact solution of a network's flow.
EXACT_SAMPLER = "unipc"
EXACT_STEPS = 200


@dataclass(frozen=True)
class Candidate:
    """A way to sample."""

    sampler: str
    spacing: str
    steps: int
    guidance: Guidance = Guidance()

    def __str__(self) -> str:
        return f"{self.sampler} {self.spacing} {self.steps}, {self.guidance}"

    def sampling(self, like: Sampling) -> Sampling:
        """With the clipping and the interval of guidance of another."""
        return replace(
            like.guided(self.guidance),
            sampler=self.sampler,
            timestep_spacing=self.spacing,
            sample_steps=self.steps,
        )


@dataclass(frozen=True)
class Result:
    """What a candidate's images are like."""

    candidate: Candidate
    calls: int  # of a network, for each image
    answer: Answer
    from_exact: float  # RMS over pixels in [-1, 1], of the first images

    @property
    def kid(self) -> float:
        return self.answer.kid


def candidates_of(
    samplers: Sequence[str],
    spacings: Sequence[str],
    steps: Sequence[int],
    guidances: Iterable[Guidance] = (Guidance(),),
) -> list[Candidate]:
    """Each sampler with each spacing, number of steps and guidance."""
    return [
        Candidate(sampler, spacing, count, guidance)
        for guidance in guidances
        for sampler in samplers
        for spacing in spacings
        for count in steps
    ]


def exact_images(generator: ImageGenerator, like: Sampling, questions: Questions) -> Tensor:
    """The first images after so many steps that more change nothing, (N,C,H,W) in [-1, 1]."""
    steps = min(EXACT_STEPS, generator.sampler.noise_steps)
    exact = Candidate(EXACT_SAMPLER, "logsnr", steps, like.guidance)
    return first_images(with_sampling(generator, exact.sampling(like)), questions)


def first_images(generator: ImageGenerator, questions: Questions) -> Tensor:
    """The first images as pixels in [-1, 1], (N,C,H,W)."""
    few = replace(questions, count=questions.shown)
    return torch.cat(list(batches_of(generator, few))).float() / 127.5 - 1


def with_sampling(generator: ImageGenerator, sampling: Sampling) -> ImageGenerator:
    """The same network, sampled in another way."""
    sampler = generator.sampler
    return ImageGenerator(
        generator.network,
        sampling.build(sampler.config, sampler.device, generator.codec.is_bounded),
        generator.codec,
        generator.image_size,
        generator.channels,
        generator.precision,
        sampling.cfg_scale,
        sampling.cfg_interval,
    )


def measure(
    candidate: Candidate,
    generator: ImageGenerator,  # with the candidate's sampling
    questions: Questions,
    features: FeatureNetwork,
    real: Tensor,  # (N,D): features of real images
    exact: Tensor,
    after_call: Callable[[], None] = lambda: None,
) -> Result:
    """The figures of one candidate."""
    found = answer(generator, questions, features, real, after_call)
    difference = found.shown.float() / 127.5 - 1 - exact
    from_exact = difference.square().mean().sqrt().item()
    guided_calls = generator.sampler.guided_calls(generator.cfg_interval)
    rows = candidate.guidance.rows_of(generator.calls, guided_calls)
    return Result(candidate, rows, found, from_exact)


def recommended(results: Sequence[Result]) -> Result:
    """The one with the fewest network calls whose KID is within a standard error of the best."""
    best = min(results, key=lambda result: result.kid)
    good = [result for result in results if result.kid <= best.kid + best.answer.kid_se]
    return min(good, key=lambda result: (result.calls, result.kid))


def write_recommendation(file: Path, candidate: Candidate) -> None:
    """Make the candidate what a checkpoint is sampled with where nobody says how.

    Raises UserError where the file is none of ours, or of a run that is being trained, OSError
    where the disk refuses it; then it is as it was.
    """
    file = file.resolve()  # not the link to it
    with writing_beside_runs(file.parent):
        _write_recommendation(file, candidate)


def _write_recommendation(file: Path, candidate: Candidate) -> None:
    checkpoint = Checkpoint.read(file)
    checkpoint.config["sampling"] = {
        **checkpoint.config["sampling"],
        "sampler": candidate.sampler,
        "sample_steps": candidate.steps,
        "timestep_spacing": candidate.spacing,
        "recommended_guidance": asdict(candidate.guidance),
    }
    save_checkpoint(checkpoint.to_dict(), file)


def table_lines(results: Sequence[Result], chosen: Result) -> list[str]:
    """The figures as a Markdown table, best KID first."""
    lines = [
        "| sampler | time steps | steps | guidance | network calls | s | KID x 1000 "
        "| from the exact images |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for result in sorted(results, key=lambda result: result.kid):
        candidate = result.candidate
        mark = "**" if result is chosen else ""
        lines.append(
            f"| {mark}{candidate.sampler}{mark} | {candidate.spacing} | {candidate.steps} "
            f"| {candidate.guidance} | {result.calls} | {result.answer.seconds:.1f} "
            f"| {1000 * result.kid:.1f} +- {1000 * result.answer.kid_se:.1f} "
            f"| {result.from_exact:.4f} |"
        )
    return lines
