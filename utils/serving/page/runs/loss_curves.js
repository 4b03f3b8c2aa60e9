// The loss of one run: of each step, smoothed, and on held-out images, with the best one marked.

import { element, newId, setText, show } from "../lib/dom.js";
import { checkbox } from "../lib/fields.js";
import { count, measure } from "../lib/format.js";
import { remember, remembered } from "../lib/storage.js";
import { Chart, smoothed } from "./chart.js";

const SMOOTHING = 0.9;

export class LossCurves {
  constructor() {
    this.chart = new Chart();
    this.weight = remembered("smoothing", SMOOTHING);
    this.isLog = remembered("log-scale", false);
    this.chart.isLog = this.isLog;
    const id = newId("smoothing");
    this.slider = element("input", {
      id,
      type: "range",
      min: 0,
      max: 0.99,
      step: 0.01,
      value: this.weight,
      oninput: () => this.smooth(),
    });
    const log = checkbox("log scale", {
      checked: this.isLog,
      onchange: () => this.setLog(log.box),
    });
    this.tools = element(
      "div",
      { class: "chart-tools" },
      element("label", { for: id }, "smoothing"),
      this.slider,
      log.node,
    );
    this.summary = element("p", { class: "muted chart-summary" });
    this.waiting = element("p", { class: "muted chart-waiting" }, "The first losses come soon.");
    this.node = element(
      "div",
      { class: "chart" },
      this.waiting,
      this.chart.node,
      this.summary,
      this.tools,
    );
    this.showEmpty(true);
  }

  showEmpty(isEmpty) {
    show(this.waiting, isEmpty);
    show(this.chart.node, !isEmpty);
    show(this.summary, !isEmpty);
    show(this.tools, !isEmpty);
  }

  smooth() {
    this.weight = Number(this.slider.value);
    remember("smoothing", this.weight);
    this.draw();
  }

  setLog(box) {
    this.isLog = box.checked;
    remember("log-scale", this.isLog);
    this.chart.setLog(this.isLog);
  }

  /** @param metrics the answer of /v1/runs/NAME/metrics */
  update(metrics) {
    this.metrics = metrics;
    this.draw();
  }

  draw() {
    const { columns, evaluations } = this.metrics ?? { columns: {}, evaluations: [] };
    const steps = columns.step ?? [];
    this.showEmpty(steps.length === 0);
    if (steps.length === 0) {
      return;
    }
    const smooth = smoothed(columns.loss, this.weight);
    const lines = [
      { label: "loss", steps, values: columns.loss, color: "--curve-faint", width: 1 },
      { label: "smoothed", steps, values: smooth, color: "--curve-1", width: 2 },
    ];
    const measured = evaluations.filter((evaluation) => evaluation.held_out_loss !== null);
    if (measured.length > 0) {
      const at = measured.map((evaluation) => evaluation.step);
      lines.push({
        label: "held-out",
        steps: at,
        values: measured.map((evaluation) => evaluation.held_out_loss),
        color: "--curve-2",
        width: 2,
        points: true,
      });
      lines.push({
        label: "training",
        steps: at,
        values: measured.map((evaluation) => evaluation.training_loss),
        color: "--curve-3",
        width: 1.5,
        dash: [6, 4],
      });
    }
    const best = measured.find((evaluation) => evaluation.is_best);
    const marks = best ? [{ step: best.step, text: "best", color: "--curve-2" }] : [];
    const summary = summaryOf(steps, smooth, measured, best);
    setText(this.summary, summary);
    this.chart.update(lines, marks, `Loss over ${count(steps.at(-1))} steps. ${summary}`);
  }

  close() {
    this.chart.close();
  }
}

function summaryOf(steps, smooth, measured, best) {
  const parts = [`Loss ${measure(smooth.at(-1))} at step ${count(steps.at(-1))}`];
  if (measured.length > 0) {
    parts.push(`${measure(measured.at(-1).held_out_loss)} on held-out images`);
  }
  if (best !== undefined) {
    parts.push(`best ${measure(best.held_out_loss)} at step ${count(best.step)}`);
  }
  return `${parts.join(", ")}.`;
}
