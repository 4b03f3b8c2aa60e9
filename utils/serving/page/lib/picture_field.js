// A field for pictures from the user's disk: chosen, shown small, sent as base64.

import { button, element, icon, show } from "./dom.js";
import { Field } from "./fields.js";
import { bytes } from "./format.js";

const ACCEPTED = "image/png,image/jpeg,image/webp";
const BASE64_GROWTH = 4 / 3;
const SHARE_OF_BODY = 0.9; // of what the server reads of a request: the rest of it needs room too

export class PictureField extends Field {
  /** @param mostBytes that a request may have; with `several`, more than one file may be chosen. */
  constructor(label, { mostBytes, several = false, hint = "" }) {
    const input = element("input", { type: "file", accept: ACCEPTED, multiple: several });
    const clear = button({ class: "quiet icon-only", hidden: true }, icon("close"));
    clear.setAttribute("aria-label", `Remove ${label.toLowerCase()}`);
    super(label, input, { hint, beside: clear });
    this.mostBytes = mostBytes;
    this.pictures = []; // {name, address: a data URL}
    this.reading = Promise.resolve();
    this.clearButton = clear;
    this.thumbnails = element("div", { class: "thumbnails", hidden: true });
    this.node.append(this.thumbnails);
    this.onChange = () => {};
    clear.addEventListener("click", () => this.clear());
    input.addEventListener("change", () => {
      this.reading = this.read([...input.files]);
    });
  }

  get isEmpty() {
    return this.pictures.length === 0;
  }

  /** What the API takes. */
  get texts() {
    return this.pictures.map(({ address }) => address.slice(address.indexOf(",") + 1));
  }

  async read(files) {
    this.fault(null);
    const total = files.reduce((sum, file) => sum + file.size, 0);
    const most = (SHARE_OF_BODY * this.mostBytes) / BASE64_GROWTH;
    if (total > most) {
      this.fault(`${bytes(total)} are more than the server takes, ${bytes(most)}.`);
      this.control.value = "";
      return;
    }
    try {
      const addresses = await Promise.all(files.map(dataUrl));
      this.take(addresses.map((address, place) => ({ name: files[place].name, address })));
    } catch {
      this.fault("The file cannot be read.");
    }
  }

  take(pictures) {
    this.pictures = pictures;
    this.thumbnails.replaceChildren(
      ...pictures.map(({ name, address }) => element("img", { src: address, alt: name })),
    );
    show(this.thumbnails, pictures.length > 0);
    show(this.clearButton, pictures.length > 0);
    this.onChange();
  }

  clear() {
    this.control.value = "";
    this.fault(null);
    this.take([]);
    this.control.focus();
  }
}

function dataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}
