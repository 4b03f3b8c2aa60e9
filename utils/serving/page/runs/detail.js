// One run: how it went, its checkpoints, evaluations and options.

import { get, path, Poll } from "../lib/api.js";
import { element, icon, notice, setText, show } from "../lib/dom.js";
import { moment } from "../lib/format.js";
import { RunActions } from "./actions.js";
import { Checkpoints } from "./checkpoints.js";
import { Evaluations } from "./evaluations.js";
import { RunMonitor } from "./monitor.js";
import { isActive, isQueued, StatePill } from "./states.js";

const NOT_FOUND = 404;
// The stream of events says what has changed; asking finds out that nobody answers, and when time
// alone has changed something: a run that does not end can be killed after a while.
const SECONDS_WHILE_ACTIVE = 5;
const SECONDS_OTHERWISE = 30;

export class RunDetail {
  constructor(name, server) {
    this.name = name;
    this.pill = new StatePill();
    this.about = element("p", { class: "details muted" });
    this.actions = new RunActions(() => this.poll.now(), { isDetailed: true });
    this.monitor = new RunMonitor(name, (run) => this.update(run));
    this.checkpoints = new Checkpoints(name, server);
    this.evaluations = new Evaluations(name, () => this.poll.now());
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
    this.run = null;
    this.poll = new Poll(
      () => this.ask(),
      () => (this.isBusy() ? SECONDS_WHILE_ACTIVE : SECONDS_OTHERWISE),
    );
  }

  isBusy() {
    return this.run !== null && (isActive(this.run) || isQueued(this.run));
  }

  async ask() {
    try {
      const run = await get(path`/v1/runs/${this.name}`);
      this.missing.say(null);
      this.showOptions(run.options ?? {});
      this.monitor.update(run);
    } catch (error) {
      this.missing.say(error.message);
      if (error.status === NOT_FOUND) {
        this.monitor.close(); // nothing will come
      }
      throw error; // it is asked again, later each time
    }
  }

  update(newer) {
    const run = { ...this.run, ...newer }; // what a stream says lacks the options
    this.run = run;
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
    const text = JSON.stringify(options);
    if (text === this.shownOptions) {
      return; // what somebody has selected there stays so
    }
    this.shownOptions = text;
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
    this.poll.close();
    this.monitor.close();
  }
}
