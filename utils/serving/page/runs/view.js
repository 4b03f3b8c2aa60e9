// Runs: the list of all with their curves side by side, or one run.

import { element } from "../lib/dom.js";
import { RunDetail } from "./detail.js";
import { RunList } from "./list.js";

export class RunsView {
  constructor(place, server) {
    this.place = element("div", {});
    this.server = server;
    place.append(this.place);
  }

  go({ item, query }) {
    const isSame = this.part !== undefined && this.part.item === item;
    if (isSame) {
      this.part.go?.(query);
      return;
    }
    this.part?.close();
    this.part = item === "" ? new RunList() : new RunDetail(item, this.server);
    this.part.item = item;
    this.place.replaceChildren(this.part.node);
    this.part.go?.(query);
    scrollTo(0, 0);
  }

  close() {
    this.part?.close();
  }
}
