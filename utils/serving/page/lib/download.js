// Saving what the page made or the server has.

import { element } from "./dom.js";

/** Hands a Blob to the browser as a file. */
export function saveBlob(blob, name) {
  const address = URL.createObjectURL(blob);
  const link = element("a", { href: address, download: name, hidden: true });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
}

/** The bytes of an image of the server. Throws Error with a sentence where it has gone. */
export async function fetchBytes(address) {
  const response = await fetch(address);
  if (!response.ok) {
    throw new Error("An image is no longer on the server.");
  }
  return new Uint8Array(await response.arrayBuffer());
}
