// The plan before the start: what train.py --plan prints. A training starts from a plan that fits
// the settings as they are.

import {
  announce,
  button,
  element,
  notice,
  onPress,
  setOff,
  setText,
  show,
  whileBusy,
} from "../lib/dom.js";

export class PlanPanel {
  /**
   * @param ask   async (signal) -> {text, warnings}, or null where the settings are faulty
   * @param start async () -> nothing
   */
  constructor(ask, start) {
    this.ask = ask;
    this.start = start;
    this.error = notice();
    this.text = element("pre", {
      class: "plan",
      tabindex: 0,
      role: "region",
      "aria-label": "The plan",
      hidden: true,
    });
    this.warnings = element("ul", { class: "warnings", hidden: true });
    this.state = element(
      "p",
      { class: "muted" },
      "The plan says what was found, what will be trained, and how long it takes.",
    );
    this.planButton = button({ class: "primary" }, "Show the plan");
    onPress(this.planButton, () => this.makePlan());
    this.startButton = button({ onclick: () => this.begin() }, "Start training");
    setOff(this.startButton, true);
    this.node = element(
      "div",
      {},
      this.state,
      this.error.node,
      this.warnings,
      this.text,
      element("div", { class: "actions" }, this.planButton, this.startButton),
    );
    this.isQueued = false;
  }

  /** Whether a new training has to wait. */
  setQueued(isQueued) {
    this.isQueued = isQueued;
    setText(this.startButton, isQueued ? "Add to the queue" : "Start training");
  }

  async makePlan() {
    this.error.say(null);
    this.abort?.abort();
    this.abort = new AbortController();
    this.setBusy(true);
    try {
      const plan = await this.ask(this.abort.signal);
      if (plan !== null) {
        this.show(plan);
      }
    } catch (error) {
      if (error.name !== "AbortError") {
        throw error;
      }
    } finally {
      this.setBusy(false);
    }
  }

  setBusy(isBusy) {
    this.planButton.classList.toggle("busy", isBusy);
    setText(this.planButton, isBusy ? "Reading images, timing a step …" : "Show the plan");
  }

  show({ text, warnings }) {
    setText(this.text, text.trim());
    this.warnings.replaceChildren(...warnings.map((warning) => element("li", {}, warning)));
    show(this.text, true);
    show(this.warnings, warnings.length > 0);
    setText(this.state, "This is what would be done.");
    this.setReady(true);
    announce("The plan is there.");
    this.startButton.focus();
  }

  /** The settings have changed: the plan is no longer theirs. */
  outdate() {
    this.abort?.abort();
    this.error.say(null);
    if (this.isReady) {
      setText(this.state, "The settings have changed since this plan.");
      this.setReady(false);
    }
  }

  setReady(isReady) {
    this.isReady = isReady;
    setOff(this.startButton, !isReady);
    this.startButton.classList.toggle("primary", isReady);
    this.planButton.classList.toggle("primary", !isReady);
    this.text.classList.toggle("outdated", !isReady);
  }

  async begin() {
    await whileBusy(this.startButton, this.start);
    setOff(this.startButton, !this.isReady);
  }

  /** After the start: the next training has a plan of its own. */
  clear() {
    this.setReady(false);
    show(this.text, false);
    show(this.warnings, false);
    setText(this.state, "Started. The next training has a plan of its own.");
  }

  close() {
    this.abort?.abort();
  }
}
