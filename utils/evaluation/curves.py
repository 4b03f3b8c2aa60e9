"""The curves of a run's evaluations as a picture: a panel for each time step."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from utils.evaluation.verdict import Verdict
from utils.runs.evaluations import Evaluation
from utils.text_drawing import draw_text, text_width

PANEL_WIDTH, PANEL_HEIGHT = 300, 210  # pixels
MARGIN_LEFT, MARGIN_RIGHT, MARGIN_TOP, MARGIN_BOTTOM = 58, 14, 30, 26
PANELS_PER_ROW = 3
TEXT_SIZE = 13  # pixels
OVERSAMPLING = 3  # lines are drawn larger and reduced, since Pillow draws them with hard edges
LINE_WIDTH = 2
SWATCH = 14  # pixels of a curve's colour before its name

HELD_OUT = (200, 60, 40)
TRAINING = (40, 100, 190)
BEST = (150, 150, 150)
FRAME = (190, 190, 190)


@dataclass(frozen=True)
class Curve:
    """One line of a panel."""

    name: str
    colour: tuple[int, int, int]
    values: Sequence[float]


@dataclass(frozen=True)
class Panel:
    title: str
    steps: Sequence[int]
    curves: Sequence[Curve]
    marked: int | None  # a step


def draw_curves(evaluations: Sequence[Evaluation], verdict: Verdict) -> Image.Image:
    """All panels in one picture. There must be an evaluation."""
    panels = list(_panels(evaluations, verdict))
    columns = min(PANELS_PER_ROW, len(panels))
    rows = math.ceil(len(panels) / columns)
    picture = Image.new("RGB", (columns * PANEL_WIDTH, rows * PANEL_HEIGHT), "white")
    for i, panel in enumerate(panels):
        row, column = divmod(i, columns)
        picture.paste(_draw_panel(panel), (column * PANEL_WIDTH, row * PANEL_HEIGHT))
    return picture


def _panels(evaluations: Sequence[Evaluation], verdict: Verdict) -> Iterator[Panel]:
    """The mean, each time step, and the scores, as far as they were measured."""
    with_loss = [each for each in evaluations if each.time_steps]
    names = ["loss"] if with_loss else []
    if with_loss and len(with_loss[-1].time_steps) > 1:
        names += [f"loss_t{t}" for t in with_loss[-1].time_steps]
    for name in names:
        t = name.removeprefix("loss_t")
        title = "mean loss" if name == "loss" else f"loss at t = {t}"
        alike = [each for each in with_loss if f"held_out_{name}" in each.scalars()]
        curves = [
            Curve(kind.replace("_", "-"), colour, [e.scalars()[f"{kind}_{name}"] for e in alike])
            for kind, colour in (("held_out", HELD_OUT), ("training", TRAINING))
        ]
        yield Panel(title, [each.step for each in alike], curves, verdict.best_step)
    with_psnr = [each for each in evaluations if "psnr" in each.scores]
    if with_psnr:
        psnr = Curve("PSNR in dB", HELD_OUT, [each.scores["psnr"] for each in with_psnr])
        yield Panel("held out", [each.step for each in with_psnr], [psnr], verdict.best_step)
    with_kid = [each for each in evaluations if "kid" in each.scores]
    if with_kid:
        kid = Curve("1000 x KID", TRAINING, [1000 * each.scores["kid"] for each in with_kid])
        yield Panel("KID", [each.step for each in with_kid], [kid], verdict.best_step)


def _draw_panel(panel: Panel) -> Image.Image:
    picture = Image.new("RGB", (PANEL_WIDTH, PANEL_HEIGHT), "white")
    low, high = _limits([value for curve in panel.curves for value in curve.values])
    first, last = 0, max(panel.steps)
    width = PANEL_WIDTH - MARGIN_LEFT - MARGIN_RIGHT
    height = PANEL_HEIGHT - MARGIN_TOP - MARGIN_BOTTOM
    scale = OVERSAMPLING
    plot = Image.new("RGB", (width * scale, height * scale), "white")
    draw = ImageDraw.Draw(plot)

    def at(step: int, value: float) -> tuple[float, float]:
        x = (step - first) / (last - first) * (plot.width - 1)
        y = (high - value) / (high - low) * (plot.height - 1)
        return x, y

    draw.rectangle((0, 0, plot.width - 1, plot.height - 1), outline=FRAME, width=scale)
    if panel.marked is not None:
        x, _ = at(panel.marked, low)
        draw.line((x, 0, x, plot.height), fill=BEST, width=scale)
    for curve in panel.curves:
        points = [at(*point) for point in zip(panel.steps, curve.values, strict=True)]
        draw.line(points, fill=curve.colour, width=LINE_WIDTH * scale, joint="curve")
        for x, y in points:
            radius = LINE_WIDTH * scale
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=curve.colour)
    picture.paste(plot.resize((width, height), Image.Resampling.BOX), (MARGIN_LEFT, MARGIN_TOP))
    _label(picture, panel, low, high, last)
    return picture


def _label(picture: Image.Image, panel: Panel, low: float, high: float, last: int) -> None:
    """Title, names of the curves, and the ends of both axes."""
    draw = ImageDraw.Draw(picture)
    middle = MARGIN_TOP / 2
    x: float = MARGIN_LEFT
    draw_text(picture, (x, middle), panel.title, TEXT_SIZE, "lm")
    x += text_width(panel.title, TEXT_SIZE) + TEXT_SIZE
    for curve in panel.curves:
        draw.rectangle((x, middle - 1, x + SWATCH, middle + 1), fill=curve.colour)
        x += SWATCH + 4
        draw_text(picture, (x, middle), curve.name, TEXT_SIZE, "lm")
        x += text_width(curve.name, TEXT_SIZE) + TEXT_SIZE
    bottom = PANEL_HEIGHT - MARGIN_BOTTOM
    for value, y in ((high, MARGIN_TOP + TEXT_SIZE / 2), (low, bottom - TEXT_SIZE / 2)):
        text = f"{value:.3g}"
        left = MARGIN_LEFT - 5 - text_width(text, TEXT_SIZE)
        draw_text(picture, (left, y), text, TEXT_SIZE, "lm")
    text = f"step {last:,}"
    left = PANEL_WIDTH - MARGIN_RIGHT - text_width(text, TEXT_SIZE)
    draw_text(picture, (left, bottom + MARGIN_BOTTOM / 2), text, TEXT_SIZE, "lm")


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """A range that holds the values, with some room."""
    low, high = min(values), max(values)
    room = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - room, high + room
