// The images of a finished job, and saving them.

import { button, element, icon, onPress } from "../lib/dom.js";
import { count, fileName } from "../lib/format.js";
import { fetchImage, saveBlob } from "../lib/download.js";
import { zip } from "../lib/zip.js";

const SHOWN_AT_FIRST = 24;
const ENDINGS = { png: "png", webp: "webp", jpeg: "jpg" };
const DOWNLOADS_AT_ONCE = 4;

// Images of fewer pixels are shown as pixels; larger ones are smoothed.
const PIXELS_UNTIL = 100;

/** The file name of an image when it is saved. */
export function imageName(job, image) {
  const ending = ENDINGS[job.request.image_format] ?? job.request.image_format;
  const parts = [job.request.weight, image.class, job.request.sample, image.seed];
  const known = parts.filter((part) => part !== null && part !== undefined && part !== "");
  return `${fileName(known.join("_"))}.${ending}`;
}

export function imageTitle(image) {
  return image.class ? `${image.class}, seed ${image.seed}` : `seed ${image.seed}`;
}

/** An <img> of the server; one of fewer pixels is not smoothed. */
export function picture(address, alt, attributes = {}, pixelsUntil = PIXELS_UNTIL) {
  const image = element("img", { alt, decoding: "async", ...attributes });
  image.addEventListener("load", () => {
    const isSmall = Math.max(image.naturalWidth, image.naturalHeight) < pixelsUntil;
    image.classList.toggle("pixels", isSmall);
  });
  image.addEventListener("error", () => image.classList.add("gone"));
  image.src = address;
  return image;
}

/**
 * The grid of images.
 *
 * @param actions {open(place): shows one of them large, onError(sentence)}
 */
export function gallery(job, { open, onError }) {
  const images = job.result.images;
  const grid = element("ul", { class: "gallery" });
  const node = element("div", {}, grid);
  const addFrom = (start, end) => {
    for (let place = start; place < Math.min(end, images.length); place += 1) {
      grid.append(tile(job, images[place], () => open(place), onError));
    }
  };
  addFrom(0, SHOWN_AT_FIRST);
  if (images.length > SHOWN_AT_FIRST) {
    const more = button({ class: "quiet" }, `Show all ${count(images.length)} images`);
    more.addEventListener("click", () => {
      addFrom(SHOWN_AT_FIRST, images.length);
      more.remove();
      grid.children[SHOWN_AT_FIRST].querySelector("button").focus();
    });
    node.append(more);
  }
  return node;
}

function tile(job, image, open, onError) {
  const title = imageTitle(image);
  const save = button({ class: "save icon-only", title: "Download" }, icon("download"));
  save.setAttribute("aria-label", `Download ${title}`);
  onPress(save, () => saveImage(job, image).catch((error) => onError(error.message)));
  return element(
    "li",
    { class: "tile" },
    button(
      { class: "tile-open", onclick: open, title },
      picture(image.url, title, { loading: "lazy" }),
    ),
    save,
    element(
      "p",
      { class: "tile-text" },
      image.class ? element("span", { class: "one-line" }, image.class) : null,
      element("span", { class: "muted number" }, String(image.seed)),
    ),
  );
}

/** Saves one image. Throws Error with a sentence. */
export async function saveImage(job, image) {
  saveBlob(await fetchImage(image.url), imageName(job, image));
}

/**
 * Saves all images of these jobs as one ZIP archive, named by weight, class, sampler and seed.
 *
 * @param onProgress (done, all)
 */
export async function saveAll(jobs, onProgress) {
  const wanted = jobs.flatMap((job) => job.result.images.map((image) => ({ job, image })));
  const files = new Array(wanted.length);
  let next = 0;
  let done = 0;
  const work = async () => {
    while (next < wanted.length) {
      const place = next;
      next += 1;
      const { job, image } = wanted[place];
      const number = String(place).padStart(5, "0");
      const blob = await fetchImage(image.url);
      const bytes = new Uint8Array(await blob.arrayBuffer());
      files[place] = { name: `${number}_${imageName(job, image)}`, bytes };
      done += 1;
      onProgress(done, wanted.length);
    }
  };
  await Promise.all(Array.from({ length: DOWNLOADS_AT_ONCE }, work));
  saveBlob(zip(files), `${fileName(jobs[0].request.weight)}_${jobs[0].id.slice(0, 8)}.zip`);
}
