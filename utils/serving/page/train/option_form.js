// A form made from the option rows of tools/train.py, as the server describes them: groups, bounds,
// help. Only what differs from the defaults is sent.

import { button, element, icon, setText, show } from "../lib/dom.js";
import { Field, numberInput, selectInput, setChoices } from "../lib/fields.js";
import { words } from "../lib/format.js";

// Options that nearly every training changes; the other groups are folded.
const FOREMOST = ["image_size", "minutes", "epochs", "preset", "channels", "conditional"];

export class OptionForm {
  /** @param onChange () -> nothing */
  constructor({ groups, presets }, onChange) {
    this.onChange = onChange;
    this.options = new Map(); // name -> OptionField
    this.groups = [];
    this.presets = presets;
    this.presetAbout = element("p", { class: "hint" });
    this.filter = element("input", {
      type: "search",
      placeholder: "Find an option",
      "aria-label": "Find an option",
      oninput: () => this.showFiltered(),
    });
    this.none = element("p", { class: "muted", hidden: true }, "No option has this in its name.");
    const foremost = groups
      .flatMap((group) => group.options)
      .filter((option) => option.editable && FOREMOST.includes(option.name));
    foremost.sort((a, b) => FOREMOST.indexOf(a.name) - FOREMOST.indexOf(b.name));
    this.foremost = element("div", { class: "options" }, ...foremost.map((row) => this.field(row)));
    const folded = groups.map((group) => this.group(group)).filter((node) => node !== null);
    this.node = element(
      "div",
      { class: "option-form" },
      presets.length > 0 ? this.presetNode() : null,
      this.foremost,
      element("div", { class: "more-options" }, element("h4", {}, "More options"), this.filter),
      ...folded,
      this.none,
    );
  }

  presetNode() {
    const choices = [
      { value: "", text: "train.py's defaults" },
      ...this.presets.map(({ name }) => ({ value: name, text: name })),
    ];
    this.preset = new Field("Preset", selectInput(choices), { className: "preset" });
    this.preset.control.addEventListener("change", () => this.takePreset());
    this.preset.hint.after(this.presetAbout);
    return this.preset.node;
  }

  takePreset() {
    const preset = this.presets.find(({ name }) => name === this.preset.value);
    setText(this.presetAbout, preset?.about ?? "");
    this.setValues(preset?.values ?? {});
  }

  field(option) {
    const field = new OptionField(option, () => this.changed());
    this.options.set(option.name, field);
    return field.node;
  }

  group({ title, options }) {
    const rows = options.filter((option) => option.editable && !this.options.has(option.name));
    if (rows.length === 0) {
      return null;
    }
    const changed = element("span", { class: "pill", hidden: true });
    const summary = element("summary", {}, capital(title), changed);
    const nodes = rows.map((option) => this.field(option));
    const node = element(
      "details",
      { class: "fold option-group" },
      summary,
      element("div", { class: "options" }, ...nodes),
    );
    const names = rows.map((option) => option.name);
    this.groups.push({ node, changed, names });
    return node;
  }

  changed() {
    this.showChanges();
    this.onChange();
  }

  showChanges() {
    for (const { changed, names } of this.groups) {
      const number = names.filter((name) => this.options.get(name).isChanged).length;
      setText(changed, `${number} changed`);
      show(changed, number > 0);
    }
  }

  showFiltered() {
    const wanted = this.filter.value.trim().toLowerCase();
    let found = 0;
    for (const { node, names } of this.groups) {
      const matching = names.filter((name) => isNamed(name, wanted));
      for (const name of names) {
        show(this.options.get(name).node, matching.includes(name));
      }
      show(node, matching.length > 0);
      node.open = wanted !== "" && matching.length > 0;
      found += matching.length;
    }
    show(this.none, found === 0);
  }

  /** What differs from the defaults, by name. */
  values() {
    const changed = [...this.options].filter(([, field]) => field.isChanged);
    return Object.fromEntries(changed.map(([name, field]) => [name, field.value]));
  }

  /** The defaults, except for these. */
  setValues(values) {
    for (const [name, field] of this.options) {
      field.value = Object.hasOwn(values, name) ? values[name] : field.option.default;
      field.fault(null);
    }
    this.changed();
  }

  /** The data folders that may be named in options. */
  setFolders(names) {
    for (const { option, control } of this.options.values()) {
      if (option.kind === "folder") {
        setChoices(control, withUnset(true, names));
      }
    }
  }

  /** Whether the browser takes all values; opens the group of the first that it does not. */
  check() {
    const faulty = [...this.options.values()].filter((field) => !field.check());
    faulty[0]?.reveal();
    return faulty.length === 0;
  }

