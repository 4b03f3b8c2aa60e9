// Numbers, times and names as people read them.

const whole = new Intl.NumberFormat("en");

/** 12345 -> "12,345" */
export function count(number) {
  return whole.format(number);
}

/** count(1, "image") -> "1 image", "2 images" */
export function counted(number, noun) {
  const plural = /(s|sh|ch|x)$/.test(noun) ? `${noun}es` : `${noun}s`;
  return `${count(number)} ${number === 1 ? noun : plural}`;
}

/** A measured value with four significant digits: 0.2145, 1.834e-5 */
export function measure(value) {
  if (value === null || value === undefined || Number.isNaN(value)) {
    return "–";
  }
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) {
    return value.toExponential(2);
  }
  return String(Number(value.toPrecision(4)));
}

/** 3.2 -> "3.2 s", 75 -> "1 min 15 s", 8000 -> "2 h 13 min" */
export function duration(seconds) {
  if (seconds < 0.05) {
    return "under 0.1 s";
  }
  if (seconds < 10) {
    return `${seconds.toFixed(1)} s`;
  }
  const rounded = Math.round(seconds);
  if (rounded < 60) {
    return `${rounded} s`;
  }
  const minutes = Math.floor(rounded / 60);
  if (minutes < 60) {
    return minutes < 10 ? `${minutes} min ${rounded % 60} s` : `${minutes} min`;
  }
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ${minutes % 60} min` : `${Math.round(hours / 24)} days`;
}

/** 5242880 -> "5.2 MB" */
export function bytes(number) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let value = number;
  let unit = 0;
  while (value >= 1000 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${unit === 0 || value >= 100 ? Math.round(value) : value.toFixed(1)} ${units[unit]}`;
}

/** Unix seconds -> "14:05" today, "3 May, 14:05" this year, "3 May 2025" before. */
export function moment(seconds) {
  const date = new Date(seconds * 1000);
  const now = new Date();
  const time = date.toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit" });
  if (date.toDateString() === now.toDateString()) {
    return time;
  }
  const day = date.toLocaleDateString("en-GB", { day: "numeric", month: "short" });
  return date.getFullYear() === now.getFullYear()
    ? `${day}, ${time}`
    : `${day} ${date.getFullYear()}`;
}

/** [28, 28] -> "28 × 28", height first as everywhere in this project. */
export function size(sides) {
  return `${sides[0]} × ${sides[1]}`;
}

/** A text as (part of) a file name: without what a system forbids, and not too long. */
export function fileName(text) {
  // eslint-disable-next-line no-control-regex
  const allowed = String(text).replace(/[\u0000-\u001f\u007f<>:"/\\|?*]+/g, "_");
  return (
    allowed
      .replace(/^[.\s]+/, "")
      .slice(0, 80)
      .trim() || "image"
  );
}

const WORDS = {
  act: "activation",
  amp: "mixed precision",
  lr: "learning rate",
  lr_func: "learning rate schedule",
  mode: "colour mode",
  num_vis: "images per preview",
  optim: "optimizer",
  sample: "sampler",
  use_gpu: "GPU",
  vis: "previews",
  vis_interval_epochs: "epochs between previews",
};

/** A name as people say it: "lr" -> "learning rate", "held_out_loss" -> "held-out loss" */
export function words(name) {
  return WORDS[name] ?? name.replace("held_out", "held-out").replaceAll("_", " ");
}
