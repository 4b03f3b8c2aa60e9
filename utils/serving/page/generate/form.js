// What is to be generated. What stays empty is left to the server.

import { button, element, icon, notice, setOff, setText, show, whileBusy } from "../lib/dom.js";
import { Field, checkbox, numberInput, selectInput, setChoices } from "../lib/fields.js";
import { count, counted, size } from "../lib/format.js";
import { PictureField } from "../lib/picture_field.js";
import { remember, remembered } from "../lib/storage.js";
import { Beginning } from "./beginning.js";

const LARGEST_SEED = 2 ** 32 - 1;
const REMEMBERED = "generate-form";
const EVERY_CLASS = "";
const SEVERAL_CLASSES = "several";
const CLASS_MARK = "class "; // before a class in its choice's value: a class may have any name

// Where the server's error belongs: names of the request -> fields
const FIELD_OF_PARAM = {
  weight: "weight",
  class_name: "className",
  num_images: "count",
  sample: "sampler",
  sample_steps: "steps",
  cfg_scale: "guidance",
  seed: "seed",
  image_size: "size",
  condition: "condition",
  image_format: "format",
  upscale: "upscale",
};

export class GenerateForm {
  /** @param onSubmit async (requests) -> nothing; requests: one, or one for each sampler */
  constructor(server, onSubmit) {
    this.server = server;
    this.onSubmit = onSubmit;
    this.fields = this.makeFields();
    this.beginning = new Beginning(server.limits);
    this.classBoxes = [];
    this.classChoice = element(
      "fieldset",
      { class: "sampler-choice", hidden: true },
      element("legend", {}, "Classes"),
    );
    this.samplers = server.samplers.map((name) => checkbox(name, { value: name }));
    this.comparing = checkbox("Compare samplers at equal seeds");
    this.comparing.box.addEventListener("change", () => this.showComparing());
    this.error = notice();
    this.submitButton = element("button", { class: "primary wide" }, "Generate");
    this.node = this.makeNode();
    this.takeCapabilities();
    this.apply(remembered(REMEMBERED, {}));
    this.showComparing();
    this.node.addEventListener("input", () => this.changed());
  }

  makeFields() {
    const { limits, defaults } = this.server;
    const whole = { step: 1, min: 1 };
    const dice = button(
      { class: "quiet icon-only", title: "Draw a seed", onclick: () => this.drawSeed() },
      icon("dice"),
    );
    dice.setAttribute("aria-label", "Draw a seed");
    const seed = numberInput({ min: 0, max: LARGEST_SEED, step: 1, placeholder: "random" });
    return {
      weight: new Field("Weight", selectInput(), { hint: " " }),
      className: new Field("Class", selectInput()),
      condition: new PictureField("Condition", { mostBytes: limits.max_body, several: true }),
      count: new Field(
        "Images",
        numberInput({ ...whole, max: limits.max_images, value: defaults.num_images ?? 4 }),
      ),
      sampler: new Field("Sampler", selectInput(this.server.samplers)),
      steps: new Field(
        "Steps",
        numberInput({ ...whole, max: limits.max_steps }),
      ),
      guidance: new Field(
        "Guidance",
        numberInput({ min: 0, step: "any" }),
      ),
      seed: new Field("Seed", seed, { beside: dice }),
      size: new Field("Size", element("input", { inputmode: "numeric", autocomplete: "off" })),
      format: new Field("Format", selectInput(this.server.imageFormats)),
      upscale: new Field("Enlarge with", selectInput()),
    };
  }