  /** Shows the server's sentence beside the option that it speaks of; false: there is none. */
  showFault(name, text) {
    const field = this.options.get((name ?? "").replace(/^options\./, ""));
    if (field === undefined) {
      return false;
    }
    field.fault(text);
    field.reveal();
    return true;
  }
}

class OptionField {
  constructor(option, onChange) {
    this.option = option;
    this.onChange = onChange;
    this.control = controlOf(option);
    this.resetButton = button(
      { class: "quiet icon-only reset", title: "Back to the default", onclick: () => this.reset() },
      icon("reset"),
    );
    this.resetButton.setAttribute("aria-label", `Back to the default of ${words(option.name)}`);
    this.field = new Field(capital(words(option.name)), this.control, {
      hint: option.help,
      beside: this.resetButton,
      className: "option",
    });
    this.node = this.field.node;
    this.field.label.title = `--${option.name}`;
    this.value = option.default;
    this.control.addEventListener("input", () => this.changed());
    this.showChange();
  }

  get value() {
    const { kind } = this.option;
    const text = this.control.value.trim();
    if (kind === "bool") {
      return text === "" ? null : text === "true";
    }
    if (text === "") {
      return this.isOptional ? null : "";
    }
    if (kind === "int" || kind === "float") {
      return Number(text);
    }
    return kind === "list" || kind === "size" ? text.replace(/\s*,\s*/g, ",") : text;
  }

  set value(value) {
    this.control.value = asText(value);
    this.showChange();
  }

  get isOptional() {
    return this.option.default === null || this.option.default === undefined;
  }

  get isChanged() {
    return this.control.value.trim() !== asText(this.option.default);
  }

  changed() {
    this.showChange();
    this.onChange();
  }

  showChange() {
    this.node.classList.toggle("changed", this.isChanged);
    this.resetButton.classList.toggle("away", !this.isChanged);
  }

  reset() {
    this.value = this.option.default;
    this.field.fault(null);
    this.control.focus();
    this.onChange();
  }

  fault(text) {
    this.field.fault(text);
  }

  check() {
    if (!this.field.check()) {
      return false;
    }
    const text = this.control.value.trim();
    const fault = text === "" ? null : faultOf(text, this.option);
    this.field.fault(fault);
    return fault === null;
  }

  reveal() {
    const group = this.node.closest("details");
    if (group !== null) {
      group.open = true;
    }
    this.control.focus();
  }
}

/** Whether an option is looked for, by its name or by the words for it. */
function isNamed(name, wanted) {
  return name.toLowerCase().includes(wanted) || words(name).toLowerCase().includes(wanted);
}

/** What is wrong with a text that the browser's own check lets through; null: nothing. */
function faultOf(text, { kind, low, high, open_low: isLowLeftOut }) {
  if (isLowLeftOut && Number(text) === low) {
    return `The value must be above ${low}.`;
  }
  const parts = text.split(",").map((part) => part.trim());
  const areWhole = parts.every((part) => /^-?\d+$/.test(part));
  if (kind === "list" && !areWhole) {
    return "Whole numbers with commas between them, such as 1,2,3.";
  }
  const areInside = parts.every((part) => Number(part) >= low && Number(part) <= high);
  if (kind === "size" && (!areWhole || !areInside || parts.length > 2)) {
    return `One number, or height and width such as 64,96, each from ${low} to ${high}.`;
  }
  return null;
}

function controlOf(option) {
  const isOptional = option.default === null || option.default === undefined;
  const bounds = { min: option.low, max: option.high, required: !isOptional };
  const placeholder = isOptional ? "not set" : null;
  switch (option.kind) {
    case "int":
      return numberInput({ ...bounds, step: 1, placeholder });
    case "float":
      return numberInput({ ...bounds, step: "any", placeholder });
    case "bool":
      return selectInput(withUnset(isOptional, ["true", "false"].map(yesOrNo)));
    case "choice":
      return selectInput(withUnset(isOptional, option.choices));
    case "folder":
      return selectInput(withUnset(isOptional, [])); // until the data folders are known
    default:
      return element("input", { autocomplete: "off", spellcheck: "false", placeholder });
  }
}

function withUnset(isOptional, choices) {
  return isOptional ? [{ value: "", text: "not set" }, ...choices] : choices;
}

function yesOrNo(value) {
  return { value, text: value === "true" ? "yes" : "no" };
}

/** A value as the control has it: [28, 28] -> "28,28" */
function asText(value) {
  if (value === null || value === undefined) {
    return "";
  }
  return Array.isArray(value) ? value.join(",") : String(value);
}

function capital(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}
