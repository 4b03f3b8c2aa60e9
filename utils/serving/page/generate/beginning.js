// What images begin with, where it is not the noise of their seeds alone: a picture, two seeds.

import { element, show } from "../lib/dom.js";
import { Field, numberInput, selectInput } from "../lib/fields.js";
import { PictureField } from "../lib/picture_field.js";
import { MaskPainter } from "./mask_painter.js";

const CHANGED = "change";
const FILLED = "fill";
const WIDENED = "outpaint";
const BLENDED = "interpolate";
const INVERTED = "invert";
const KINDS = [
  { value: "", text: "noise" },
  { value: CHANGED, text: "a picture, changed as a whole" },
  { value: FILLED, text: "a picture, part of it painted anew" },
  { value: WIDENED, text: "a picture, borders painted around it" },
  { value: BLENDED, text: "noise between two seeds" },
  { value: INVERTED, text: "the noise of a picture" },
];
const WITH_PICTURE = [CHANGED, FILLED, WIDENED, INVERTED];
const USUAL_STRENGTH = { [CHANGED]: 0.6, [FILLED]: 1, [WIDENED]: 1 };

export class Beginning {
  constructor(limits) {
    const mostBytes = limits.max_body;
    const text = { inputmode: "numeric", autocomplete: "off" };
    this.kind = new Field("Begin with", selectInput(KINDS));
    this.picture = new PictureField("Picture", { mostBytes });
    this.painter = new MaskPainter(() => this.mask.fault(null));
    this.mask = new PictureField("Mask", {
      mostBytes,
      hint: "A picture that is white where to paint, instead of painting here.",
    });
    this.strength = new Field("Strength", numberInput({ min: 0, max: 1, step: "any" }), {
      hint: "The share of the steps that are made: little keeps much of the picture.",
    });
    this.repeats = new Field("Repeats", numberInput({ min: 1, max: 100, step: 1 }), {
      hint: "How often each step is made, so that both parts agree better.",
    });
    this.borders = new Field("Borders", element("input", { ...text, placeholder: "8, 8, 8, 8" }), {
      hint: "Pixels at the top, right, bottom and left.",
    });
    this.seeds = new Field("Two seeds", element("input", { ...text, placeholder: "3, 8" }));
    this.repeats.control.placeholder = 1;
    this.size = [1, 1];
    this.picture.onChange = () => this.showPicture();
    this.mask.onChange = () => this.showPicture();
    this.kind.control.addEventListener("change", () => this.showKind());
    this.node = element(
      "div",
      { class: "beginning" },
      this.kind.node,
      this.picture.node,
      this.painter.node,
      this.mask.node,
      this.borders.node,
      this.seeds.node,
      element("div", { class: "pair" }, this.strength.node, this.repeats.node),
    );
    this.showKind();
  }

  /** For images of [height, width]. */
  setSize(size) {
    if (String(size) !== String(this.size)) {
      this.size = size;
      this.showPicture();
    }
  }

  showKind() {
    const kind = this.kind.value;
    show(this.picture.node, WITH_PICTURE.includes(kind));
    show(this.mask.node, kind === FILLED);
    show(this.borders.node, kind === WIDENED);
    show(this.seeds.node, kind === BLENDED);
    show(this.strength.node, kind in USUAL_STRENGTH);
    show(this.repeats.node, kind === FILLED || kind === WIDENED);
    this.strength.control.placeholder = USUAL_STRENGTH[kind] ?? "";
    this.showPicture();
  }

  showPicture() {
    const isPainted = this.kind.value === FILLED && this.mask.isEmpty && !this.picture.isEmpty;
    this.painter.show(isPainted ? this.picture.pictures[0].address : null, this.size);
  }

  /** Names of the API -> the fields that the server may find fault with. */
  get fieldOfParam() {
    return {
      init_image: this.picture,
      invert: this.picture,
      mask: this.mask,
      strength: this.strength,
      repeats: this.repeats,
      outpaint: this.borders,
      interpolate: this.seeds,
    };
  }

  /** The fields with which something is wrong, when all files have been read. */
  async faulty() {
    await Promise.all([this.picture.reading, this.mask.reading]);
    const kind = this.kind.value;
    const faulty = [this.strength, this.repeats].filter(
      (field) => !field.node.hidden && !field.check(),
    );
    const need = (field, isThere, sentence) => {
      if (!isThere) {
        field.fault(sentence);
        faulty.push(field);
      }
    };
    if (WITH_PICTURE.includes(kind)) {
      need(this.picture, !this.picture.isEmpty, "Choose a picture.");
    }
    if (kind === FILLED && !this.picture.isEmpty) {
      const isThere = !this.mask.isEmpty || this.painter.text !== null;
      need(this.mask, isThere, "Paint over the picture above, or choose a mask.");
    }
    if (kind === WIDENED) {
      need(this.borders, numbersOf(this.borders, 4), "Four numbers, such as 8, 8, 8, 8.");
    }
    if (kind === BLENDED) {
      need(this.seeds, numbersOf(this.seeds, 2), "Two numbers, such as 3, 8.");
    }
    return faulty;
  }

  /** Without pictures, in the words of the API: what the browser may keep. */
  settings() {
    const kind = this.kind.value;
    const all = {
      strength: kind in USUAL_STRENGTH ? this.strength.number : null,
      repeats: kind === FILLED || kind === WIDENED ? this.repeats.number : null,
      outpaint: kind === WIDENED ? numbersOf(this.borders, 4) : null,
      interpolate: kind === BLENDED ? numbersOf(this.seeds, 2) : null,
    };
    return Object.fromEntries(Object.entries(all).filter(([, value]) => value !== null));
  }

  pictures() {
    const kind = this.kind.value;
    if (!WITH_PICTURE.includes(kind)) {
      return {};
    }
    const [picture] = this.picture.texts;
    if (kind === INVERTED) {
      return { invert: picture };
    }
    const mask = kind === FILLED ? (this.mask.texts[0] ?? this.painter.text) : null;
    return mask === null ? { init_image: picture } : { init_image: picture, mask };
  }

  /** Takes over how a job began; returns what is missing, in words. */
  apply(settings) {
    const pictures = settings.pictures ?? [];
    this.kind.value = kindOf(settings, pictures);
    this.strength.value = settings.strength ?? "";
    this.repeats.value = settings.repeats ?? "";
    this.borders.value = (settings.outpaint ?? []).join(", ");
    this.seeds.value = (settings.interpolate ?? []).join(", ");
    this.showKind();
    const isMissing = pictures.length > 0 && this.picture.isEmpty;
    return isMissing ? ["its picture has to be chosen again"] : [];
  }
}

function kindOf(settings, pictures) {
  if (settings.interpolate) {
    return BLENDED;
  }
  if (settings.outpaint) {
    return WIDENED;
  }
  if (pictures.includes("invert")) {
    return INVERTED;
  }
  if (pictures.includes("mask")) {
    return FILLED;
  }
  return pictures.includes("init_image") ? CHANGED : "";
}

/** "8, 8, 0, 8" -> [8, 8, 0, 8]; null for anything but so many whole numbers */
function numbersOf(field, wanted) {
  const parts = field.value.split(",").map((part) => part.trim());
  const areGood = parts.length === wanted && parts.every((part) => /^\d{1,10}$/.test(part));
  return areGood ? parts.map(Number) : null;
}
