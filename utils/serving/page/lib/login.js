// The field for the server's token. The server keeps it in a cookie that no script can read.

import { post } from "./api.js";
import { element, newId, notice, whileBusy } from "./dom.js";

export class LoginForm {
  constructor(onSuccess) {
    this.onSuccess = onSuccess;
    const id = newId("token");
    this.field = element("input", {
      id,
      type: "password",
      autocomplete: "current-password",
      required: true,
    });
    this.error = notice();
    this.button = element("button", { class: "primary" }, "Sign in");
    this.node = element(
      "form",
      { class: "login panel", onsubmit: (event) => this.submit(event) },
      element("h1", {}, "Sign in"),
      element(
        "p",
        { class: "muted" },
        "This server asks for a token: the one it was started with.",
      ),
      element("label", { for: id }, "Token"),
      this.field,
      this.error.node,
      this.button,
    );
  }

  focus() {
    this.field.focus();
  }

  submit(event) {
    event.preventDefault();
    this.error.say(null);
    whileBusy(this.button, () => this.login());
  }

  async login() {
    try {
      await post("/login", { token: this.field.value });
      this.node.remove();
      this.onSuccess();
    } catch (error) {
      this.error.say(error.message);
      this.field.select();
    }
  }
}
