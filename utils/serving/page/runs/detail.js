// One run: how it went, its checkpoints, evaluations and options.

import { NO_ANSWER, get, path } from "../lib/api.js";
import { element, icon, notice, setText, show } from "../lib/dom.js";
import { moment } from "../lib/format.js";
import { RunActions } from "./actions.js";
import { Checkpoints } from "./checkpoints.js";
import { Evaluations } from "./evaluations.js";
import { RunMonitor } from "./monitor.js";
import { StatePill } from "./states.js";

export class RunDetail {
  constructor(name, server) {
    this.name = name;
    this.pill = new StatePill();
    this.about = element("p", { class: "details muted" });
    this.actions = new RunActions(() => this.ask(), { isDetailed: true });
    this.monitor = new RunMonitor(name, (run) => this.update(run));
    this.checkpoints = new Checkpoints(name, server);
    this.evaluations = new Evaluations(name, () => this.ask());
    this.options = element("dl", { class: "facts" });
    this.missing = notice();
    this.body = element(
      "div",
      { hidden: true, class: "detail-body" },
      element(
        "section",
        { class: "panel" },
        element("h2", { class: "unseen" }, "Training"),
        this.monitor.node,
      ),
      element(
        "div",
        { class: "halves" },
        element(
          "section",
          { class: "panel" },
          element("h2", {}, "Checkpoints"),
          this.checkpoints.node,
        ),
        element(
          "section",
          { class: "panel" },
          element("h2", {}, "Evaluation"),
          this.evaluations.node,
        ),
      ),
      element(
        "details",
        { class: "panel fold" },
        element("summary", {}, "Options of this run"),
        this.options,
      ),
    );
    this.node = element(
      "div",
      { class: "detail" },
      element("a", { href: "#runs", class: "back" }, icon("back"), "All runs"),
      element(
        "div",
        { class: "detail-head" },
        element("h1", { class: "long" }, name),
        this.pill.node,
        this.actions.node,
      ),
      this.about,
      this.actions.error.node,
      this.missing.node,
      this.body,
    );
    show(this.actions.node, false);
    show(this.pill.node, false);
    this.ask();
  }

  async ask() {
    try {
      const run = await get(path`/v1/runs/${this.name}`);
      this.missing.say(null);
      this.showOptions(run.options ?? {});
      this.monitor.update(run);
    } catch (error) {
      this.missing.say(error.message);
      if (error.status !== NO_ANSWER) {
        this.monitor.close(); // there is no such run: nothing will come
      }
    }
  }

  update(run) {
    show(this.body, true);
    show(this.pill.node, true);
    this.pill.update(run);
    this.actions.update(run);
    this.checkpoints.update(run);
    this.evaluations.update(run);
    const parts = [run.kind, run.dataset ? `trained on ${run.dataset}` : null];
    parts.push(run.started ? `started ${moment(run.started)}` : null);
    setText(this.about, parts.filter(Boolean).join(" · "));
  }

  showOptions(options) {
    this.options.replaceChildren(
      ...Object.entries(options).map(([name, value]) =>
        element(
          "div",
          {},
          element("dt", {}, name),
          element("dd", {}, typeof value === "string" ? value : JSON.stringify(value)),
        ),
      ),
    );
  }

  close() {
    this.monitor.close();
  }
}
