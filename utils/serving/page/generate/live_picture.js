// The estimate of a job's images while they are denoised.

import { element } from "../lib/dom.js";
import { picture } from "./gallery.js";

const PIXELS_UNTIL = 640; // of the picture's width; as large as it is shown

export class LivePicture {
  constructor() {
    this.node = element("div", {});
    this.image = null;
  }

  show(address) {
    if (this.image === null) {
      this.image = picture(address, "The images so far", { class: "live" }, PIXELS_UNTIL);
      this.node.replaceChildren(this.image);
    } else {
      this.image.src = address;
    }
  }

  clear() {
    this.image = null;
    this.node.replaceChildren();
  }
}
