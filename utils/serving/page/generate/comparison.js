// Jobs that differ in the sampler alone, one below the other: each column is a seed.

import { button, element, icon, notice, onPress, setText, show } from "../lib/dom.js";
import { counted, duration } from "../lib/format.js";
import { picture, imageTitle, saveAll } from "./gallery.js";
import { STATUS_WORDS, guidance, jobTitle } from "./job_card.js";
import { isActive } from "./jobs.js";
import { LivePicture } from "./live_picture.js";

export class ComparisonCard {
  /** @param actions {cancel(id), use(settings), open(job, place)} */
  constructor(group, actions) {
    this.actions = actions;
    this.rows = new Map(); // job's id -> Row
    this.title = element("h3", { class: "one-line" });
    this.details = element("p", { class: "details muted" });
    this.error = notice();
    this.cancelButton = button({}, "Cancel");
    onPress(this.cancelButton, () => this.cancel());
    this.useButton = button({ class: "quiet", onclick: () => this.use() }, "Use settings");
    this.saveText = element("span", {}, "Download all");
    this.saveButton = button({}, icon("download"), this.saveText);
    onPress(this.saveButton, () => this.save());
    this.list = element("div", { class: "comparison" });
    this.node = element(
      "article",
      { class: "panel job" },
      element(
        "div",
        { class: "job-head" },
        element(
          "div",
          { class: "job-title" },
          this.title,
          element("span", { class: "pill" }, "comparison"),
        ),
        element("div", { class: "actions" }, this.useButton, this.saveButton, this.cancelButton),
      ),
      this.details,
      this.error.node,
      this.list,
    );
    this.update(group);
  }

  update({ jobs }) {
    this.jobs = jobs;
    const [first] = jobs;
    setText(this.title, jobTitle(first));
    const { request } = first;
    const samplers = jobs.map((job) => job.request.sample).join(", ");
    setText(
      this.details,
      `${request.weight} · ${samplers} at equal seeds · ` +
        `${counted(request.sample_steps, "step")} · ${guidance(request)}`,
    );
    for (const job of jobs) {
      if (!this.rows.has(job.id)) {
        const row = new Row(this.actions.open);
        this.rows.set(job.id, row);
        this.list.append(row.node);
      }
      this.rows.get(job.id).update(job);
    }
    show(this.cancelButton, jobs.some(isActive));
    show(this.useButton, !jobs.some(isActive));
    show(
      this.saveButton,
      jobs.every((job) => job.result !== null),
    );
  }

  preview(id, address) {
    this.rows.get(id)?.preview(address);
  }

  use() {
    this.actions.use({ ...this.jobs[0].request });
  }

  async cancel() {
    try {
      await Promise.all(this.jobs.filter(isActive).map((job) => this.actions.cancel(job.id)));
    } catch (error) {
      this.error.say(error.message);
    }
  }

  async save() {
    try {
      await saveAll(this.jobs, (done, all) => setText(this.saveText, `${done} of ${all}`));
    } catch (error) {
      this.error.say(error.message);
    }
    setText(this.saveText, "Download all");
  }
}

/** A sampler's images, or how far they are. */
class Row {
  constructor(open) {
    this.open = open;
    this.sampler = element("h4", {});
    this.state = element("p", { class: "muted number" });
    this.images = element("ul", { class: "comparison-images" });
    this.live = new LivePicture();
    this.node = element(
      "section",
      { class: "comparison-row" },
      element("div", { class: "comparison-head" }, this.sampler, this.state),
      element("div", { class: "comparison-place" }, this.images, this.live.node),
    );
    this.isDone = false;
  }

  update(job) {
    this.job = job;
    setText(this.sampler, job.request.sample);
    setText(this.state, stateOf(job));
    if (job.status !== "generating") {
      this.live.clear();
    }
    if (job.result !== null && !this.isDone) {
      this.isDone = true;
      this.images.replaceChildren(
        ...job.result.images.map((image, place) => this.tile(image, place)),
      );
    }
  }

  tile(image, place) {
    const title = `${this.job.request.sample}, ${imageTitle(image)}`;
    const open = button(
      { class: "tile-open", title, onclick: () => this.open(this.job, place) },
      picture(image.url, title, { loading: "lazy" }),
    );
    const seed = element("p", { class: "tile-text muted number" }, String(image.seed));
    return element("li", { class: "tile" }, open, seed);
  }

  preview(address) {
    if (this.job.status === "generating") {
      this.live.show(address);
    }
  }
}

function stateOf(job) {
  if (job.status === "generating") {
    return `step ${job.step} of ${job.steps}`;
  }
  if (job.status === "completed" && job.started !== null && job.finished !== null) {
    return duration(job.finished - job.started);
  }
  return job.error?.message ?? STATUS_WORDS[job.status];
}
