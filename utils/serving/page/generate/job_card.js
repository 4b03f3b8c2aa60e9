// One job: waiting, being generated, or its images.

import { button, element, icon, notice, onPress, setText, show } from "../lib/dom.js";
import { counted, duration, measure, size } from "../lib/format.js";
import { gallery, saveAll } from "./gallery.js";
import { isActive } from "./jobs.js";
import { LivePicture } from "./live_picture.js";

export const STATUS_WORDS = {
  queued: "waiting",
  generating: "generating",
  completed: "done",
  failed: "failed",
  cancelled: "cancelled",
};

/** "8 images of sneaker" */
export function jobTitle({ request }) {
  const what = counted(request.num_images, "image");
  return request.class_name ? `${what} of ${request.class_name}` : what;
}

/** How far an image is led towards its class, and away from what a worse network makes. */
export function guidance(request) {
  const parts = [`guidance ${measure(request.cfg_scale)}`];
  const guide = guideOf(request);
  if (guide !== null) {
    parts.push(`guide ${guide}`);
  }
  return parts.join(", ");
}

/** The worse network's part in it, in words; null where there is none. */
export function guideOf(request) {
  if (request.guide_scale === undefined || request.guide_scale === 1) {
    return null;
  }
  const told = request.guide_labels === false ? " without classes" : "";
  return `${measure(request.guide_scale)}${told}`;
}

/** How it is made, in a line. */
export function jobDetails({ request }) {
  const last = request.seed + request.num_images - 1;
  const seeds =
    request.num_images > 1 ? `seeds ${request.seed} to ${last}` : `seed ${request.seed}`;
  const parts = [
    request.weight,
    `${request.sample}, ${counted(request.sample_steps, "step")}`,
    guidance(request),
    size(request.image_size),
    seeds,
  ];
  if (request.upscale) {
    parts.push(`enlarged with ${request.upscale}`);
  }
  return parts.join(" · ");
}

export class JobCard {
  /** @param actions {cancel(id), use(settings), open(job, place)} */
  constructor(job, actions) {
    this.actions = actions;
    this.title = element("h3", { class: "one-line" });
    this.pill = element("span", { class: "pill" });
    this.details = element("p", { class: "details muted" });
    this.progress = element("progress", { max: 1, "aria-label": "Progress" });
    this.progressText = element("p", { class: "muted number" });
    this.bar = element("div", { class: "progress-row" }, this.progress, this.progressText);
    this.error = notice();
    this.live = new LivePicture();
    this.body = element("div", {});
    this.cancelButton = button({}, "Cancel");
    onPress(this.cancelButton, () => this.cancel());
    this.useButton = button(
      { class: "quiet", onclick: () => this.actions.use({ ...this.job.request }) },
      "Use settings",
    );
    this.saveText = element("span", {}, "Download all");
    this.saveButton = button({}, icon("download"), this.saveText);
    onPress(this.saveButton, () => this.save());
    this.node = element(
      "article",
      { class: "panel job" },
      element(
        "div",
        { class: "job-head" },
        element("div", { class: "job-title" }, this.title, this.pill),
        element("div", { class: "actions" }, this.useButton, this.saveButton, this.cancelButton),
      ),
      this.details,
      this.error.node,
      this.bar,
      this.live.node,
      this.body,
    );
    this.shownStatus = null;
    this.update(job);
  }

  update(job) {
    this.job = job;
    setText(this.title, jobTitle(job));
    this.title.title = jobTitle(job);
    setText(this.details, jobDetails(job));
    setText(this.pill, this.pillText(job));
    this.pill.className = `pill ${job.status}`;
    setText(this.cancelButton, job.status === "queued" ? "Remove" : "Cancel");
    show(this.cancelButton, isActive(job));
    show(this.saveButton, job.result !== null);
    show(this.useButton, !isActive(job));
    show(this.bar, job.status === "generating");
    this.progress.value = job.progress;
    setText(this.progressText, `step ${job.step} of ${job.steps}`);
    if (job.status !== this.shownStatus) {
      this.shownStatus = job.status;
      this.showBody();
    }
  }

  pillText(job) {
    if (job.status === "queued" && job.queue_position !== null) {
      return job.queue_position === 0 ? "next" : `place ${job.queue_position + 1} in the queue`;
    }
    if (job.status === "completed" && job.started !== null && job.finished !== null) {
      return duration(job.finished - job.started);
    }
    return STATUS_WORDS[job.status] ?? job.status;
  }

  showBody() {
    const { job } = this;
    this.error.say(job.error?.message ?? null);
    if (job.status !== "generating") {
      this.live.clear();
    }
    if (job.result !== null) {
      const open = (place) => this.actions.open(this.job, place);
      const onError = (sentence) => this.error.say(sentence);
      this.body.replaceChildren(gallery(job, { open, onError }));
    }
    this.node.classList.toggle("compact", job.result === null && job.status !== "generating");
  }

  preview(address) {
    if (this.job.status === "generating") {
      this.live.show(address);
    }
  }

  async cancel() {
    try {
      await this.actions.cancel(this.job.id);
    } catch (error) {
      this.error.say(error.message);
    }
  }

  async save() {
    this.error.say(null);
    try {
      await saveAll([this.job], (done, all) => setText(this.saveText, `${done} of ${all}`));
    } catch (error) {
      this.error.say(error.message);
    }
    setText(this.saveText, "Download all");
  }
}
