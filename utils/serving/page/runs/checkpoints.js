// The checkpoints of a run; one click takes a weight to Generate.

import { path, post } from "../lib/api.js";
import { KeyedList, button, element, notice, onPress, setText, show } from "../lib/dom.js";
import { bytes } from "../lib/format.js";

// What the files of a run are; the others are numbered by their epoch.
const ABOUT = {
  "ema_best.pt": "the best averaged weights",
  "ema_last.pt": "the newest averaged weights",
  "ckpt_best.pt": "the checkpoint of the best weights",
  "ckpt_last.pt": "the newest checkpoint, from which the run resumes",
  "ckpt_prev.pt": "the checkpoint before the newest",
};
const ORDER = Object.keys(ABOUT);
// Their weights are those of the first two.
const NOT_SERVED = ["ckpt_best.pt", "ckpt_last.pt", "ckpt_prev.pt"];

export class Checkpoints {
  constructor(name, server) {
    this.name = name;
    this.server = server;
    this.list = element("ul", { class: "rows" });
    this.empty = element("p", { class: "muted" }, "The first one is written when training begins.");
    this.error = notice();
    this.parts = new KeyedList(
      this.list,
      (checkpoint) => checkpoint.file,
      (checkpoint) => this.row(checkpoint),
    );
    this.node = element("div", {}, this.empty, this.error.node, this.list);
  }

  update(run) {
    const checkpoints = run.checkpoints ?? [];
    show(this.empty, checkpoints.length === 0);
    this.parts.update([...checkpoints].sort((a, b) => rank(a) - rank(b)));
  }

  row(checkpoint) {
    const { file, epoch } = checkpoint;
    const numbered = epoch === null || epoch === undefined ? "" : `after epoch ${epoch}`;
    const size = element("span", { class: "muted number" });
    const use = button({}, "Use in Generate");
    onPress(use, () => this.promote(file));
    use.setAttribute("aria-label", `Use ${file} in Generate`);
    const node = element(
      "li",
      { class: "row" },
      element(
        "div",
        { class: "row-text" },
        element("p", { class: "long" }, file),
        element("p", { class: "muted" }, ABOUT[file] ?? numbered),
      ),
      size,
      use,
    );
    return {
      node,
      update(newer) {
        setText(size, bytes(newer.bytes));
        show(use, newer.weight !== null || !NOT_SERVED.includes(file));
      },
    };
  }

  async promote(file) {
    this.error.say(null);
    try {
      const { weight } = await post(path`/v1/runs/${this.name}/promote`, { file });
      await this.server.refresh();
      location.hash = `#generate?weight=${encodeURIComponent(weight)}`;
    } catch (error) {
      this.error.say(error.message);
    }
  }
}

function rank({ file }) {
  const place = ORDER.indexOf(file);
  return place < 0 ? ORDER.length : place;
}
