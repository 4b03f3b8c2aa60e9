// The grids of samples that a run drew, epoch by epoch.

import { element, newId, setText, show } from "../lib/dom.js";
import { count } from "../lib/format.js";
import { picture } from "../generate/gallery.js";

export class Previews {
  constructor(emptyText = "The first preview comes at the end of an epoch.") {
    const id = newId("epoch");
    this.previews = [];
    this.empty = element("p", { class: "muted" }, emptyText);
    this.image = null;
    this.place = element("div", { class: "preview-place" });
    this.link = element(
      "a",
      { target: "_blank", rel: "noopener", class: "preview-link" },
      this.place,
    );
    this.slider = element("input", {
      id,
      type: "range",
      min: 0,
      step: 1,
      oninput: () => this.slide(),
    });
    this.label = element("label", { for: id, class: "number" });
    this.bar = element("div", { class: "preview-bar" }, this.label, this.slider);
    this.node = element("div", { class: "previews" }, this.empty, this.link, this.bar);
    this.update([]);
  }

  update(previews) {
    const wasLast = Number(this.slider.value) >= this.previews.length - 1;
    const isSame = JSON.stringify(previews) === JSON.stringify(this.previews);
    if (isSame && previews.length > 0) {
      return;
    }
    this.previews = previews;
    show(this.empty, previews.length === 0);
    show(this.link, previews.length > 0);
    show(this.bar, previews.length > 0);
    show(this.slider, previews.length > 1);
    this.slider.max = Math.max(previews.length - 1, 0);
    if (wasLast) {
      this.slider.value = this.slider.max; // who looks at the newest goes on to the newest
    }
    this.slide();
  }

  slide() {
    const preview = this.previews[Number(this.slider.value)];
    if (preview === undefined) {
      return;
    }
    setText(this.label, `epoch ${count(preview.epoch)}`);
    this.slider.setAttribute("aria-valuetext", `epoch ${preview.epoch}`);
    this.link.href = preview.url;
    const alt = `Samples of epoch ${preview.epoch}`;
    if (this.image === null) {
      this.image = picture(preview.url, alt);
      this.place.replaceChildren(this.image);
    } else {
      this.image.alt = alt;
      this.image.src = preview.url;
    }
  }
}
