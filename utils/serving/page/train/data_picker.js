// The data folders below the server's --data: names, classes, counts, sample images.

import { get, path } from "../lib/api.js";
import { element, emptyState, newId } from "../lib/dom.js";
import { count, counted, size } from "../lib/format.js";
import { picture } from "../generate/gallery.js";

const SAMPLES = 8;
const CLASSES_SHOWN = 8;

export class DataPicker {
  /** @param onChoose (folder) */
  constructor(onChoose) {
    this.onChoose = onChoose;
    this.folders = [];
    this.group = newId("dataset");
    this.list = element("div", {
      class: "folders",
      role: "radiogroup",
      "aria-label": "Data folder",
    });
    this.node = element("div", {}, this.list);
    this.list.append(element("p", { class: "loading" }, "Loading …"));
  }

  async load(chosenName) {
    const { folders } = await get("/v1/data");
    this.folders = folders;
    if (folders.length === 0) {
      const how =
        "Put a folder of images into the server's data folder, one folder per class in it.";
      this.list.replaceChildren(emptyState("No image folders", how));
      return;
    }
    this.list.replaceChildren(...folders.map((folder) => this.card(folder)));
    const usable = folders.filter((folder) => folder.error === null);
    const chosen = usable.find((folder) => folder.name === chosenName) ?? usable[0];
    if (chosen !== undefined) {
      this.choose(chosen);
      this.list.querySelectorAll("input")[folders.indexOf(chosen)].checked = true;
    }
  }

  card(folder) {
    const errorId = newId("error");
    const radio = element("input", {
      type: "radio",
      name: this.group,
      disabled: folder.error !== null,
      "aria-label": folder.name,
      "aria-describedby": errorId,
      onchange: () => this.choose(folder),
    });
    const head = element(
      "span",
      { class: "folder-head" },
      radio,
      element("span", { class: "folder-name long" }, folder.name),
    );
    if (folder.error !== null) {
      return element(
        "label",
        { class: "folder faulty" },
        head,
        element("span", { class: "folder-error", id: errorId }, folder.error),
      );
    }
    return element(
      "label",
      { class: "folder" },
      head,
      aboutFolder(folder, errorId),
      samplesOf(folder),
    );
  }

  choose(folder) {
    this.chosen = folder;
    this.onChoose(folder);
  }
}

function aboutFolder(folder, id) {
  const parts = [counted(folder.images, "image")];
  parts.push(folder.classes.length > 0 ? counted(folder.classes.length, "class") : "no classes");
  if (folder.size_hint !== null) {
    parts.push(size(folder.size_hint));
  }
  return element(
    "span",
    { class: "folder-about", id },
    element("span", { class: "muted number" }, parts.join(" · ")),
    classesOf(folder),
  );
}

function classesOf({ classes }) {
  if (classes.length === 0) {
    return null;
  }
  const shown = classes
    .slice(0, CLASSES_SHOWN)
    .map(({ name, images }) =>
      element(
        "span",
        { class: "chip", title: `${name}: ${counted(images, "image")}` },
        element("span", { class: "one-line" }, name),
        element("span", { class: "muted number" }, count(images)),
      ),
    );
  const more = classes.length - shown.length;
  const rest = more > 0 ? element("span", { class: "chip muted" }, `${count(more)} more`) : null;
  return element("span", { class: "chips" }, ...shown, ...(rest === null ? [] : [rest]));
}

function samplesOf(folder) {
  const address = `${path`/v1/data/${folder.name}/samples`}?count=${SAMPLES}`;
  const strip = picture(address, `Images of ${folder.name}`, { class: "samples", loading: "lazy" });
  strip.addEventListener("error", () => strip.remove()); // the folder stays usable without it
  return strip;
}
