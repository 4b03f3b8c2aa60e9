// Questions before something is done with a run.

import { path, post, remove } from "../lib/api.js";
import { announce, button, element, newId, notice, setOff, whileBusy } from "../lib/dom.js";
import { Field, numberInput } from "../lib/fields.js";

/** A dialog with a form: a title, what is asked, and two buttons. */
class Question {
  /** @param confirm the button that does it */
  constructor(title, keep, confirm) {
    const titleId = newId("title");
    this.confirm = confirm;
    this.error = notice();
    this.body = element("div", { class: "dialog-body" });
    this.node = element(
      "dialog",
      { class: "small-dialog", "aria-labelledby": titleId },
      element(
        "form",
        { novalidate: true, onsubmit: (event) => this.submit(event) },
        element("h2", { id: titleId }, title),
        this.body,
        this.error.node,
        element(
          "div",
          { class: "actions end" },
          button({ onclick: () => this.node.close() }, keep),
          confirm,
        ),
      ),
    );
    this.node.addEventListener("close", () => this.node.remove());
  }

  open() {
    document.body.append(this.node);
    this.node.showModal();
    this.field.focus();
  }

  submit(event) {
    event.preventDefault();
    if (this.isAnswered()) {
      whileBusy(this.confirm, () => this.attempt());
    }
  }

  async attempt() {
    this.error.say(null);
    try {
      await this.carryOut();
      this.node.close();
    } catch (error) {
      this.error.say(error.message);
    }
  }
}

/** Asks for the run's name, so that no slip of the finger deletes days of work. */
export class DeleteDialog extends Question {
  constructor(name, onDeleted) {
    const confirm = element("button", { class: "danger solid" }, "Delete the run");
    super("Delete this run?", "Keep it", confirm);
    setOff(confirm, true);
    this.name = name;
    this.onDeleted = onDeleted;
    const id = newId("confirm");
    this.field = element("input", { id, autocomplete: "off", spellcheck: "false" });
    this.field.addEventListener("input", () => {
      setOff(confirm, !this.isAnswered());
    });
    this.body.append(
      element(
        "p",
        {},
        "Its checkpoints, weights, metrics and previews are deleted from the disk. This cannot be " +
          "undone.",
      ),
      element("label", { for: id }, "Type its name to confirm: ", element("strong", {}, name)),
      this.field,
    );
  }

  isAnswered() {
    return this.field.value === this.name;
  }

  async carryOut() {
    await remove(path`/v1/runs/${this.name}`, { confirm: this.name });
    announce("The run is deleted.");
    this.onDeleted();
  }
}

/** Continues a finished run up to more epochs, or more minutes where these decide its length. */
export class LongerDialog extends Question {
  constructor(run, onChange) {
    super("Train longer", "Cancel", element("button", { class: "primary" }, "Continue training"));
    this.name = run.name;
    this.onChange = onChange;
    this.option = run.options.minutes ? "minutes" : "epochs";
    const input =
      this.option === "minutes"
        ? numberInput({ min: 0, step: "any", required: true })
        : numberInput({ min: 1, step: 1, required: true });
    const label = this.option === "minutes" ? "Minutes in all" : "Epochs in all";
    this.length = new Field(label, input, { hint: "Those that are done count." });
    this.field = this.length.control;
    this.body.append(
      element(
        "p",
        {},
        "The run continues from its last checkpoint. A schedule that has brought the learning rate " +
          "down raises it again.",
      ),
      this.length.node,
    );
  }

  isAnswered() {
    return this.length.check();
  }

  async carryOut() {
    const options = { [this.option]: this.length.number };
    await post(path`/v1/runs/${this.name}/resume`, { options });
    announce("The training continues.");
    this.onChange();
  }
}
