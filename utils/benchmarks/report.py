"""A comparison as Markdown, for people, and as a folder of files."""

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

from utils.benchmarks.bars import draw_bars
from utils.benchmarks.contenders import ENTRIES
from utils.benchmarks.results import CaseResult, Comparison, ContenderResult, Measure
from utils.errors import UserError
from utils.evaluation.report import write_json

NAME = "benchmark"  # of each file, before its ending
MIB = 2**20
SPEED_COLUMNS = ("ms", "spread", "x the first", "images/s", "GFLOP/s", "of peak")

Row = Sequence[str]


def prepare_folder(folder: Path) -> None:
    """Make the folder, before the long work. Raises UserError where that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {folder} cannot be made: {error.strerror}") from None


def write_report(found: Comparison, folder: Path) -> None:
    """benchmark.md, .json and .png. Raises UserError where the disk refuses them."""
    write_json(found.to_dict(), folder / f"{NAME}.json")
    picture = draw_bars(found)
    try:
        (folder / f"{NAME}.md").write_text(as_markdown(found), encoding="utf-8")
        picture.save(folder / f"{NAME}.png", optimize=True)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror or error}") from None


def as_markdown(found: Comparison) -> str:
    machine = found.machine
    versions = ", ".join(f"{name} {text}" for name, text in found.versions.items())
    lines = [
        "# Ours beside others",
        "",
        f"{found.date}, {machine['device_name']}, {machine['threads']} threads; {versions}.",
        "The median of rounds in turns; the spread is the distance between the quartiles, as a "
        "share of the median.",
        "",
    ]
    for line in found.left_out:
        lines += [f"{line}.", ""]
    for case in found.cases:
        lines += _case_lines(case)
    lines += _start_lines(found)
    lines += _machine_lines(found)
    return "\n".join(lines).rstrip() + "\n"


# --- A case ---


def _case_lines(case: CaseResult) -> Iterator[str]:
    yield f"## {case.name}, preset {case.preset}, batches of {case.batch_size}"
    yield ""
    if case.largest_difference is not None:
        yield (
            "The same weights in our network and in diffusers': their outputs differ by at most "
            f"{case.largest_difference:.1g}."
        )
        yield ""
    yield "**Training step**"
    yield ""
    yield from _speed_table([(each, each.training) for each in case.contenders], whole_name=True)
    yield "**Network call**, without gradients"
    yield ""
    calls = [(each, each.call) for each in case.contenders if each.call is not None]
    yield from _speed_table(calls, whole_name=False)
    yield f"**Sampling**, DDIM in {case.sample_steps} steps"
    yield ""
    samplings = [(each, each.sampling) for each in case.contenders if each.sampling is not None]
    yield from _speed_table(samplings, whole_name=False, with_overhead=True)


def _speed_table(
    measured: Sequence[tuple[ContenderResult, Measure]],
    whole_name: bool,
    with_overhead: bool = False,
) -> list[str]:
    heads = ["", "format", "parameters", *SPEED_COLUMNS]
    if with_overhead:
        heads.append("beyond the network")
    rows: list[Row] = []
    for result, measure in measured:
        entry = ENTRIES[result.key]
        first = next(each for other, each in measured if _are_alike(other, result))
        row = [
            entry.label if whole_name else entry.network_label,
            result.number_format,
            f"{result.parameters / 1e6:.2f} M",
            f"{1000 * measure.median:.1f}",
            f"{100 * measure.spread:.0f}%",
            f"{measure.median / first.median:.2f}",
            f"{measure.images_per_second:.0f}",
            f"{measure.operations_per_second / 1e9:.0f}",
            f"{100 * measure.share_of_peak:.0f}%",
        ]
        if with_overhead:
            row.append(f"{100 * statistics.median(result.sampler_overhead):.1f}%")
        rows.append(row)
    return _table(heads, rows)


def _are_alike(one: ContenderResult, other: ContenderResult) -> bool:
    return one.number_format == other.number_format


# --- What is not timed in turns ---


def _start_lines(found: Comparison) -> Iterator[str]:
    yield "## Memory and start-up"
    yield ""
    yield (
        "Of each contender's process: the most that three training steps take beyond what was "
        "there before the network was built; and the time from the start of Python to the end of "
        "the first step."
    )
    yield ""
    rows = []
    for case in found.cases:
        for each in case.contenders:
            entry = ENTRIES[each.key]
            row = [
                f"{case.name}, {entry.name}",
                each.number_format,
                f"{statistics.median(each.memory) / MIB:.0f} MiB",
                f"{statistics.median(each.start_up):.1f} s",
            ]
            rows.append(row)
    yield from _table(["", "format", "memory", "start-up"], rows)


def _machine_lines(found: Comparison) -> Iterator[str]:
    yield "## Loader and peak"
    yield ""
    if found.loader is not None:
        loader = found.loader
        yield (
            f"Of {len(loader.seconds)} steps of our training loop on {loader.images:,} images "
            f"from a folder ({loader.case}, {loader.number_format}), waiting for the loader took "
            f"{100 * loader.share:.1f}%."
        )
        yield ""
    rows = [
        [peak.number_format, f"{peak.operations_per_second / 1e9:.0f}", peak.convolution]
        for peak in found.peaks
    ]
    yield from _table(["format", "GFLOP/s", "the fastest 3x3 convolution"], rows)


def _table(heads: Row, rows: Sequence[Row]) -> list[str]:
    """With columns of one width, and an empty line behind; numbers stand at the right."""
    columns = list(zip(heads, *rows, strict=True))
    widths = [max(3, *(len(cell) for cell in column)) for column in columns]
    lines = []
    for row in (heads, ["---"] * len(heads), *rows):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]
