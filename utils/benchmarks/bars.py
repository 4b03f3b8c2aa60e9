"""The speeds of a comparison as a picture of bars: a row of panels for each case."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from utils.benchmarks.contenders import ENTRIES
from utils.benchmarks.results import CaseResult, Comparison, ContenderResult, Measure
from utils.text_drawing import draw_text, text_width

# In pixels
PANEL_WIDTH = 400
MARGIN_LEFT = 76  # for the number format
MARGIN_RIGHT = 64  # for the number behind a bar
TITLE_HEIGHT = 34
LEGEND_HEIGHT = 40
BAR_HEIGHT = 18
BAR_GAP = 4
GROUP_GAP = 14  # between number formats
BORDER = 16
TEXT_SIZE = 14
SWATCH = 14

AXIS = (150, 150, 150)
# Ours in blue, others in warm colours.
COLOURS = {
    "ours_muon": (31, 94, 168),
    "ours_adamw": (122, 174, 226),
    "diffusers": (222, 125, 44),
    "denoising_diffusion_pytorch": (178, 178, 178),
}


@dataclass(frozen=True)
class Bar:
    """A contender's speed."""

    key: str
    value: float  # images/s


@dataclass(frozen=True)
class Panel:
    title: str
    groups: dict[str, list[Bar]]  # by number format


def draw_bars(found: Comparison) -> Image.Image:
    """All panels in one picture, under one legend."""
    rows = [_panels_of(case) for case in found.cases]
    keys = [result.key for case in found.cases for result in case.contenders]
    pictures = [[_draw_panel(panel) for panel in row] for row in rows]
    heights = [max(picture.height for picture in row) for row in pictures]
    width = 2 * BORDER + PANEL_WIDTH * max(len(row) for row in rows)
    height = 2 * BORDER + LEGEND_HEIGHT + sum(heights)
    whole = Image.new("RGB", (width, height), "white")
    _draw_legend(whole, list(dict.fromkeys(keys)))
    y = BORDER + LEGEND_HEIGHT
    for row, row_height in zip(pictures, heights, strict=True):
        for column, picture in enumerate(row):
            whole.paste(picture, (BORDER + column * PANEL_WIDTH, y))
        y += row_height
    return whole


def _panels_of(case: CaseResult) -> list[Panel]:
    def panel(what: str, measures: Sequence[Measure | None]) -> Panel:
        groups: dict[str, list[Bar]] = {}
        for result, measure in zip(case.contenders, measures, strict=True):
            if measure is not None:
                bar = Bar(result.key, measure.images_per_second)
                groups.setdefault(result.number_format, []).append(bar)
        return Panel(f"{case.name}: {what}, images/s", groups)

    results: list[ContenderResult] = case.contenders
    return [
        panel("training", [each.training for each in results]),
        panel("network call", [each.call for each in results]),
        panel(f"DDIM, {case.sample_steps} steps", [each.sampling for each in results]),
    ]


def _draw_legend(picture: Image.Image, keys: Sequence[str]) -> None:
    draw = ImageDraw.Draw(picture)
    x: float = BORDER
    y = BORDER + LEGEND_HEIGHT / 3
    for key in keys:
        draw.rectangle((x, y - SWATCH / 2, x + SWATCH, y + SWATCH / 2), fill=COLOURS[key])
        x += SWATCH + BAR_GAP
        name = ENTRIES[key].label
        draw_text(picture, (x, y), name, TEXT_SIZE, "lm")
        x += text_width(name, TEXT_SIZE) + 2 * TEXT_SIZE


def _number(value: float) -> str:
    """With three digits at least."""
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def _draw_panel(panel: Panel) -> Image.Image:
    bars = [bar for group in panel.groups.values() for bar in group]
    height = TITLE_HEIGHT + len(bars) * (BAR_HEIGHT + BAR_GAP) + len(panel.groups) * GROUP_GAP
    picture = Image.new("RGB", (PANEL_WIDTH, height), "white")
    draw = ImageDraw.Draw(picture)
    draw_text(picture, (0, TITLE_HEIGHT / 3), panel.title, TEXT_SIZE, "lm")
    longest = PANEL_WIDTH - MARGIN_LEFT - MARGIN_RIGHT
    scale = longest / max(bar.value for bar in bars)
    y = TITLE_HEIGHT
    for number_format, group in panel.groups.items():
        group_height = len(group) * (BAR_HEIGHT + BAR_GAP) - BAR_GAP
        draw_text(picture, (0, y + group_height / 2), number_format, TEXT_SIZE, "lm")
        for bar in group:
            right = MARGIN_LEFT + max(1, round(bar.value * scale))
            draw.rectangle((MARGIN_LEFT, y, right, y + BAR_HEIGHT - 1), fill=COLOURS[bar.key])
            middle = y + BAR_HEIGHT / 2
            draw_text(picture, (right + BAR_GAP, middle), _number(bar.value), TEXT_SIZE, "lm")
            y += BAR_HEIGHT + BAR_GAP
        top = y - group_height - BAR_GAP
        draw.line((MARGIN_LEFT, top, MARGIN_LEFT, y - BAR_GAP - 1), fill=AXIS)
        y += GROUP_GAP
    return picture
