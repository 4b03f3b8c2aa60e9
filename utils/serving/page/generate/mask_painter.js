// A mask that is painted over a picture with the mouse, a pen or a finger.

import { button, element } from "../lib/dom.js";
import { Field, numberInput } from "../lib/fields.js";

const SHOWN_PIXELS = 320; // of the longer side on the page
const BRUSH_SHARE = 0.15; // of the shorter side of the picture
const PAINT = "rgb(60 110 255 / 65%)"; // seen on grey, and on most colours

export class MaskPainter {
  constructor(onChange) {
    this.onChange = onChange;
    this.canvas = element("canvas", {
      class: "mask-canvas",
      role: "img",
      "aria-label": "The picture: paint over what is to be made anew",
    });
    this.mask = document.createElement("canvas"); // white on black, in pixels of the images
    this.pencil = this.mask.getContext("2d", { willReadFrequently: true });
    this.brush = new Field("Brush, in pixels", numberInput({ min: 1, step: 1 }));
    const clear = button({ class: "quiet", onclick: () => this.clear() }, "Clear the mask");
    this.node = element(
      "div",
      { class: "mask-painter", hidden: true },
      this.canvas,
      element("div", { class: "pair" }, this.brush.node, clear),
    );
    this.last = null;
    this.isPainted = false;
    this.canvas.addEventListener("pointerdown", (event) => this.begin(event));
    this.canvas.addEventListener("pointermove", (event) => this.move(event));
    for (const kind of ["pointerup", "pointercancel"]) {
      this.canvas.addEventListener(kind, () => this.end());
    }
  }

  /** Shows a picture (a data URL; null: none) as images of [height, width] will cut it. */
  async show(address, [height, width]) {
    this.address = address;
    this.node.hidden = true;
    if (address === null) {
      return;
    }
    const image = new Image();
    image.src = address;
    try {
      await image.decode();
    } catch {
      return; // the server says what is wrong with it
    }
    if (this.address !== address) {
      return; // another one has been chosen meanwhile
    }
    this.image = image;
    for (const canvas of [this.canvas, this.mask]) {
      canvas.width = width;
      canvas.height = height;
    }
    const scale = SHOWN_PIXELS / Math.max(width, height);
    this.canvas.style.width = `${width * scale}px`;
    this.canvas.style.aspectRatio = `${width} / ${height}`;
    this.brush.value = Math.max(1, Math.round(BRUSH_SHARE * Math.min(width, height)));
    this.node.hidden = false;
    this.clear();
  }

  clear() {
    this.pencil.fillStyle = "black";
    this.pencil.fillRect(0, 0, this.mask.width, this.mask.height);
    this.isPainted = false;
    this.draw();
    this.onChange();
  }

  begin(event) {
    event.preventDefault();
    this.canvas.setPointerCapture(event.pointerId);
    this.last = this.placeOf(event);
    this.stroke(this.last);
  }

  move(event) {
    if (this.last !== null) {
      this.stroke(this.placeOf(event));
    }
  }

  end() {
    if (this.last !== null) {
      this.last = null;
      this.onChange();
    }
  }

  placeOf(event) {
    const box = this.canvas.getBoundingClientRect();
    return [
      ((event.clientX - box.left) * this.mask.width) / box.width,
      ((event.clientY - box.top) * this.mask.height) / box.height,
    ];
  }

  stroke(place) {
    const context = this.pencil;
    context.strokeStyle = "white";
    context.lineCap = "round";
    context.lineWidth = this.brush.number ?? 1;
    context.beginPath();
    context.moveTo(...this.last);
    context.lineTo(place[0] + 0.01, place[1]); // a line of no length is not drawn
    context.stroke();
    this.last = place;
    this.isPainted = true;
    this.draw();
  }

  draw() {
    const { width, height } = this.canvas;
    const context = this.canvas.getContext("2d");
    context.globalCompositeOperation = "source-over";
    const scale = Math.max(
      width / this.image.naturalWidth,
      height / this.image.naturalHeight,
    );
    const [across, down] = [this.image.naturalWidth * scale, this.image.naturalHeight * scale];
    context.clearRect(0, 0, width, height);
    context.drawImage(this.image, (width - across) / 2, (height - down) / 2, across, down);
    context.drawImage(this.overlay(), 0, 0);
  }

  /** What is painted, see-through, on nothing. */
  overlay() {
    const layer = document.createElement("canvas");
    layer.width = this.mask.width;
    layer.height = this.mask.height;
    const context = layer.getContext("2d");
    const pixels = this.pencil.getImageData(0, 0, layer.width, layer.height);
    for (let place = 0; place < pixels.data.length; place += 4) {
      pixels.data[place + 3] = pixels.data[place]; // white is seen, black is not
    }
    context.putImageData(pixels, 0, 0);
    context.globalCompositeOperation = "source-in";
    context.fillStyle = PAINT;
    context.fillRect(0, 0, layer.width, layer.height);
    return layer;
  }

  /** The mask as base64 of a PNG; null where nothing is painted. */
  get text() {
    if (this.node.hidden || !this.isPainted) {
      return null;
    }
    const address = this.mask.toDataURL("image/png");
    return address.slice(address.indexOf(",") + 1);
  }
}