  makeNode() {
    const fields = this.fields;
    const samplerChoice = element(
      "fieldset",
      { class: "sampler-choice", hidden: true },
      element("legend", {}, "Samplers"),
      ...this.samplers.map((sampler) => sampler.node),
    );
    this.samplerChoice = samplerChoice;
    return element(
      "form",
      { class: "panel generate-form", novalidate: true, onsubmit: (event) => this.submit(event) },
      fields.weight.node,
      fields.condition.node,
      fields.className.node,
      this.classChoice,
      element("div", { class: "pair" }, fields.count.node, fields.seed.node),
      fields.sampler.node,
      samplerChoice,
      this.comparing.node,
      element("div", { class: "pair" }, fields.steps.node, fields.guidance.node),
      element("div", { class: "pair" }, fields.size.node, fields.format.node),
      fields.upscale.node,
      this.beginning.node,
      this.error.node,
      this.submitButton,
    );
  }

  /** Weights and upscalers as the server has them now. */
  takeCapabilities() {
    const { weights, upscalers } = this.server;
    const isFirst = this.shownWeight === undefined;
    setChoices(
      this.fields.weight.control,
      weights.map((weight) => weight.name),
    );
    if (isFirst && this.server.weight(this.server.defaultWeight) !== undefined) {
      this.fields.weight.value = this.server.defaultWeight;
    }
    const enlarging = upscalers.map(({ name, scale }) => ({
      value: name,
      text: scale ? `${name} (${scale} ×)` : name,
    }));
    setChoices(this.fields.upscale.control, [{ value: "", text: "nothing" }, ...enlarging]);
    show(this.fields.upscale.node, upscalers.length > 0);
    setOff(this.submitButton, weights.length === 0);
    this.showWeight();
  }

  get weight() {
    return this.server.weight(this.fields.weight.value);
  }

  /** What goes with the weight that is chosen: its classes, size and guidance. */
  showWeight() {
    const weight = this.weight;
    if (weight === undefined) {
      this.shownWeight = undefined;
      return;
    }
    const { className, weight: field, size: sizeField, steps, guidance, sampler } = this.fields;
    const classes = weight.classes ?? [];
    const kind = ["L", "I;16"].includes(weight.mode) ? "grey" : "colour";
    const about = [`${size(weight.image_size)} ${kind}`];
    about.push(classes.length > 0 ? counted(classes.length, "class") : "no classes");
    about.push(`${count(weight.noise_steps)} steps in training`);
    field.remark(about.join(" · "));
    setChoices(className.control, [
      { value: EVERY_CLASS, text: "every class in turn" },
      ...classes.map((name) => ({ value: CLASS_MARK + name, text: name })),
      ...(classes.length > 1 ? [{ value: SEVERAL_CLASSES, text: "several at once …" }] : []),
    ]);
    show(className.node, classes.length > 0);
    if (this.shownWeight !== weight.name) {
      this.classBoxes = classes.map((name) => checkbox(name, { value: name }));
      const [legend] = this.classChoice.children;
      this.classChoice.replaceChildren(legend, ...this.classBoxes.map(({ node }) => node));
    }
    this.showClasses();
    this.showCondition(weight.condition ?? null);
    sizeField.control.placeholder = weight.image_size.join(", ");
    sizeField.remark("");
    if (weight.downsample_factor > 1) {
      sizeField.remark(`multiples of ${weight.downsample_factor}`);
    }
    steps.control.placeholder = weight.sample_steps ?? "";
    guidance.control.disabled = !weight.guidance;
    const usual = weight.usual_guidance;
    guidance.control.placeholder = usual.guide_scale === 1 ? usual.cfg_scale : "by its guide";
    guidance.remark(weight.guidance ? "" : "not trained in this weight");
    if (this.shownWeight !== weight.name) {
      sampler.value = weight.sampler;
    }
    this.shownWeight = weight.name;
  }

  showClasses() {
    show(this.classChoice, this.fields.className.value === SEVERAL_CLASSES);
  }

  /** What steers the images of a weight, which it cannot do without; null: nothing does. */
  showCondition(condition) {
    const { condition: field } = this.fields;
    show(field.node, condition !== null);
    if (condition === null) {
      return;
    }
    const kind =
      condition.kind === "labels"
        ? `label map of the numbers ${condition.labels.join(", ")}`
        : `${condition.mode === "L" ? "grey" : "colour"} picture`;
    field.remark(`A ${kind} for each image, or for several in turn.`);
  }

