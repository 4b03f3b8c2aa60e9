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

/** An image of the server, as a Blob. Throws Error with a sentence where it cannot be had. */
export async function fetchImage(address) {
  let response;
  try {
    response = await fetch(address);
  } catch {
    throw new Error("The server does not answer. Is it still running?");
  }
  if (!response.ok) {
    throw new Error("This image is no longer on the server.");
  }
  return response.blob();
}
