// Generate: the form on one side, jobs and images on the other.

import { announce, element, emptyState, KeyedList, setText, show } from "../lib/dom.js";
import { counted } from "../lib/format.js";
import { remember, remembered } from "../lib/storage.js";
import { ComparisonCard } from "./comparison.js";
import { GenerateForm } from "./form.js";
import { JobCard, jobTitle } from "./job_card.js";
import { isActive, Jobs } from "./jobs.js";
import { SettingsFile } from "./settings_file.js";
import { Viewer } from "./viewer.js";

const GROUPS = "comparisons"; // remembered: lists of ids of jobs that are shown together
const MOST_GROUPS = 50;

export class GenerateView {
  constructor(place, server) {
    this.server = server;
    this.statuses = new Map(); // id -> status, to announce what changes
    this.form = new GenerateForm(server, (requests) => this.submit(requests));
    this.file = new SettingsFile(server, (settings) => this.use(settings));
    this.viewer = new Viewer((settings) => this.useAndSay(settings));
    this.unused = element("p", { class: "notice", role: "status", hidden: true });
    this.summary = element("p", { class: "muted number" });
    this.list = element("div", { class: "jobs" });
    this.empty = this.emptyNode();
    show(this.empty, false);
    this.cards = new KeyedList(
      this.list,
      (entry) => entry.key,
      (entry) => this.card(entry),
    );
    const node = element(
      "div",
      { class: "two-columns" },
      element("h1", { class: "unseen" }, "Generate"),
      element(
        "section",
        { class: "side", "aria-label": "What to generate" },
        this.unused,
        this.form.node,
        this.file.picker,
      ),
      element(
        "section",
        { class: "results", "aria-label": "Jobs and images" },
        this.file.offer,
        element("div", { class: "results-head" }, element("h2", {}, "Images"), this.summary),
        this.empty,
        this.list,
      ),
      this.viewer.node,
    );
    this.file.watch(node);
    place.append(node);
    this.jobs = new Jobs(
      (jobs) => this.showJobs(jobs),
      (id, address) => this.showPreview(id, address),
    );
  }

  /** #generate?weight=NAME: from a run that was promoted. */
  go({ query }) {
    const weight = query.get("weight");
    if (weight === null) {
      this.lookAtWeights();
      return;
    }
    this.form.takeCapabilities();
    this.form.apply({ weight });
    this.form.changed();
    history.replaceState(null, "", "#generate");
  }

  /** A training may have made the first weight, or a newer one, since the page was loaded. */
  async lookAtWeights() {
    try {
      await this.server.refresh();
    } catch {
      return; // that there is no answer is said elsewhere
    }
    this.form.takeCapabilities();
    const empty = this.emptyNode();
    show(empty, !this.empty.hidden);
    this.empty.replaceWith(empty);
    this.empty = empty;
  }

  emptyNode() {
    if (this.server.weights.length > 0) {
      return emptyState(
        "No images yet",
        "Choose on the form what to generate. Jobs wait in a queue, so you need not wait for one " +
          "to end before you ask for the next.",
      );
    }
    const train = element("a", { href: "#train" }, "Train a network");
    const how = "put a weight into one of the server's weight folders";
    return this.server.trains
      ? emptyState("No weights are served", train, `, or ${how}.`)
      : emptyState("No weights are served", `Please ${how}.`);
  }

  card(entry) {
    const actions = {
      cancel: (id) => this.jobs.cancel(id),
      use: (settings) => this.useAndSay(settings),
      open: (job, place) => this.viewer.open(job, place),
    };
    if (entry.jobs.length > 1) {
      return new ComparisonCard(entry, actions);
    }
    const card = new JobCard(entry.jobs[0], actions);
    return {
      node: card.node,
      update: ({ jobs }) => card.update(jobs[0]),
      preview: (id, address) => card.preview(address),
    };
  }

  async submit(requests) {
    show(this.unused, false);
    const ids = [];
    for (const request of requests) {
      ids.push(await this.jobs.submit(request));
    }
    if (ids.length > 1) {
      remember(GROUPS, [ids, ...remembered(GROUPS, [])].slice(0, MOST_GROUPS));
      this.jobs.poll.now();
    }
    announce("In the queue.");
  }

  showJobs(jobs) {
    this.announceChanges(jobs);
    this.cards.update(ordered(entriesOf(jobs)));
    show(this.empty, jobs.length === 0);
    const active = jobs.filter(isActive);
    const waiting = active.filter((job) => job.status === "queued").length;
    const parts = [];
    if (active.length > waiting) {
      parts.push(`${active.length - waiting} in work`);
    }
    if (waiting > 0) {
      parts.push(`${waiting} waiting`);
    }
    if (parts.length === 0 && jobs.length > 0) {
      parts.push(counted(jobs.length, "job"));
    }
    setText(this.summary, parts.join(", "));
  }

  showPreview(id, address) {
    for (const [key, card] of this.cards.parts) {
      if (key.split(" ").includes(id)) {
        card.preview(id, address);
      }
    }
  }

  announceChanges(jobs) {
    const words = { completed: "done", failed: "failed", cancelled: "cancelled" };
    for (const job of jobs) {
      const before = this.statuses.get(job.id);
      if (before !== undefined && before !== job.status && words[job.status] !== undefined) {
        announce(`${jobTitle(job)}: ${words[job.status]}.`);
      }
      this.statuses.set(job.id, job.status);
    }
  }

  /** Puts settings into the form, as the user asked; returns what could not be used. */
  use(settings) {
    const unused = this.form.apply(settings);
    this.form.changed();
    announce("The settings are in the form.");
    this.form.fields.weight.control.focus();
    return unused;
  }

  /** The same; what could not be used stands above the form. */
  useAndSay(settings) {
    const unused = this.use(settings);
    setText(this.unused, `Used, except that ${unused.join(", and ")}.`);
    show(this.unused, unused.length > 0);
  }

  close() {
    this.jobs.close();
    this.cards.close();
  }
}

/** Jobs that were started together as one entry; newest first, as the jobs are. */
function entriesOf(jobs) {
  const byId = new Map(jobs.map((job) => [job.id, job]));
  const groupOf = new Map();
  for (const ids of remembered(GROUPS, [])) {
    const known = ids.filter((id) => byId.has(id));
    if (known.length > 1) {
      known.forEach((id) => groupOf.set(id, known));
    }
  }
  const entries = new Map();
  for (const job of jobs) {
    const ids = groupOf.get(job.id) ?? [job.id];
    const key = ids.join(" ");
    if (!entries.has(key)) {
      entries.set(key, { key, jobs: ids.map((id) => byId.get(id)) });
    }
  }
  return [...entries.values()];
}

/** What is being generated, then what waits in its order, then what is done, newest first. */
function ordered(entries) {
  const rank = ({ jobs }) => {
    if (jobs.some((job) => job.status === "generating")) {
      return -1;
    }
    const places = jobs.filter((job) => job.status === "queued").map((job) => job.queue_position);
    return places.length > 0 ? Math.min(...places) : Infinity;
  };
  const ranked = entries.map((entry) => ({ entry, rank: rank(entry) }));
  ranked.sort((a, b) => (a.rank === b.rank ? 0 : a.rank - b.rank)); // stable
  return ranked.map(({ entry }) => entry);
}
