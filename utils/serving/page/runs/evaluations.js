// Measuring a run's samples against its training images, by tools/evaluate.py.

import { path, post } from "../lib/api.js";
import { announce, element, notice, setText, show } from "../lib/dom.js";
import { Field, numberInput } from "../lib/fields.js";
import { measure, words } from "../lib/format.js";

export class Evaluations {
  constructor(name, onChange) {
    this.name = name;
    this.onChange = onChange;
    this.count = new Field("Images", numberInput({ min: 1, step: 1, value: 500, required: true }));
    this.steps = new Field("Steps", numberInput({ min: 1, step: 1, value: 50, required: true }));
    this.submitButton = element("button", {}, "Evaluate");
    this.error = notice();
    this.state = element("p", { class: "notice", hidden: true });
    this.results = element("dl", { class: "facts" });
    this.about = element(
      "p",
      { class: "muted" },
      "Generates images and measures how close they come to the images trained on.",
    );
    this.node = element(
      "div",
      {},
      this.about,
      this.results,
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
    this.submitButton.disabled = isRunning;
    const sentence = isRunning ? "The evaluation is running …" : (evaluation?.error ?? "");
    setText(this.state, sentence);
    show(this.state, sentence !== "");
    const result = evaluation?.result ?? null;
    show(this.about, result === null);
    if (result !== null) {
      this.showResult(result);
    }
  }

  /** Figures of the result that are plain numbers or texts. */
  showResult(result) {
    const figures = Object.entries(result).filter(([, value]) =>
      ["number", "string"].includes(typeof value),
    );
    this.results.replaceChildren(
      ...figures.map(([name, value]) =>
        element(
          "div",
          {},
          element("dt", {}, words(name)),
          element("dd", {}, typeof value === "number" ? measure(value) : value),
        ),
      ),
    );
  }

  async submit(event) {
    event.preventDefault();
    this.error.say(null);
    const fields = [this.count, this.steps];
    const faulty = fields.filter((field) => !field.check());
    if (faulty.length > 0) {
      faulty[0].control.focus();
      return;
    }
    this.submitButton.disabled = true;
    try {
      const request = { num_images: this.count.number, sample_steps: this.steps.number };
      await post(path`/v1/runs/${this.name}/evaluate`, request);
      announce("The evaluation has begun.");
    } catch (error) {
      this.error.say(error.message);
    }
    this.submitButton.disabled = false;
    this.onChange();
  }
}
