// One image, large, with what made it; the arrow keys go to the next.

import { button, element, icon, notice, onPress, setOff, show } from "../lib/dom.js";
import { measure, size } from "../lib/format.js";
import { imageTitle, picture, saveImage } from "./gallery.js";
import { guideOf } from "./job_card.js";

export class Viewer {
  /** @param onUse (settings) puts an image's settings into the form */
  constructor(onUse) {
    this.onUse = onUse;
    this.stage = element("div", { class: "stage" });
    this.title = element("h2", { id: "viewer-title" });
    this.facts = element("dl", { class: "facts" });
    this.download = button({ class: "primary" }, icon("download"), "Download");
    onPress(this.download, () => this.save());
    this.error = notice();
    this.mask = element("a", { class: "button", download: "" }, icon("download"), "Its mask");
    this.use = button({ onclick: () => this.useSettings() }, "Use these settings");
    this.previous = this.turnButton("left", "Previous image", -1);
    this.next = this.turnButton("right", "Next image", 1);
    const close = button(
      { class: "quiet icon-only", onclick: () => this.node.close() },
      icon("close"),
    );
    close.setAttribute("aria-label", "Close");
    this.node = element(
      "dialog",
      { class: "viewer", "aria-labelledby": "viewer-title" },
      element("div", { class: "viewer-picture" }, this.previous, this.stage, this.next),
      element(
        "div",
        { class: "viewer-side" },
        element("div", { class: "viewer-head" }, this.title, close),
        this.facts,
        this.error.node,
        element("div", { class: "actions" }, this.download, this.mask, this.use),
      ),
    );
    this.node.addEventListener("keydown", (event) => this.key(event));
    this.node.addEventListener("click", (event) => {
      if (event.target === this.node) {
        this.node.close(); // a click beside it
      }
    });
  }

  turnButton(symbol, label, by) {
    const turn = button({ class: "quiet icon-only", onclick: () => this.turn(by) }, icon(symbol));
    turn.setAttribute("aria-label", label);
    return turn;
  }

  key(event) {
    const turns = { ArrowLeft: -1, ArrowRight: 1 };
    if (Object.hasOwn(turns, event.key)) {
      event.preventDefault();
      this.turn(turns[event.key]);
    }
  }

  open(job, place) {
    this.job = job;
    this.place = place;
    this.showPlace();
    this.node.showModal();
  }

  turn(by) {
    const images = this.job.result.images;
    const place = this.place + by;
    if (place >= 0 && place < images.length) {
      this.place = place;
      this.showPlace();
    }
  }

  showPlace() {
    const { job, place } = this;
    const images = job.result.images;
    const image = images[place];
    const title = imageTitle(image);
    this.title.textContent = image.class ?? `Seed ${image.seed}`;
    this.stage.replaceChildren(picture(image.url, title));
    show(this.mask, Boolean(image.mask_url));
    this.mask.href = image.mask_url ?? "";
    setOff(this.previous, place === 0);
    setOff(this.next, place === images.length - 1);
    this.error.say(null);
    const { request } = job;
    const facts = {
      seed: image.seed,
      weight: request.weight,
      sampler: `${request.sample}, ${request.sample_steps} steps`,
      guidance: measure(request.cfg_scale),
      guide: guideOf(request),
      size: size(request.image_size),
      "begun with": beginningOf(request),
      strength: request.strength,
      "drawn again": inversionOf(image),
      "enlarged with": request.upscale,
      image: images.length > 1 ? `${place + 1} of ${images.length}` : null,
    };
    const known = Object.entries(facts).filter(
      ([, value]) => value !== null && value !== undefined,
    );
    this.facts.replaceChildren(
      ...known.map(([name, value]) =>
        element("div", {}, element("dt", {}, name), element("dd", {}, String(value))),
      ),
    );
  }

  async save() {
    try {
      await saveImage(this.job, this.job.result.images[this.place]);
    } catch (error) {
      this.error.say(error.message);
    }
  }

  useSettings() {
    const image = this.job.result.images[this.place];
    this.onUse({
      ...this.job.request,
      seed: image.seed,
      class_name: image.class ?? null,
      num_images: 1,
    });
    this.node.close();
  }
}

/** What an image began with, where it was not the noise of its seed. */
function beginningOf(request) {
  if (request.interpolate) {
    return `noise between seeds ${request.interpolate.join(" and ")}`;
  }
  if (request.outpaint) {
    return `a picture, with borders of ${request.outpaint.join(", ")}`;
  }
  const pictures = request.pictures ?? [];
  if (pictures.includes("invert")) {
    return "the noise of a picture";
  }
  if (pictures.includes("mask")) {
    return "a picture, painted under a mask";
  }
  return pictures.includes("init_image") ? "a picture" : null;
}

/** How well an image came out of the noise that was found for it. */
function inversionOf(image) {
  const error = image.inversion_error ?? null;
  return error === null ? null : `differs by ${measure(100 * error)}% of the range`;
}
