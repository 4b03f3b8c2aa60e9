// Settings that an earlier PNG file holds: dropped on the page or chosen, shown, and used only when
// asked.

import { button, element, icon, setText, show } from "../lib/dom.js";
import { pngTexts } from "../lib/png_text.js";

const LARGEST_FILE = 64 * 1024 * 1024; // bytes

// Entries of the file -> names of the API
const NUMBERS = {
  seed: "seed",
  sample_steps: "sample_steps",
  cfg_scale: "cfg_scale",
  guide_scale: "guide_scale",
};

// Entries that speak of more than these settings, in words
const LOST = {
  init_image: "an image that it began with",
  mask: "a mask",
  outpaint: "borders",
  interpolate: "the noise of two seeds",
  invert: "an image's noise",
  condition: "an image that steered it",
  cfg_interval: "an interval of guidance",
  guide: "a guide of its own",
  upscaler: "an upscaler",
};
const MAIN_FILE = "ema_last"; // of a run, which is served by the run's name alone

export class SettingsFile {
  /** @param onUse (settings) -> what could not be used, in words */
  constructor(server, onUse) {
    this.server = server;
    this.onUse = onUse;
    this.input = element("input", {
      type: "file",
      accept: "image/png",
      class: "unseen",
      "aria-label": "Read settings from a PNG file",
      onchange: () => this.readInput(),
    });
    this.picker = element(
      "label",
      { class: "drop-hint" },
      this.input,
      element("span", { class: "button quiet" }, "Read settings from a PNG file …"),
      element("span", { class: "muted" }, "or drop one anywhere here"),
    );
    this.title = element("h3", {});
    this.facts = element("dl", { class: "facts" });
    this.remarks = element("p", { class: "notice", hidden: true });
    this.useButton = button({ class: "primary", onclick: () => this.use() }, "Use these settings");
    const close = button(
      { class: "quiet icon-only", onclick: () => this.dismiss() },
      icon("close"),
    );
    close.setAttribute("aria-label", "Dismiss");
    this.offer = element(
      "section",
      { class: "panel offer", hidden: true, role: "status" },
      element("div", { class: "job-head" }, this.title, close),
      this.facts,
      this.remarks,
      element("div", { class: "actions" }, this.useButton),
    );
  }

  /** Takes PNG files that are dropped on a part of the page. */
  watch(node) {
    const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
    node.addEventListener("dragover", (event) => {
      if (hasFiles(event)) {
        event.preventDefault();
        node.classList.add("dropping");
      }
    });
    node.addEventListener("dragleave", (event) => {
      if (!node.contains(event.relatedTarget)) {
        node.classList.remove("dropping");
      }
    });
    node.addEventListener("drop", (event) => {
      node.classList.remove("dropping");
      const [file] = event.dataTransfer?.files ?? [];
      if (file !== undefined) {
        event.preventDefault();
        this.read(file);
      }
    });
  }

  readInput() {
    const [file] = this.input.files;
    if (file !== undefined) {
      this.read(file);
    }
    this.input.value = ""; // so that the same file can be chosen again
  }

  async read(file) {
    let texts = {};
    try {
      if (file.size > LARGEST_FILE) {
        throw new Error("it is too large for a picture of this program");
      }
      texts = await pngTexts(await file.arrayBuffer());
    } catch (error) {
      this.show(file.name, {}, `${file.name} cannot be used: ${error.message}.`);
      return;
    }
    const settings = this.settingsOf(texts);
    const isEmpty = Object.keys(settings).length === 0;
    const lost = this.lostOf(texts);
    let remark = null;
    if (isEmpty) {
      remark = `${file.name} holds no settings of this program.`;
    } else if (lost.length > 0) {
      remark = `The image was also made with ${lost.join(", ")}, which is not taken over.`;
    }
    this.show(file.name, settings, remark);
  }

  settingsOf(texts) {
    const settings = {};
    for (const [entry, name] of Object.entries(NUMBERS)) {
      const value = Number(texts[entry]);
      if (texts[entry] !== undefined && Number.isFinite(value)) {
        settings[name] = value;
      }
    }
    if (texts.class !== undefined) {
      settings.class_name = texts.class;
    }
    if (texts.sampler !== undefined) {
      settings.sample = texts.sampler;
    }
    if (texts.guide_labels !== undefined) {
      settings.guide_labels = texts.guide_labels !== "False";
    }
    if (texts.weights !== undefined) {
      settings.weight = this.servedName(texts.weights, texts.run);
    }
    return settings;
  }

  /**
   * The name of a weight here, from the name of its file and that of its run: demo.pt is "demo",
   * ema_last.pt of cifar is "cifar", its ema_best.pt "cifar:ema_best".
   */
  servedName(file, run) {
    const plain = file.replace(/\.(pt|pth|safetensors)$/, "");
    const names = [file, plain];
    if (run !== undefined) {
      names.unshift(`${run}:${plain}`);
      if (plain === MAIN_FILE) {
        names.unshift(run);
      }
    }
    return names.find((name) => this.server.weight(name) !== undefined) ?? names.at(-1);
  }

  /** What an image was made with that its file cannot bring back, in words. */
  lostOf(texts) {
    const lost = Object.entries(LOST)
      .filter(([entry]) => texts[entry] !== undefined)
      .map(([, words]) => words);
    if (texts.eta !== undefined && Number(texts.eta) !== 0) {
      lost.push("an eta");
    }
    return lost;
  }

  show(name, settings, remark) {
    this.settings = settings;
    const isUsable = Object.keys(settings).length > 0;
    setText(this.title, isUsable ? `Settings of ${name}` : name);
    const words = { class_name: "class", sample: "sampler", sample_steps: "steps" };
    words.cfg_scale = "guidance";
    words.guide_scale = "guide";
    words.guide_labels = "guide knows the class";
    this.facts.replaceChildren(
      ...Object.entries(settings).map(([key, value]) =>
        element("div", {}, element("dt", {}, words[key] ?? key), element("dd", {}, String(value))),
      ),
    );
    setText(this.remarks, remark ?? "");
    show(this.remarks, remark !== null);
    show(this.useButton, isUsable);
    show(this.offer, true);
    if (isUsable) {
      this.useButton.focus();
    }
  }

  use() {
    const unused = this.onUse({ ...this.settings, num_images: 1 });
    if (unused.length === 0) {
      this.dismiss();
      return;
    }
    setText(this.remarks, `Used, except that ${unused.join(", and ")}.`);
    show(this.remarks, true);
    show(this.useButton, false);
  }

  dismiss() {
    show(this.offer, false);
  }
}