  /** The class or classes that are chosen, as the API names them; null: all in turn. */
  get className() {
    const { value } = this.fields.className;
    if (value === SEVERAL_CLASSES) {
      const chosen = this.classBoxes.filter(({ box }) => box.checked).map(({ box }) => box.value);
      return chosen.length > 0 ? chosen.join(",") : null;
    }
    return value.startsWith(CLASS_MARK) ? value.slice(CLASS_MARK.length) : null;
  }

  /** Of the images, borders that are painted not included. */
  get imageSize() {
    const [height, width = height] = [sizeOf(this.fields.size.value) ?? []].flat();
    return height === undefined ? (this.weight?.image_size ?? [1, 1]) : [height, width];
  }

  showComparing() {
    const isComparing = this.comparing.box.checked;
    show(this.samplerChoice, isComparing);
    show(this.fields.sampler.node, !isComparing);
    const chosen = this.samplers.filter(({ box }) => box.checked);
    if (isComparing && chosen.length === 0) {
      for (const { box } of this.samplers) {
        box.checked = true;
      }
    }
    setText(this.submitButton, isComparing ? "Generate with each" : "Generate");
  }

  drawSeed() {
    const [seed] = crypto.getRandomValues(new Uint32Array(1));
    this.fields.seed.value = seed;
    this.fields.seed.fault(null);
    this.changed();
  }

  changed() {
    this.error.say(null);
    if (this.fields.weight.value !== this.shownWeight) {
      this.showWeight();
    }
    this.showClasses();
    this.beginning.setSize(this.imageSize);
    remember(REMEMBERED, this.settings());
  }

  /** What is in the form, in the words of the API; what is empty is left out. */
  settings() {
    const { fields, weight } = this;
    const all = {
      weight: fields.weight.value || null,
      class_name: this.className,
      num_images: fields.count.number,
      sample: fields.sampler.value,
      sample_steps: fields.steps.number,
      cfg_scale: weight?.guidance ? fields.guidance.number : null,
      seed: fields.seed.number,
      image_size: sizeOf(fields.size.value),
      image_format: fields.format.value,
      upscale: fields.upscale.value || null,
      ...this.beginning.settings(),
    };
    return Object.fromEntries(Object.entries(all).filter(([, value]) => value !== null));
  }

  /** What is in the form and not for the browser to keep. */
  pictures() {
    const steered = this.weight?.condition ? { condition: this.fields.condition.texts } : {};
    return { ...this.beginning.pictures(), ...steered };
  }

  /**
   * Puts settings into the form; what is not among them stays. Returns what could not be used, in
   * words.
   */
  apply(settings) {
    const { fields, server } = this;
    const unused = [];
    if (settings.weight !== undefined) {
      if (server.weight(settings.weight) === undefined) {
        unused.push(`the weight ${settings.weight} is not served here`);
      } else {
        fields.weight.value = settings.weight;
        this.showWeight();
      }
    }
    if (settings.class_name !== undefined) {
      const classes = this.weight?.classes ?? [];
      if (settings.class_name === null) {
        fields.className.value = EVERY_CLASS;
      } else if (classes.includes(settings.class_name)) {
        fields.className.value = CLASS_MARK + settings.class_name;
      } else if (settings.class_name.split(",").every((name) => classes.includes(name))) {
        fields.className.value = SEVERAL_CLASSES;
        const chosen = settings.class_name.split(",");
        this.classBoxes.forEach(({ box }) => (box.checked = chosen.includes(box.value)));
      } else {
        unused.push(`this weight has no class ${settings.class_name}`);
      }
    }
    if (settings.sample !== undefined) {
      if (server.samplers.includes(settings.sample)) {
        fields.sampler.value = settings.sample;
      } else {
        unused.push(`the sampler ${settings.sample} is not served here`);
      }
    }
    const isLed = (settings.guide_scale ?? 1) !== 1; // which an empty field asks for
    if (isLed && !isUsualGuide(settings, this.weight)) {
      unused.push("the page leads by a guide in the usual way of the weight alone");
    }
    const plain = {
      num_images: fields.count,
      sample_steps: fields.steps,
      cfg_scale: fields.guidance,
      seed: fields.seed,
      image_format: fields.format,
      upscale: fields.upscale,
    };
    for (const [name, field] of Object.entries(plain)) {
      if (settings[name] !== undefined) {
        field.value = field === fields.guidance && isLed ? "" : settings[name];
        field.fault(null);
      }
    }
    if (settings.image_size !== undefined) {
      fields.size.value = sizeWithout(settings.outpaint, settings.image_size).join(", ");
    }
    this.showClasses();
    unused.push(...this.beginning.apply(settings));
    this.beginning.setSize(this.imageSize);
    return unused;
  }

