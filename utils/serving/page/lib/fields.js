// Form fields: a label, the control, and a place for what is wrong with it.

import { element, newId, setText, show } from "./dom.js";

/**
 * A labelled control with a remark and an error below.
 *
 * @param label   text
 * @param control input or select
 * @param options {hint, beside: node next to the control, name}
 */
export class Field {
  constructor(label, control, { hint = "", beside = null, className = "" } = {}) {
    this.control = control;
    control.id ||= newId("field");
    const hintId = newId("hint");
    const errorId = newId("error");
    this.label = element("label", { for: control.id }, label);
    this.hint = element("p", { class: "hint", id: hintId }, hint);
    this.error = element("p", { class: "field-error", id: errorId, role: "alert", hidden: true });
    const row =
      beside === null ? control : element("div", { class: "with-beside" }, control, beside);
    this.node = element(
      "div",
      { class: `field ${className}` },
      this.label,
      row,
      this.hint,
      this.error,
    );
    control.setAttribute("aria-describedby", `${hintId} ${errorId}`);
    control.addEventListener("input", () => this.fault(null));
    show(this.hint, hint !== "");
  }

  remark(text) {
    setText(this.hint, text);
    show(this.hint, text !== "");
  }

  /** Shows what is wrong, or with null that nothing is. */
  fault(text) {
    setText(this.error, text ?? "");
    show(this.error, Boolean(text));
    if (text) {
      this.control.setAttribute("aria-invalid", "true");
    } else {
      this.control.removeAttribute("aria-invalid");
    }
  }

  /** Whether the browser takes what was typed; shows why not. */
  check() {
    const isGood = this.control.disabled || this.control.checkValidity();
    this.fault(isGood ? null : this.control.validationMessage);
    return isGood;
  }

  get value() {
    return this.control.value;
  }

  set value(value) {
    this.control.value = value ?? "";
  }

  /** The number that was typed; null where nothing was. */
  get number() {
    return this.control.value.trim() === "" ? null : Number(this.control.value);
  }
}

export function numberInput(attributes) {
  return element("input", { type: "number", inputmode: "decimal", ...attributes });
}

/** A select of texts or of {value, text}. */
export function selectInput(choices = [], attributes = {}) {
  const select = element("select", attributes);
  setChoices(select, choices);
  return select;
}

/** Other choices; the one that is chosen stays chosen where it still is among them. */
export function setChoices(select, choices) {
  const before = select.value;
  const options = choices.map((choice) => {
    const { value, text } = typeof choice === "string" ? { value: choice, text: choice } : choice;
    return element("option", { value }, text);
  });
  select.replaceChildren(...options);
  if (options.some((option) => option.value === before)) {
    select.value = before;
  }
}

export function checkbox(label, attributes = {}) {
  const box = element("input", { type: "checkbox", ...attributes });
  return { box, node: element("label", { class: "check" }, box, element("span", {}, label)) };
}
