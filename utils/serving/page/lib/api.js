// Requests to the server. What it answers is the truth; the page keeps no second copy.

/** An answer that is no success. `message` is the server's sentence; `param` names the field. */
export class ApiError extends Error {
  constructor(status, message, param = null, code = null) {
    super(message);
    this.status = status;
    this.param = param;
    this.code = code;
  }
}

const NO_ANSWER = 0;
const UNAUTHORIZED = 401;
const MILLISECONDS_UNTIL_REOPENED = 5000;

/** Hears of two things that concern the whole page: a token is needed; the server is (not) there. */
export const connection = new EventTarget();

export const get = (path, signal) => request("GET", path, undefined, signal);
export const post = (path, body = {}, signal) => request("POST", path, body, signal);
export const remove = (path, body) => request("DELETE", path, body);

async function request(method, path, body, signal) {
  const options = { method, signal, headers: { Accept: "application/json" } };
  if (body !== undefined) {
    options.headers["Content-Type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  const response = await answerOf(path, options);
  if (response.ok) {
    return response.status === 204 ? null : response.json();
  }
  const error = await errorOf(response);
  if (error.status === UNAUTHORIZED && path !== "/login") {
    connection.dispatchEvent(new Event("token-needed"));
  }
  throw error;
}

async function answerOf(path, options) {
  try {
    const response = await fetch(path, options);
    connection.dispatchEvent(new Event("answer"));
    return response;
  } catch (error) {
    if (error.name === "AbortError") {
      throw error;
    }
    connection.dispatchEvent(new Event("no-answer"));
    throw new ApiError(NO_ANSWER, "The server does not answer. Is it still running?");
  }
}

async function errorOf(response) {
  let error = {};
  try {
    const answer = await response.json();
    error = answer.error ?? {};
  } catch {
    // Something between here and the server answered, such as a proxy: it has no sentence.
  }
  const message = error.message ?? `The server answered with status ${response.status}.`;
  return new ApiError(response.status, message, error.param ?? null, error.code ?? null);
}

/** The path of an API with names in it, each escaped: path`/v1/runs/${name}/stop`. */
export function path(texts, ...names) {
  return texts.reduce((whole, text, place) => whole + encodeURIComponent(names[place - 1]) + text);
}

/**
 * Listens to server-sent events; handlers by the event's name get its data. The browser connects
 * again by itself after an interruption, and continues behind the last event that it had. Where it
 * gives up, since the answer was an error, it is made to try again later.
 *
 * @returns a function that ends it
 */
export function listen(address, handlers) {
  let source = null;
  let timer = 0;
  const open = () => {
    source = new EventSource(address);
    for (const [name, handler] of Object.entries(handlers)) {
      source.addEventListener(name, (event) => handler(JSON.parse(event.data)));
    }
    source.addEventListener("error", () => {
      if (source.readyState === EventSource.CLOSED) {
        timer = setTimeout(open, MILLISECONDS_UNTIL_REOPENED);
      }
    });
  };
  open();
  return () => {
    clearTimeout(timer);
    source.close();
  };
}

/**
 * Calls an async function now and again, not while the page is hidden, and at once when it is
 * shown again. A failure is tried again, later each time.
 */
export class Poll {
  constructor(call, secondsUntilNext) {
    this.call = call;
    this.secondsUntilNext = secondsUntilNext; // () -> number
    this.failures = 0;
    this.isClosed = false;
    this.onVisible = () => {
      if (!document.hidden) {
        this.now();
      }
    };
    document.addEventListener("visibilitychange", this.onVisible);
    this.now();
  }

  /** Calls now; a call that is under way is followed by another. */
  async now() {
    if (this.isRunning) {
      this.isWanted = true;
      return;
    }
    clearTimeout(this.timer);
    this.isRunning = true;
    try {
      await this.call();
      this.failures = 0;
    } catch (error) {
      if (!(error instanceof ApiError)) {
        console.error(error);
      }
      this.failures += 1;
    }
    this.isRunning = false;
    this.plan();
  }

  plan() {
    if (this.isClosed || document.hidden) {
      return;
    }
    const patience = Math.min(2 ** this.failures, 16);
    const seconds = this.isWanted ? 0 : this.secondsUntilNext() * patience;
    this.isWanted = false;
    this.timer = setTimeout(() => this.now(), seconds * 1000);
  }

  close() {
    this.isClosed = true;
    clearTimeout(this.timer);
    document.removeEventListener("visibilitychange", this.onVisible);
  }
}
