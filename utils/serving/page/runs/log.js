// The log of a run, read on from where it was; asked for only while it is open.

import { get, path } from "../lib/api.js";
import { element } from "../lib/dom.js";

const MOST_CHARACTERS = 200_000;
const NEAR_THE_END = 40; // pixels

export class RunLog {
  constructor(name) {
    this.name = name;
    this.end = 0;
    this.text = document.createTextNode("");
    this.pre = element(
      "pre",
      { class: "log", tabindex: 0, role: "region", "aria-label": "Log of the run" },
      this.text,
    );
    this.node = element("details", { class: "fold" }, element("summary", {}, "Log"), this.pre);
    this.node.addEventListener("toggle", () => this.update());
  }

  /** Reads what is new, if somebody looks. */
  async update() {
    if (!this.node.open || this.isReading) {
      return;
    }
    this.isReading = true;
    try {
      let isMore = true; // it comes in pieces
      while (isMore) {
        isMore = await this.readPiece();
      }
    } catch (error) {
      this.text.data = error.message;
      this.end = 0;
    }
    this.isReading = false;
  }

  /** One piece of what is new; whether there was any. */
  async readPiece() {
    const address = `${path`/v1/runs/${this.name}/log`}?after=${this.end}`;
    const { text, start, end } = await get(address);
    if (start !== this.end) {
      this.text.data = ""; // the file began anew
    }
    if (text !== "") {
      this.append(text);
    } else if (end === 0) {
      this.text.data = "Nothing has been written yet.";
    }
    const isMore = text !== "" && end !== this.end;
    this.end = end;
    return isMore && this.node.open;
  }

  append(text) {
    const { pre } = this;
    const isAtEnd = pre.scrollTop + pre.clientHeight >= pre.scrollHeight - NEAR_THE_END;
    const before = this.end === 0 ? "" : this.text.data;
    this.text.data = (before + text).slice(-MOST_CHARACTERS);
    if (isAtEnd) {
      pre.scrollTop = pre.scrollHeight;
    }
  }
}