  submit(event) {
    event.preventDefault();
    this.error.say(null);
    whileBusy(this.submitButton, async () => {
      const faulty = await this.faulty();
      if (faulty.length > 0) {
        faulty[0].control.focus();
        return;
      }
      const requests = this.requests();
      if (requests.length === 0) {
        this.error.say("Choose the samplers to compare.");
        return;
      }
      try {
        await this.onSubmit(requests);
      } catch (error) {
        this.showError(error);
      }
    });
  }

  /** The fields with which something is wrong, when all files have been read. */
  async faulty() {
    const faulty = Object.values(this.fields).filter((field) => !field.check());
    const { size: sizeField, condition } = this.fields;
    if (sizeField.value.trim() !== "" && sizeOf(sizeField.value) === null) {
      sizeField.fault("A size is one number, or height and width such as 64, 96.");
      faulty.push(sizeField);
    }
    await condition.reading;
    if (!condition.node.hidden && condition.isEmpty) {
      condition.fault("This weight makes images of conditions: choose at least one.");
      faulty.push(condition);
    }
    return [...faulty, ...(await this.beginning.faulty())];
  }

  requests() {
    const settings = { ...this.settings(), ...this.pictures() };
    if (!this.comparing.box.checked) {
      return [settings];
    }
    const [drawn] = crypto.getRandomValues(new Uint32Array(1));
    const seed = settings.seed ?? drawn % 1_000_000;
    const chosen = this.samplers.filter(({ box }) => box.checked);
    return chosen.map(({ box }) => ({ ...settings, seed, sample: box.value }));
  }

  /** The server's sentence, beside the field that it speaks of. */
  showError(error) {
    const field =
      this.fields[FIELD_OF_PARAM[error.param]] ?? this.beginning.fieldOfParam[error.param];
    if (field === undefined || field.node.hidden) {
      this.error.say(error.message);
      return;
    }
    field.fault(error.message);
    field.control.focus();
  }
}

/** "64" -> 64, "64, 96" -> [64, 96] (height, width), anything else -> null */
function sizeOf(text) {
  const sides = text.split(/[,×x]/).map((side) => side.trim());
  if (sides.length > 2 || !sides.every((side) => /^\d{1,5}$/.test(side))) {
    return null;
  }
  return sides.length === 1 ? Number(sides[0]) : sides.map(Number);
}

/** The size of a job's images without the borders that were painted: height and width. */
function sizeWithout(borders, imageSize) {
  const [height, width = height] = [imageSize].flat();
  const [top, right, bottom, left] = borders ?? [0, 0, 0, 0];
  return [height - top - bottom, width - left - right];
}

/** Whether an empty field asks for this guide. A file of before there were labels to hold back has
 * none of them held back. */
function isUsualGuide(settings, weight) {
  const usual = weight?.usual_guidance;
  return (
    settings.guide_scale === usual?.guide_scale &&
    (settings.guide_labels ?? true) === usual?.guide_labels
  );
}
