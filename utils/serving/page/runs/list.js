// All runs in a table; the curves of those that are ticked, in one chart.

import { Poll, get } from "../lib/api.js";
import { KeyedList, element, emptyState, setText, show } from "../lib/dom.js";
import { count, moment } from "../lib/format.js";
import { RunComparison } from "./comparison.js";
import { RunProgress, StatePill, isActive, isQueued, verdictWords } from "./states.js";

const MOST_COMPARED = 6; // as many colours as are told apart
const SECONDS_WHILE_ACTIVE = 2;
const SECONDS_OTHERWISE = 8;
const FILTER_FROM = 8; // runs

export class RunList {
  constructor() {
    this.chosen = [];
    this.runs = [];
    this.comparison = new RunComparison();
    this.filter = element("input", {
      type: "search",
      placeholder: "Find a run",
      "aria-label": "Find a run",
      oninput: () => this.showRuns(),
    });
    this.rows = element("tbody", {});
    const heads = [
      "Compare",
      "Run",
      "State",
      "Steps",
      "Is it done?",
      "Best step",
      "Data",
      "Started",
    ];
    this.table = element(
      "table",
      { class: "runs-table" },
      element("caption", { class: "unseen" }, "All runs, newest first"),
      element(
        "thead",
        {},
        element("tr", {}, ...heads.map((head) => element("th", { scope: "col" }, head))),
      ),
      this.rows,
    );
    this.parts = new KeyedList(
      this.rows,
      (run) => run.name,
      (run) => new RunRow(run, (isChosen) => this.choose(run.name, isChosen)),
    );
    this.empty = emptyState(
      "No runs yet",
      element("a", { href: "#train" }, "Train a network"),
      " on a folder of images, and it appears here.",
    );
    this.loading = element("p", { class: "loading" }, "Loading …");
    this.panel = element("div", { class: "panel flush" }, this.table);
    this.node = element(
      "div",
      { class: "runs" },
      element("div", { class: "results-head" }, element("h1", {}, "Runs"), this.filter),
      this.loading,
      this.empty,
      this.comparison.node,
      this.panel,
    );
    for (const part of [this.empty, this.panel, this.filter]) {
      show(part, false);
    }
    const isBusy = (run) => isActive(run) || isQueued(run);
    this.poll = new Poll(
      () => this.ask(),
      () => (this.runs.some(isBusy) ? SECONDS_WHILE_ACTIVE : SECONDS_OTHERWISE),
    );
  }

  async ask() {
    try {
      const { runs } = await get("/v1/runs");
      this.runs = runs;
    } catch (error) {
      setText(this.loading, error.message);
      throw error;
    }
    if (this.poll?.isClosed) {
      return;
    }
    show(this.loading, false);
    this.showRuns();
  }

  showRuns() {
    const { runs } = this;
    show(this.empty, runs.length === 0);
    show(this.panel, runs.length > 0);
    show(this.filter, runs.length >= FILTER_FROM);
    const wanted = this.filter.value.trim().toLowerCase();
    this.parts.update(runs.filter((run) => run.name.toLowerCase().includes(wanted)));
    this.showChosen();
  }

  /** #runs?with=a&with=b */
  go(query) {
    this.chosen = query.getAll("with").slice(0, MOST_COMPARED);
    this.showChosen();
  }

  choose(name, isChosen) {
    const others = this.chosen.filter((other) => other !== name);
    this.chosen = isChosen ? [...others, name] : others;
    const query = this.chosen.map((other) => `with=${encodeURIComponent(other)}`).join("&");
    history.replaceState(null, "", query === "" ? "#runs" : `#runs?${query}`);
    this.showChosen();
  }

  showChosen() {
    const byName = new Map(this.runs.map((run) => [run.name, run]));
    const known = this.chosen.filter((name) => byName.has(name)); // others were deleted
    const isFull = known.length >= MOST_COMPARED;
    for (const [name, row] of this.parts.parts) {
      row.showChosen(known.indexOf(name), isFull);
    }
    this.comparison.update(known.map((name) => byName.get(name)));
  }

  close() {
    this.poll.close();
    this.parts.close();
    this.comparison.close();
  }
}

class RunRow {
  constructor(run, onChoose) {
    this.box = element("input", {
      type: "checkbox",
      "aria-label": `Compare ${run.name}`,
      onchange: () => onChoose(this.box.checked),
    });
    this.swatch = element("span", { class: "swatch" });
    const link = element("a", { href: `#runs/${encodeURIComponent(run.name)}` }, run.name);
    this.pill = new StatePill();
    this.progress = new RunProgress();
    this.cells = {
      verdict: element("td", { "data-head": "Is it done?" }),
      best: element("td", { class: "number", "data-head": "Best step" }),
      dataset: element("td", { class: "long", "data-head": "Data" }),
      started: element("td", { class: "number", "data-head": "Started" }),
    };
    this.node = element(
      "tr",
      {},
      element("td", { class: "choose" }, this.box, this.swatch),
      element("th", { scope: "row", class: "long" }, link),
      element("td", {}, this.pill.node),
      element("td", { class: "steps" }, this.progress.node),
      ...Object.values(this.cells),
    );
  }

  update(run) {
    this.pill.update(run);
    this.progress.update(run);
    show(this.progress.bar, isActive(run));
    setText(this.cells.verdict, verdictWords(run.verdict));
    this.cells.verdict.title = run.sentence ?? "";
    setText(this.cells.best, run.best_step ? count(run.best_step) : "");
    setText(this.cells.dataset, run.dataset ?? "");
    setText(this.cells.started, run.started ? moment(run.started) : "");
  }

  showChosen(place, isFull) {
    const isChosen = place >= 0;
    this.box.checked = isChosen;
    this.box.disabled = isFull && !isChosen;
    this.swatch.className = isChosen ? `swatch curve-${place + 1}` : "swatch";
  }
}
