// Curves over training steps, drawn by uPlot; colours are those of style.css, light or dark.

import { element } from "../lib/dom.js";
import { count, measure } from "../lib/format.js";

const uPlot = window.uPlot;

/**
 * One line: {label, steps: [...], values: [...], color: a CSS variable, width, points, dash}.
 * A value may be null.
 */
export class Chart {
  constructor() {
    this.place = element("div", { class: "chart-place", role: "img" });
    this.node = this.place;
    this.isLog = false;
    this.lines = [];
    this.marks = [];
    this.observer = new ResizeObserver(() => this.fit());
    this.observer.observe(this.place);
    this.scheme = matchMedia("(prefers-color-scheme: dark)");
    this.onScheme = () => this.rebuild();
    this.scheme.addEventListener("change", this.onScheme);
  }

  /**
   * @param lines   see above
   * @param marks   [{step, text, color}]: steps with a dashed line
   * @param summary what it shows, for those who do not see it
   */
  update(lines, marks, summary) {
    const before = this.shape();
    this.lines = lines;
    this.marks = marks;
    this.place.setAttribute("aria-label", summary);
    if (this.plot === undefined || before !== this.shape()) {
      this.rebuild();
    } else {
      this.plot.setData(joined(this.lines));
    }
  }

  setLog(isLog) {
    this.isLog = isLog;
    this.rebuild();
  }

  shape() {
    return JSON.stringify(this.lines.map(({ label, color, dash }) => [label, color, dash]));
  }

  rebuild() {
    this.plot?.destroy();
    this.plot = undefined;
    if (this.lines.length === 0 || this.place.clientWidth === 0) {
      return;
    }
    this.plot = new uPlot(this.options(), joined(this.lines), this.place);
  }

  fit() {
    if (this.plot === undefined) {
      this.rebuild();
      return;
    }
    this.plot.setSize(this.size());
  }

  size() {
    const height = parseFloat(getComputedStyle(this.place).getPropertyValue("--chart-height"));
    return { width: this.place.clientWidth, height };
  }

  options() {
    const text = color("--muted");
    const grid = { stroke: color("--line"), width: 1 };
    const font = "12px system-ui, sans-serif";
    const axis = { stroke: text, font, grid, ticks: { ...grid, size: 4 } };
    return {
      ...this.size(),
      padding: [10, 12, 0, 0],
      scales: { x: { time: false }, y: { distr: this.isLog ? 3 : 1 } },
      axes: [
        { ...axis, size: 30, values: (plot, splits) => splits.map((step) => count(step)) },
        {
          ...axis,
          size: 58,
          values: (plot, splits) => splits.map((value) => (value === null ? "" : measure(value))),
        },
      ],
      cursor: { y: false, points: { size: 7 }, drag: { x: true, y: false } },
      legend: { live: true },
      series: [
        { label: "step", value: (plot, step) => count(step ?? plot.data[0].at(-1) ?? 0) },
        ...this.lines.map(seriesOf),
      ],
      hooks: { draw: [(plot) => this.drawMarks(plot)] },
    };
  }

  drawMarks(plot) {
    const { ctx, bbox } = plot;
    const scale = devicePixelRatio;
    ctx.save();
    for (const mark of this.marks) {
      const x = plot.valToPos(mark.step, "x", true);
      if (x < bbox.left || x > bbox.left + bbox.width) {
        continue;
      }
      ctx.strokeStyle = color(mark.color);
      ctx.fillStyle = color(mark.color);
      ctx.lineWidth = scale;
      ctx.setLineDash([4 * scale, 4 * scale]);
      ctx.beginPath();
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bbox.top + bbox.height);
      ctx.stroke();
      ctx.font = `${12 * scale}px system-ui, sans-serif`;
      const isRight = x > bbox.left + bbox.width * 0.8;
      ctx.textAlign = isRight ? "right" : "left";
      ctx.fillText(mark.text, x + (isRight ? -5 : 5) * scale, bbox.top + 12 * scale);
    }
    ctx.restore();
  }

  close() {
    this.observer.disconnect();
    this.scheme.removeEventListener("change", this.onScheme);
    this.plot?.destroy();
  }
}

function seriesOf(line) {
  return {
    label: line.label,
    stroke: () => color(line.color),
    width: line.width ?? 1.5,
    dash: line.dash,
    spanGaps: true,
    points: line.points ? { show: true, size: 5, fill: () => color(line.color) } : { show: false },
    value: (plot, value, series, place) => measure(value ?? valueBefore(plot.data[series], place)),
  };
}

/** The last known value up to a place; without a place, of all: what the legend says at rest. */
function valueBefore(values, place) {
  const until = place === null || place === undefined ? values.length : place;
  return values.slice(0, until).findLast((value) => value !== null) ?? null;
}

/** Lines with steps of their own -> uPlot's table: all steps, and a column for each line. */
function joined(lines) {
  const steps = [...new Set(lines.flatMap((line) => line.steps))].sort((a, b) => a - b);
  const placeOf = new Map(steps.map((step, place) => [step, place]));
  const columns = lines.map((line) => {
    const column = new Array(steps.length).fill(null);
    line.steps.forEach((step, place) => {
      column[placeOf.get(step)] = line.values[place];
    });
    return column;
  });
  return [steps, ...columns];
}

/** The value of a CSS variable, in the colour scheme of now. */
function color(variable) {
  return getComputedStyle(document.documentElement).getPropertyValue(variable).trim();
}

/**
 * The exponential average of values with gaps: weight 0 is the values themselves, 0.95 averages
 * about the last 20. Corrected for its start, as in Adam.
 */
export function smoothed(values, weight) {
  let sum = 0;
  let share = 0;
  return values.map((value) => {
    if (value === null || value === undefined) {
      return null;
    }
    sum = weight * sum + (1 - weight) * value;
    share = weight * share + (1 - weight);
    return sum / share;
  });
}
