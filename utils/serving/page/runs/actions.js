// What a user can do with a run: stop, resume, take out of the queue, delete.

import { path, post, remove } from "../lib/api.js";
import { announce, button, element, newId, notice, show } from "../lib/dom.js";
import { isActive, isQueued } from "./states.js";

export class RunActions {
  /**
   * @param onChange () -> nothing: the run has changed, ask the server
   * @param options  {canDelete}
   */
  constructor(onChange, { canDelete = false } = {}) {
    this.onChange = onChange;
    this.canDelete = canDelete;
    this.stop = this.actionButton("Stop and save", "stop", "The training saves and stops.");
    this.resume = this.actionButton("Resume", "resume", "The training resumes.");
    this.resume.classList.add("primary");
    this.leave = button({ onclick: () => this.leaveQueue() }, "Take out of the queue");
    this.erase = button({ class: "danger", onclick: () => this.askToDelete() }, "Delete …");
    this.error = notice();
    this.node = element("div", { class: "actions" }, this.resume, this.stop, this.leave, this.erase);
  }

  actionButton(text, action, said) {
    const node = button({}, text);
    node.addEventListener("click", async () => {
      await this.attempt(node, () => post(path`/v1/runs/${this.run.name}/${action}`));
      announce(said);
    });
    return node;
  }

  update(run) {
    this.run = run;
    show(this.stop, isActive(run));
    this.stop.disabled = run.state === "stopping" || this.isBusy === true;
    this.stop.textContent = run.state === "stopping" ? "Saving …" : "Stop and save";
    show(this.resume, run.can_resume && !isActive(run) && !isQueued(run));
    show(this.leave, isQueued(run));
    show(this.erase, this.canDelete && !isActive(run) && !isQueued(run));
    const nothing = [...this.node.children].every((child) => child.hidden);
    show(this.node, !nothing);
  }

  async attempt(node, call) {
    this.error.say(null);
    this.isBusy = true;
    node.disabled = true;
    try {
      await call();
    } catch (error) {
      this.error.say(error.message);
    }
    this.isBusy = false;
    node.disabled = false;
    this.onChange();
  }

  leaveQueue() {
    this.attempt(this.leave, () => remove(path`/v1/runs/${this.run.name}/queue`));
  }

  askToDelete() {
    const dialog = new DeleteDialog(this.run.name, () => {
      location.hash = "#runs";
    });
    dialog.open();
  }
}

/** Asks for the run's name, so that no slip of the finger deletes days of work. */
class DeleteDialog {
  constructor(name, onDeleted) {
    this.name = name;
    this.onDeleted = onDeleted;
    const id = newId("confirm");
    const titleId = newId("title");
    this.field = element("input", { id, autocomplete: "off", spellcheck: "false" });
    this.error = notice();
    this.confirm = element("button", { class: "danger solid", disabled: true }, "Delete the run");
    this.field.addEventListener("input", () => {
      this.confirm.disabled = this.field.value !== name;
    });
    this.node = element(
      "dialog",
      { class: "small-dialog", "aria-labelledby": titleId },
      element(
        "form",
        { onsubmit: (event) => this.submit(event) },
        element("h2", { id: titleId }, "Delete this run?"),
        element(
          "p",
          {},
          "Its checkpoints, weights, metrics and previews are deleted from the disk. This cannot " +
            "be undone.",
        ),
        element("label", { for: id }, "Type its name to confirm: ", element("strong", {}, name)),
        this.field,
        this.error.node,
        element(
          "div",
          { class: "actions end" },
          button({ onclick: () => this.node.close() }, "Keep it"),
          this.confirm,
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

  async submit(event) {
    event.preventDefault();
    if (this.field.value !== this.name) {
      return;
    }
    this.confirm.disabled = true;
    try {
      await remove(path`/v1/runs/${this.name}`, { confirm: this.name });
      announce("The run is deleted.");
      this.node.close();
      this.onDeleted();
    } catch (error) {
      this.error.say(error.message);
      this.confirm.disabled = false;
    }
  }
}
