// The jobs as the server tells of them, newest news first: one poll for all, and a stream of
// events for the first few that are being generated.

import { Poll, get, listen, path, post } from "../lib/api.js";

// A browser keeps at most six connections to a server open; the others are for everything else.
const MOST_STREAMS = 2;
const SECONDS_WHILE_ACTIVE = 1;
const SECONDS_OTHERWISE = 8;

export function isActive(job) {
  return job.status === "queued" || job.status === "generating";
}

export class Jobs {
  /**
   * @param onChange  (jobs) newest first
   * @param onPreview (id, address of the image, step)
   */
  constructor(onChange, onPreview) {
    this.onChange = onChange;
    this.onPreview = onPreview;
    this.jobs = [];
    this.streams = new Map(); // id -> function that ends it
    this.poll = new Poll(
      () => this.ask(),
      () => (this.jobs.some(isActive) ? SECONDS_WHILE_ACTIVE : SECONDS_OTHERWISE),
    );
    this.onHidden = () => this.openStreams();
    document.addEventListener("visibilitychange", this.onHidden);
  }

  async ask() {
    const { jobs } = await get("/v1/jobs");
    if (this.poll?.isClosed) {
      return;
    }
    this.jobs = jobs;
    this.changed();
  }

  changed() {
    this.openStreams();
    this.onChange(this.jobs);
  }

  async submit(request) {
    const { id } = await post("/v1/jobs", request);
    this.poll.now();
    return id;
  }

  async cancel(id) {
    this.replace(await post(path`/v1/jobs/${id}/cancel`));
    this.poll.now();
  }

  replace(job) {
    this.jobs = this.jobs.map((other) => (other.id === job.id ? job : other));
    this.changed();
  }

  openStreams() {
    const generating = this.jobs.filter((job) => job.status === "generating");
    const oldest = generating.reverse().slice(0, MOST_STREAMS);
    const wanted = document.hidden ? [] : oldest.map((job) => job.id);
    for (const [id, end] of this.streams) {
      if (!wanted.includes(id)) {
        end();
        this.streams.delete(id);
      }
    }
    for (const id of wanted) {
      if (!this.streams.has(id)) {
        this.streams.set(id, this.stream(id));
      }
    }
  }

  stream(id) {
    const end = listen(path`/v1/jobs/${id}/events`, {
      progress: (progress) => {
        const job = this.jobs.find((other) => other.id === id);
        if (job !== undefined && isActive(job)) {
          this.replace({ ...job, ...progress });
        }
      },
      preview: ({ image, step }) => this.onPreview(id, image, step),
      end: (job) => {
        end(); // or the browser would connect again
        this.replace(job);
        this.poll.now(); // the next one has begun
      },
    });
    return end;
  }

  close() {
    this.poll.close();
    document.removeEventListener("visibilitychange", this.onHidden);
    for (const end of this.streams.values()) {
      end();
    }
    this.streams.clear();
  }
}
