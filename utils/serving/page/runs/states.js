// What state a run is in, in words, and what can be done with it.

import { element, setText, show } from "../lib/dom.js";
import { count, duration } from "../lib/format.js";

const ACTIVE = ["starting", "running", "stopping"];

export const isActive = (run) => ACTIVE.includes(run.state);
export const isQueued = (run) => run.state === "queued";

/** A pill with the state, which follows the run. */
export class StatePill {
  constructor() {
    this.node = element("span", { class: "pill" });
  }

  update(run) {
    setText(this.node, stateWords(run));
    this.node.className = `pill ${run.state}`;
  }
}

export function stateWords(run) {
  if (isQueued(run) && run.queue_position !== null) {
    return run.queue_position === 0
      ? "next in the queue"
      : `place ${run.queue_position + 1} in the queue`;
  }
  return run.state;
}

/** "step 1,200 of 3,480, 4 min left" */
export function progressWords(run) {
  if (!run.total_steps) {
    return run.state === "starting" ? "reading the images …" : "";
  }
  const steps = `step ${count(run.step ?? 0)} of ${count(run.total_steps)}`;
  const isKnown = isActive(run) && run.seconds_left !== null && run.seconds_left !== undefined;
  return isKnown ? `${steps}, ${duration(run.seconds_left)} left` : steps;
}

/** A bar and its words; the bar is hidden while nothing is known. */
export class RunProgress {
  constructor() {
    this.bar = element("progress", { max: 1, "aria-label": "Progress of the training" });
    this.text = element("p", { class: "muted number" });
    this.node = element("div", { class: "progress-row" }, this.bar, this.text);
  }

  update(run) {
    setText(this.text, progressWords(run));
    show(this.bar, !isQueued(run) && run.state !== "finished");
    if (run.state === "starting" && !run.progress) {
      this.bar.removeAttribute("value"); // under way, nobody knows how far
    } else {
      this.bar.value = run.progress ?? 0;
    }
    show(this.node, this.text.textContent !== "" || !this.bar.hidden);
  }
}

/** "is it done?" in a word or two, from the verdict's kind */
export function verdictWords(kind) {
  const words = { worse: "became worse", "not done": "not done yet", unknown: "not known yet" };
  return words[kind] ?? kind ?? "";
}
