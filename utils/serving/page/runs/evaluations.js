// Measuring a run's samples against its training images, by tools/evaluate.py.

import { path, post } from "../lib/api.js";
import { announce, element, notice, setOff, setText, show, whileBusy } from "../lib/dom.js";
import { Field, numberInput } from "../lib/fields.js";
import { counted, measure, words } from "../lib/format.js";

const FIGURES = {
  n: "images compared",
  n_real: "real images",
  kid: "KID",
  kid_se: "KID, standard error",
  fd: "Fréchet distance",
};

export class Evaluations {
  constructor(name, onChange) {
    this.name = name;
    this.onChange = onChange;
    this.count = new Field(
      "Images",
      numberInput({ min: 100, step: 1, value: 1000, required: true }),
    );
    this.steps = new Field("Steps", numberInput({ min: 1, step: 1, value: 50, required: true }));
    this.submitButton = element("button", {}, "Evaluate");
    this.error = notice();
    this.state = element("p", { class: "notice", hidden: true });
    this.caption = element("caption", { class: "muted" });
    this.rows = element("tbody", {});
    const heads = ["Figure", "Samples", "Real against real"];
    this.table = element(
      "table",
      { class: "figures", hidden: true },
      this.caption,
      element(
        "thead",
        {},
        element("tr", {}, ...heads.map((head) => element("th", { scope: "col" }, head))),
      ),
      this.rows,
    );
    this.about = element(
      "p",
      { class: "muted" },
      "Generates images and measures how close they come to the images trained on.",
    );
    this.node = element(
      "div",
      {},
      this.about,
      this.table,
      this.state,
      this.error.node,
      element(
        "form",
        { class: "inline-form", novalidate: true, onsubmit: (event) => this.submit(event) },
        this.count.node,
        this.steps.node,
        this.submitButton,
      ),
    );
  }

  update(run) {
    const evaluation = run.evaluation ?? null;
    const isRunning = evaluation?.state === "running";
    setOff(this.submitButton, isRunning);
    const sentence = isRunning ? "The evaluation is running …" : (evaluation?.error ?? "");
    setText(this.state, sentence);
    show(this.state, sentence !== "");
    const figures = evaluation?.figures ?? null;
    show(this.about, figures === null);
    show(this.table, figures !== null);
    if (figures !== null) {
      this.showFigures(evaluation);
    }
  }

  /** Each figure, and its floor: what two halves of the real images have. */
  showFigures({ file, num_images: images, sample_steps: steps, figures, floor }) {
    const about = `${counted(images, "image")} of ${file}, ${counted(steps, "step")}`;
    setText(this.caption, about);
    this.rows.replaceChildren(
      ...Object.entries(figures).map(([name, value]) =>
        element(
          "tr",
          {},
          element("th", { scope: "row" }, FIGURES[name] ?? words(name)),
          element("td", { class: "number" }, measure(value)),
          element("td", { class: "number muted" }, measure(floor?.[name])),
        ),
      ),
    );
  }

  submit(event) {
    event.preventDefault();
    this.error.say(null);
    const fields = [this.count, this.steps];
    const faulty = fields.filter((field) => !field.check());
    if (faulty.length > 0) {
      faulty[0].control.focus();
      return;
    }
    whileBusy(this.submitButton, () => this.begin());
  }

  async begin() {
    try {
      const request = { num_images: this.count.number, sample_steps: this.steps.number };
      await post(path`/v1/runs/${this.name}/evaluate`, request);
      announce("The evaluation has begun.");
    } catch (error) {
      this.error.say(error.message);
    }
    await this.onChange();
  }
}
