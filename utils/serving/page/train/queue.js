// What is being trained, in full; what waits, and what was interrupted, in a line each.

import { KeyedList, element, emptyState, show } from "../lib/dom.js";
import { RunActions } from "../runs/actions.js";
import { RunMonitor } from "../runs/monitor.js";
import { RunProgress, StatePill, isActive, isQueued } from "../runs/states.js";

// Runs that need somebody: they end neither by themselves nor well.
const UNFINISHED = ["interrupted", "failed", "stopped"];
const MOST_UNFINISHED = 5;

export class TrainingQueue {
  constructor(onChange) {
    const row = (run) => new RunLine(run, onChange);
    this.nowPlace = element("div", { class: "now" });
    this.now = new KeyedList(this.nowPlace, nameOf, (run) => new CurrentRun(run, onChange));
    this.waiting = new Lines("Waiting", row);
    this.unfinished = new Lines("Not finished", row);
    this.empty = emptyState(
      "Nothing is being trained",
      "Choose images and settings, look at the plan, and start. A training goes on when this page " +
        "is closed, and when the server restarts.",
    );
    this.node = element(
      "div",
      { class: "queue" },
      element("h2", {}, "Now"),
      this.empty,
      this.nowPlace,
      this.waiting.node,
      this.unfinished.node,
    );
    show(this.empty, false);
  }

  update(runs) {
    const active = runs.filter(isActive);
    const queued = runs.filter(isQueued);
    queued.sort((a, b) => a.queue_position - b.queue_position);
    const unfinished = runs.filter((run) => UNFINISHED.includes(run.state) && run.can_resume);
    this.now.update(active);
    this.waiting.update(queued);
    this.unfinished.update(unfinished.slice(0, MOST_UNFINISHED));
    show(this.empty, active.length === 0);
  }

  close() {
    this.now.close();
  }
}

class Lines {
  constructor(title, create) {
    this.list = element("ul", { class: "rows" });
    this.parts = new KeyedList(this.list, nameOf, create);
    this.node = element(
      "section",
      { class: "panel", hidden: true },
      element("h3", {}, title),
      this.list,
    );
  }

  update(runs) {
    this.parts.update(runs);
    show(this.node, runs.length > 0);
  }
}

class RunLine {
  constructor(run, onChange) {
    this.pill = new StatePill();
    this.progress = new RunProgress();
    this.actions = new RunActions(onChange);
    this.reason = element("p", { class: "muted long" });
    this.node = element(
      "li",
      { class: "row" },
      element(
        "div",
        { class: "row-text" },
        element("p", { class: "row-title" }, linkTo(run), this.pill.node),
        this.reason,
        this.progress.text,
        this.actions.error.node,
      ),
      this.actions.node,
    );
  }

  update(run) {
    this.pill.update(run);
    this.progress.update(run);
    this.actions.update(run);
    this.reason.textContent = run.error ?? "";
    show(this.reason, Boolean(run.error));
  }
}

class CurrentRun {
  constructor(run, onChange) {
    this.pill = new StatePill();
    this.actions = new RunActions(onChange);
    this.monitor = new RunMonitor(run.name, (newer) => this.showState(newer));
    this.node = element(
      "article",
      { class: "panel" },
      element(
        "div",
        { class: "job-head" },
        element("div", { class: "job-title" }, element("h3", {}, linkTo(run)), this.pill.node),
        this.actions.node,
      ),
      this.actions.error.node,
      this.monitor.node,
    );
    this.monitor.update(run);
  }

  update(run) {
    this.monitor.update(run);
  }

  showState(run) {
    this.pill.update(run);
    this.actions.update(run);
  }

  close() {
    this.monitor.close();
  }
}

function linkTo(run) {
  return element("a", { href: `#runs/${encodeURIComponent(run.name)}`, class: "long" }, run.name);
}

function nameOf(run) {
  return run.name;
}
