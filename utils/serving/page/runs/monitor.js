// A run as it goes: progress, what it says of itself, curves, previews, log.

import { ApiError, get, listen, path } from "../lib/api.js";
import { announce, element, notice, setText, show } from "../lib/dom.js";
import { LossCurves } from "./loss_curves.js";
import { Previews } from "./previews.js";
import { RunLog } from "./log.js";
import { RunProgress, isActive, verdictWords } from "./states.js";

const MILLISECONDS_BETWEEN_METRICS = 2000;
const MOST_POINTS = 600;
// A browser keeps at most six connections to a server open; the others are for everything else.
// Runs beyond these are shown as often as the list of runs is asked for.
const MOST_STREAMS = 2;

let streams = 0; // of all monitors

export class RunMonitor {
  /** @param onRun (run) whenever it has changed */
  constructor(name, onRun) {
    this.name = name;
    this.onRun = onRun;
    this.progress = new RunProgress();
    this.error = notice();
    this.verdict = element("span", { class: "pill verdict" });
    this.sentence = element("span", {});
    this.saying = element("p", { class: "saying" }, this.verdict, this.sentence);
    this.curves = new LossCurves();
    this.previews = new Previews();
    this.log = new RunLog(name);
    this.node = element(
      "div",
      { class: "monitor" },
      this.progress.node,
      this.error.node,
      this.saying,
      element(
        "div",
        { class: "monitor-parts" },
        element("section", {}, element("h3", {}, "Loss"), this.curves.node),
        element("section", {}, element("h3", {}, "Previews"), this.previews.node),
      ),
      this.log.node,
    );
    this.onHidden = () => this.openStream();
    document.addEventListener("visibilitychange", this.onHidden);
    this.openStream();
  }

  openStream() {
    this.closeStream();
    if (!document.hidden && !this.isClosed && streams < MOST_STREAMS) {
      streams += 1;
      this.endStream = listen(path`/v1/runs/${this.name}/events`, {
        run: (run) => this.update(run),
        gone: () => this.close(),
      });
    }
  }

  closeStream() {
    if (this.endStream !== undefined) {
      this.endStream();
      this.endStream = undefined;
      streams -= 1;
    }
  }

  update(run) {
    const before = this.run?.state;
    this.run = run;
    this.progress.update(run);
    this.error.say(run.error);
    setText(this.verdict, verdictWords(run.verdict));
    show(this.verdict, this.verdict.textContent !== "");
    setText(this.sentence, run.sentence ?? "");
    show(this.saying, Boolean(run.sentence || run.verdict));
    this.previews.update(run.previews ?? []);
    this.log.update();
    if (before !== undefined && before !== run.state) {
      announce(`The run ${run.name} is ${run.state}.`);
    }
    this.askForMetrics();
    this.onRun?.(run);
  }

  /** Not more often than every two seconds, and once more for what came in between. */
  askForMetrics() {
    if (this.metricsTimer !== undefined || this.isClosed) {
      return;
    }
    const wait = this.metricsAt ? this.metricsAt + MILLISECONDS_BETWEEN_METRICS - Date.now() : 0;
    this.metricsTimer = setTimeout(() => this.readMetrics(), Math.max(wait, 0));
  }

  async readMetrics() {
    this.metricsAt = Date.now();
    try {
      const address = `${path`/v1/runs/${this.name}/metrics`}?max_points=${MOST_POINTS}`;
      this.curves.update(await get(address));
    } catch (error) {
      if (!(error instanceof ApiError)) {
        throw error;
      }
      // The next event asks again; a run that waits has none yet.
    } finally {
      this.metricsTimer = undefined;
    }
  }

  get isActive() {
    return this.run !== undefined && isActive(this.run);
  }

  close() {
    this.isClosed = true;
    clearTimeout(this.metricsTimer);
    document.removeEventListener("visibilitychange", this.onHidden);
    this.closeStream();
    this.curves.close();
  }
}
