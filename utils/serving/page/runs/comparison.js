// Curves of several runs in one chart, and their newest previews side by side.

import { ApiError, get, path } from "../lib/api.js";
import { KeyedList, element, newId, notice, setText, show } from "../lib/dom.js";
import { checkbox, selectInput, setChoices } from "../lib/fields.js";
import { count, measure, words } from "../lib/format.js";
import { picture } from "../generate/gallery.js";
import { Chart, smoothed } from "./chart.js";
import { isActive } from "./states.js";

const HELD_OUT = "held_out_loss";
const NO_CURVES = ["step", "epoch"];
const SMOOTHING = 0.9;
const MOST_POINTS = 400;

export class RunComparison {
  constructor() {
    this.metrics = new Map(); // name -> {step, answer}: read again when the run has gone on
    this.runs = [];
    this.chart = new Chart();
    const id = newId("curve");
    this.curve = selectInput(["loss", HELD_OUT].map(choiceOf), { id, onchange: () => this.draw() });
    const log = checkbox("log scale", { onchange: () => this.chart.setLog(log.box.checked) });
    this.error = notice();
    this.summary = element("p", { class: "muted chart-summary" });
    this.samples = element("ul", { class: "compared-previews" });
    this.parts = new KeyedList(this.samples, (run) => run.name, comparedPreview);
    this.node = element(
      "section",
      { class: "panel compared", hidden: true, "aria-label": "Comparison of runs" },
      element(
        "div",
        { class: "chart-tools" },
        element("label", { for: id }, "curve"),
        this.curve,
        log.node,
      ),
      this.error.node,
      this.chart.node,
      this.summary,
      this.samples,
    );
  }

  update(runs) {
    this.runs = runs;
    show(this.node, runs.length > 0);
    this.parts.update(runs.filter((run) => (run.previews ?? []).length > 0));
    for (const run of runs) {
      this.read(run);
    }
    this.draw();
  }

  async read(run) {
    const known = this.metrics.get(run.name);
    if (known !== undefined && (known.step === run.step || known.isRead === false)) {
      return;
    }
    this.metrics.set(run.name, { ...known, step: run.step, isRead: false });
    try {
      const address = `${path`/v1/runs/${run.name}/metrics`}?max_points=${MOST_POINTS}`;
      const answer = await get(address);
      this.metrics.set(run.name, { step: run.step, isRead: true, answer });
    } catch (error) {
      if (!(error instanceof ApiError)) {
        throw error;
      }
      this.metrics.set(run.name, { step: run.step, isRead: true });
      if (!isActive(run)) {
        this.error.say(error.message);
      }
    }
    this.draw();
  }

  draw() {
    const read = this.runs
      .map((run, place) => ({ run, place, answer: this.metrics.get(run.name)?.answer }))
      .filter(({ answer }) => answer !== undefined);
    if (read.length === 0) {
      return;
    }
    const names = new Set(read.flatMap(({ answer }) => Object.keys(answer.columns)));
    const others = [...names].filter((name) => isCurve(name));
    const choices = ["loss", HELD_OUT, ...others];
    if (this.curve.options.length !== choices.length) {
      setChoices(this.curve, choices.map(choiceOf));
    }
    const curve = this.curve.value;
    const lines = read.map(({ run, place, answer }) => ({
      label: run.name,
      color: `--curve-${place + 1}`,
      width: 2,
      ...pointsOf(answer, curve),
    }));
    const summary = lines.map(({ label, values }) => {
      const last = values.findLast((value) => value !== null);
      return `${label} ${measure(last)}`;
    });
    setText(this.summary, `${words(curve)} at the end: ${summary.join(", ")}.`);
    this.chart.update(lines, [], `${words(curve)} of ${count(read.length)} runs.`);
  }

  close() {
    this.chart.close();
  }
}

/** Columns that are neither chosen anyway nor one of the many of single time steps. */
function isCurve(name) {
  const isOfTimeStep = /_t\d+$/.test(name);
  return !isOfTimeStep && !NO_CURVES.includes(name) && name !== "loss" && name !== HELD_OUT;
}

function choiceOf(name) {
  return { value: name, text: name === "loss" ? "loss, smoothed" : words(name) };
}

function pointsOf({ columns, evaluations }, curve) {
  if (curve === HELD_OUT) {
    const measured = evaluations.filter((evaluation) => evaluation.held_out_loss !== null);
    return {
      steps: measured.map((evaluation) => evaluation.step),
      values: measured.map((evaluation) => evaluation.held_out_loss),
      points: true,
    };
  }
  const values = columns[curve] ?? [];
  const shown = curve === "loss" ? smoothed(values, SMOOTHING) : values;
  return { steps: values.length > 0 ? columns.step : [], values: shown };
}

function comparedPreview(run) {
  const name = element("p", { class: "one-line", title: run.name }, run.name);
  const epoch = element("p", { class: "muted number" });
  const place = element("div", {});
  let address = null;
  return {
    node: element("li", {}, name, place, epoch),
    update({ previews }) {
      const last = previews.at(-1);
      setText(epoch, `epoch ${count(last.epoch)}`);
      if (last.url !== address) {
        address = last.url;
        place.replaceChildren(picture(address, `Samples of ${run.name}`, { loading: "lazy" }));
      }
    },
  };
}
