// Train: a new training on one side, what runs and what waits on the other.

import { ApiError, Poll, get, post } from "../lib/api.js";
import { announce, element, notice } from "../lib/dom.js";
import { Field } from "../lib/fields.js";
import { fileName } from "../lib/format.js";
import { remember, remembered } from "../lib/storage.js";
import { isActive, isQueued } from "../runs/states.js";
import { DataPicker } from "./data_picker.js";
import { OptionForm } from "./option_form.js";
import { PlanPanel } from "./plan.js";
import { TrainingQueue } from "./queue.js";

const REMEMBERED = "train-form";
const SECONDS_WHILE_ACTIVE = 2;
const SECONDS_OTHERWISE = 6;
const MILLISECONDS_BETWEEN_PLANS = 1500;

export class TrainView {
  constructor(place, server) {
    this.server = server;
    this.runs = [];
    this.error = notice();
    this.name = new Field(
      "Name of the run",
      element("input", {
        autocomplete: "off",
        spellcheck: "false",
        required: true,
        maxlength: 200,
      }),
      { hint: "Its folder gets this name." },
    );
    this.name.control.addEventListener("input", () => {
      this.isNameTyped = true;
      this.changed();
    });
    this.data = new DataPicker((folder) => this.folderChosen(folder));
    this.plan = new PlanPanel(
      (signal) => this.askForPlan(signal),
      () => this.start(),
    );
    this.queue = new TrainingQueue(() => this.poll.now());
    this.options = element("div", {}, element("p", { class: "loading" }, "Loading …"));
    const step = (title, ...children) =>
      element("section", { class: "panel step" }, element("h3", {}, title), ...children);
    place.append(
      element(
        "div",
        { class: "train" },
        element("h1", { class: "unseen" }, "Train"),
        element(
          "section",
          { class: "train-now", "aria-label": "What is being trained" },
          this.queue.node,
        ),
        element(
          "form",
          { class: "train-new", novalidate: true, "aria-label": "A new training", onsubmit: stay },
          element("h2", {}, "New training"),
          this.error.node,
          step("1. Images", this.data.node),
          step("2. Settings", this.name.node, this.options),
          step("3. Plan and start", this.plan.node),
        ),
      ),
    );
    this.load();
    this.poll = new Poll(
      () => this.askForRuns(),
      () => (this.runs.some(isBusy) ? SECONDS_WHILE_ACTIVE : SECONDS_OTHERWISE),
    );
  }

  go() {}

  async load() {
    const before = remembered(REMEMBERED, {});
    try {
      this.form = new OptionForm(await get("/v1/training/options"), () => this.changed());
      this.options.replaceChildren(this.form.node);
      await this.data.load(before.dataset);
      this.form.setFolders(this.data.folders.map(({ name }) => name));
      if (before.run_name) {
        this.name.value = before.run_name; // before what changes the form, which remembers both
        this.isNameTyped = true;
      }
      this.form.setValues(before.options ?? {});
    } catch (error) {
      if (!(error instanceof ApiError)) {
        throw error;
      }
      this.error.say(error.message);
    }
  }

  async askForRuns() {
    const { runs } = await get("/v1/runs");
    if (this.poll?.isClosed) {
      return;
    }
    this.runs = runs;
    this.queue.update(runs);
    this.plan.setQueued(runs.some(isBusy));
    this.suggestName();
  }

  folderChosen() {
    this.suggestName();
    this.changed();
  }

  /**
   * "flowers", or "flowers-2" where there is a run or a weight of that name, since a run's weight
   * has its name; not in place of what was typed.
   */
  suggestName() {
    const folder = this.data.chosen;
    if (this.isNameTyped || folder === undefined || document.activeElement === this.name.control) {
      return;
    }
    const names = new Set([...this.runs, ...this.server.weights].map(({ name }) => name));
    const base = fileName(folder.name);
    let name = base;
    for (let number = 2; names.has(name); number += 1) {
      name = `${base}-${number}`;
    }
    if (this.name.value !== name) {
      this.name.value = name;
      this.plan.outdate();
    }
  }

  changed() {
    this.plan.outdate();
    const options = this.form?.values() ?? {};
    const name = this.isNameTyped ? this.name.value : "";
    remember(REMEMBERED, { dataset: this.data.chosen?.name, run_name: name, options });
  }

  request() {
    return {
      dataset: this.data.chosen.name,
      run_name: this.name.value.trim(),
      options: this.form.values(),
    };
  }

  /** Whether all fields are filled in; says what is missing. */
  check() {
    if (this.form === undefined || this.data.chosen === undefined) {
      this.plan.error.say("Choose a folder of images first.");
      return false;
    }
    const isNamed = this.name.check();
    if (!isNamed) {
      this.name.control.focus();
    }
    return isNamed && this.form.check();
  }

  async askForPlan(signal) {
    if (!this.check()) {
      return null;
    }
    return this.asked(() => this.planInTurn(signal));
  }

  /** The server makes one plan at a time; that of settings that were given up may not be done. */
  async planInTurn(signal) {
    for (;;) {
      try {
        return await post("/v1/training/plan", this.request(), signal);
      } catch (error) {
        if (error.code !== "is_planning") {
          throw error;
        }
      }
      await new Promise((resolve) => setTimeout(resolve, MILLISECONDS_BETWEEN_PLANS));
    }
  }

  async start() {
    if (!this.check()) {
      return;
    }
    const run = await this.asked(() => post("/v1/runs", this.request()));
    if (run === null) {
      return;
    }
    announce(isQueued(run) ? "The training is in the queue." : "The training starts.");
    this.isNameTyped = false;
    await this.poll.now();
    this.changed();
    this.plan.clear();
    this.queue.node.scrollIntoView({ block: "nearest" });
  }

  /** The answer; null where it is an error, whose sentence is shown beside its field. */
  async asked(call) {
    try {
      return await call();
    } catch (error) {
      if (!(error instanceof ApiError)) {
        throw error;
      }
      const isName = error.param === "run_name" || error.code === "run_exists";
      if (isName) {
        this.name.fault(error.message);
        this.name.control.focus();
      } else if (!this.form.showFault(error.param, error.message)) {
        this.plan.error.say(error.message);
      }
      return null;
    }
  }

  close() {
    this.poll.close();
    this.plan.close();
    this.queue.close();
  }
}

const isBusy = (run) => isActive(run) || isQueued(run);

function stay(event) {
  event.preventDefault(); // Enter in a field starts no training
}
