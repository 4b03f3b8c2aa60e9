// The page: which view is shown, by the address behind the "#", and the token field.
//
// #generate                 jobs and their images
// #train                    a new training, what runs and what waits
// #runs, #runs?with=a&with=b    all runs, and which are compared
// #runs/NAME                one run

import { connection } from "./lib/api.js";
import { element, setText, show } from "./lib/dom.js";
import { loadCapabilities } from "./lib/capabilities.js";
import { LoginForm } from "./lib/login.js";
import { GenerateView } from "./generate/view.js";
import { RunsView } from "./runs/view.js";
import { TrainView } from "./train/view.js";

const VIEWS = {
  generate: { title: "Generate", create: (place, server) => new GenerateView(place, server) },
  train: { title: "Train", create: (place, server) => new TrainView(place, server) },
  runs: { title: "Runs", create: (place, server) => new RunsView(place, server) },
};
const FIRST_VIEW = "generate";

const content = document.getElementById("content");
const tabs = [...document.querySelectorAll(".tabs a")];

let server = null; // what the server can do
let shown = null; // {name, view}

async function start() {
  content.replaceChildren(element("p", { class: "loading" }, "Loading …"));
  try {
    server = await loadCapabilities();
  } catch (error) {
    if (!loginIsShown()) {
      showFailure(error);
    }
    return;
  }
  setText(document.getElementById("server-name"), server.name);
  for (const tab of tabs) {
    show(tab, server.trains || tab.dataset.view === FIRST_VIEW);
  }
  shown = null;
  showPlace();
}

/** "#runs/my%20run?with=a" -> {view: "runs", item: "my run", query} */
function placeOf(hash) {
  const [route, query] = hash.replace(/^#/, "").split("?");
  const [view, ...rest] = route.split("/");
  return { view, item: decoded(rest.join("/")), query: new URLSearchParams(query) };
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text; // somebody typed a lone "%"
  }
}

function showPlace() {
  const place = placeOf(location.hash);
  const isKnown = Object.hasOwn(VIEWS, place.view) && (server.trains || place.view === FIRST_VIEW);
  const name = isKnown ? place.view : FIRST_VIEW;
  if (shown?.name === name) {
    shown.view.go(place);
  } else {
    shown?.view.close();
    content.replaceChildren();
    shown = { name, view: VIEWS[name].create(content, server) };
    shown.view.go(place);
    scrollTo(0, 0);
  }
  document.title = `${VIEWS[name].title} – ${server.name}`;
  for (const tab of tabs) {
    const isCurrent = tab.dataset.view === name;
    tab.toggleAttribute("data-current", isCurrent);
    tab.setAttribute("aria-current", isCurrent ? "page" : "false");
  }
}

function showFailure(error) {
  const again = element(
    "button",
    { type: "button", class: "primary", onclick: start },
    "Try again",
  );
  content.replaceChildren(
    element(
      "div",
      { class: "empty" },
      element("p", { class: "empty-title" }, error.message),
      again,
    ),
  );
}

function showLogin() {
  if (loginIsShown()) {
    return;
  }
  shown?.view.close();
  shown = null;
  for (const tab of tabs) {
    show(tab, false);
  }
  const form = new LoginForm(start);
  content.replaceChildren(form.node);
  form.focus();
}

function loginIsShown() {
  return content.querySelector(".login") !== null;
}

connection.addEventListener("token-needed", showLogin);
connection.addEventListener("no-answer", () => show(document.getElementById("connection"), true));
connection.addEventListener("answer", () => show(document.getElementById("connection"), false));
addEventListener("hashchange", () => {
  if (server !== null && !loginIsShown()) {
    showPlace();
  }
});
document.getElementById("skip-link").addEventListener("click", (event) => {
  event.preventDefault(); // the address says which view is shown
  content.focus();
});

start();
