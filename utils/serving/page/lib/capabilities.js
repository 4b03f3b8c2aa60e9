// What the server can do: its weights, samplers and limits.

import { get } from "./api.js";

export async function loadCapabilities() {
  return new Capabilities(await get("/v1/capabilities"));
}

export class Capabilities {
  constructor(answer) {
    this.take(answer);
  }

  take(answer) {
    this.name = answer.name || "Diffusion";
    this.weights = answer.weights.filter((weight) => weight.kind === "diffusion");
    this.defaultWeight = answer.default_weight;
    this.upscalers = answer.weights.filter((weight) => answer.upscalers.includes(weight.name));
    this.samplers = answer.samplers;
    this.imageFormats = answer.image_formats;
    this.limits = answer.limits ?? {};
    this.defaults = answer.defaults ?? {};
    this.trains = answer.features?.training === true;
  }

  /** Asks again: a run may have been promoted, or deleted. */
  async refresh() {
    this.take(await get("/v1/capabilities"));
  }

  weight(name) {
    return this.weights.find((weight) => weight.name === name);
  }
}
