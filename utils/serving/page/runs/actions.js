// What a user can do with a run: stop, resume, take out of the queue, delete.

import { path, post, remove } from "../lib/api.js";
import {
  announce,
  button,
  element,
  notice,
  onPress,
  setOff,
  setText,
  show,
  whileBusy,
} from "../lib/dom.js";
import { DeleteDialog, LongerDialog } from "./dialogs.js";
import { isActive, isQueued } from "./states.js";

export class RunActions {
  /**
   * @param onChange () -> nothing: the run has changed, ask the server
   * @param options  {isDetailed}: also what is not done in passing
   */
  constructor(onChange, { isDetailed = false } = {}) {
    this.onChange = onChange;
    this.isDetailed = isDetailed;
    this.stop = this.actionButton("Stop and save", "stop", "The training saves and stops.");
    this.resume = this.actionButton("Resume", "resume", "The training resumes.");
    this.resume.classList.add("primary");
    this.leave = button({}, "Take out of the queue");
    onPress(this.leave, () => this.leaveQueue());
    this.erase = button({ class: "danger", onclick: () => this.askToDelete() }, "Delete …");
    this.extend = button({ onclick: () => this.askForLength() }, "Train longer …");
    this.error = notice();
    this.node = element(
      "div",
      { class: "actions" },
      this.resume,
      this.extend,
      this.stop,
      this.leave,
      this.erase,
    );
  }

  actionButton(text, action, said) {
    const node = button({}, text);
    node.addEventListener("click", async () => {
      await whileBusy(node, () => this.attempt(() => this.ask(action, said)));
      this.update(this.run); // which may mean that the button stays off
    });
    return node;
  }

  async ask(action, said) {
    await post(path`/v1/runs/${this.run.name}/${action}`);
    announce(said);
  }

  update(run) {
    this.run = run;
    this.updateStop(run);
    const rests = !isActive(run) && !isQueued(run);
    show(this.resume, run.can_resume && rests && run.state !== "finished");
    show(this.extend, run.can_resume && this.isDetailed && run.state === "finished");
    show(this.leave, isQueued(run));
    show(this.erase, this.isDetailed && rests);
    const nothing = [...this.node.children].every((child) => child.hidden);
    show(this.node, !nothing);
  }

  /** A run that is still there some time after it was asked to stop can be killed. */
  updateStop(run) {
    const isStopping = run.state === "stopping";
    const mayBeKilled =
      isStopping && run.can_stop && run.kill_after && Date.now() / 1000 > run.kill_after;
    show(this.stop, isActive(run));
    setOff(this.stop, !run.can_stop || (isStopping && !mayBeKilled));
    setText(this.stop, mayBeKilled ? "Kill it" : isStopping ? "Saving …" : "Stop and save");
  }

  async attempt(call) {
    this.error.say(null);
    try {
      await call();
    } catch (error) {
      this.error.say(error.message);
    }
    await this.onChange();
  }

  leaveQueue() {
    return this.attempt(() => remove(path`/v1/runs/${this.run.name}/queue`));
  }

  askForLength() {
    new LongerDialog(this.run, this.onChange).open();
  }

  askToDelete() {
    const dialog = new DeleteDialog(this.run.name, () => {
      location.hash = "#runs";
    });
    dialog.open();
  }
}
