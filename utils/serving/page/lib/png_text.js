// The text entries of a PNG file (PNG specification, 11.3.3): generate.py and the server write
// there how an image was made.

const SIGNATURE = [137, 80, 78, 71, 13, 10, 26, 10];
const LONGEST_CHUNK = 1 << 20; // bytes of a text that is read

/**
 * The entries by their keywords, of tEXt, zTXt and iTXt chunks; the first of a keyword counts.
 *
 * @param buffer ArrayBuffer, the whole file
 * @throws Error with a sentence where it is no PNG file or is cut off
 */
export async function pngTexts(buffer) {
  const entries = {};
  for (const { type, data } of chunksOf(new Uint8Array(buffer))) {
    const read = READERS[type];
    if (read === undefined || data.length > LONGEST_CHUNK) {
      continue;
    }
    const [keyword, text] = await read(data);
    if (!Object.hasOwn(entries, keyword)) {
      entries[keyword] = text;
    }
  }
  return entries;
}

function* chunksOf(bytes) {
  if (!SIGNATURE.every((byte, place) => bytes[place] === byte)) {
    throw new Error("it is not a PNG file. Settings are kept in PNG files only");
  }
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let place = SIGNATURE.length;
  while (place + 12 <= bytes.length) {
    const length = view.getUint32(place);
    const type = latin1(bytes.subarray(place + 4, place + 8));
    if (place + 12 + length > bytes.length) {
      throw new Error("the file is cut off");
    }
    yield { type, data: bytes.subarray(place + 8, place + 8 + length) };
    if (type === "IEND") {
      return;
    }
    place += 12 + length;
  }
}

const READERS = { tEXt: readText, zTXt: readCompressedText, iTXt: readInternationalText };

function readText(data) {
  const [keyword, text] = splitAtZero(data);
  return [latin1(keyword), latin1(text)];
}

async function readCompressedText(data) {
  const [keyword, rest] = splitAtZero(data);
  return [latin1(keyword), latin1(await inflate(rest.subarray(1)))]; // 1: the method
}

async function readInternationalText(data) {
  const [keyword, rest] = splitAtZero(data);
  const isCompressed = rest[0] === 1;
  const [, afterLanguage] = splitAtZero(rest.subarray(2)); // 2: whether compressed, the method
  const [, text] = splitAtZero(afterLanguage); // behind the translated keyword
  const bytes = isCompressed ? await inflate(text) : text;
  return [latin1(keyword), new TextDecoder().decode(bytes)];
}

function splitAtZero(bytes) {
  const zero = bytes.indexOf(0);
  const end = zero < 0 ? bytes.length : zero;
  return [bytes.subarray(0, end), bytes.subarray(end + 1)];
}

/** Up to LONGEST_CHUNK bytes of it: what is longer is not a setting. */
async function inflate(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const reader = stream.getReader();
  const inflated = [];
  let length = 0;
  while (length < LONGEST_CHUNK) {
    const { done, value } = await reader.read();
    if (done) {
      break;
    }
    inflated.push(value);
    length += value.length;
  }
  reader.cancel();
  return new Uint8Array(await new Blob(inflated).arrayBuffer());
}

function latin1(bytes) {
  return Array.from(bytes, (byte) => String.fromCharCode(byte)).join("");
}
