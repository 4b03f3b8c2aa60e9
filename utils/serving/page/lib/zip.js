// A ZIP archive of files that are compressed already: method "store", no compression.
// Layout: APPNOTE.TXT 6.3 of PKWARE, sections 4.3.7 (local header), 4.3.12 (central directory)
// and 4.3.16 (end). Without ZIP64, so up to 65,535 files and 4 GiB.

const LOCAL_HEADER = 0x04034b50;
const CENTRAL_HEADER = 0x02014b50;
const END_RECORD = 0x06054b50;
const VERSION = 20; // 2.0
const NAMES_ARE_UTF8 = 1 << 11;
const STORE = 0;

/**
 * @param files [{name, bytes: Uint8Array}], names without two alike
 * @param date  when they were made
 * @returns a Blob
 */
export function zip(files, date = new Date()) {
  const parts = [];
  const directory = [];
  let offset = 0;
  for (const file of files) {
    const name = new TextEncoder().encode(file.name);
    const common = commonFields(name, file.bytes, date);
    const header = fields([4, LOCAL_HEADER], ...common);
    parts.push(header, name, file.bytes);
    directory.push(centralHeader(common, offset), name);
    offset += header.length + name.length + file.bytes.length;
  }
  const directorySize = directory.reduce((sum, part) => sum + part.length, 0);
  const end = fields(
    [4, END_RECORD],
    [2, 0], // this disk
    [2, 0], // the directory's disk
    [2, files.length],
    [2, files.length],
    [4, directorySize],
    [4, offset],
    [2, 0], // length of the comment
  );
  return new Blob([...parts, ...directory, end], { type: "application/zip" });
}

/** What the header before a file and its entry in the directory both say. */
function commonFields(name, bytes, date) {
  return [
    [2, VERSION],
    [2, NAMES_ARE_UTF8],
    [2, STORE],
    [2, dosTime(date)],
    [2, dosDate(date)],
    [4, crc32(bytes)],
    [4, bytes.length], // compressed
    [4, bytes.length], // uncompressed
    [2, name.length],
    [2, 0], // length of the extra field
  ];
}

function centralHeader(common, offset) {
  return fields(
    [4, CENTRAL_HEADER],
    [2, VERSION], // made by
    ...common,
    [2, 0], // length of the comment
    [2, 0], // disk
    [2, 0], // internal attributes
    [4, 0], // external attributes
    [4, offset],
  );
}

/** Numbers of so many bytes each, little-endian. */
function fields(...sizesAndValues) {
  const length = sizesAndValues.reduce((sum, [size]) => sum + size, 0);
  const view = new DataView(new ArrayBuffer(length));
  let place = 0;
  for (const [size, value] of sizesAndValues) {
    if (size === 2) {
      view.setUint16(place, value, true);
    } else {
      view.setUint32(place, value, true);
    }
    place += size;
  }
  return new Uint8Array(view.buffer);
}

function dosTime(date) {
  return (date.getHours() << 11) | (date.getMinutes() << 5) | (date.getSeconds() >> 1);
}

function dosDate(date) {
  return ((date.getFullYear() - 1980) << 9) | ((date.getMonth() + 1) << 5) | date.getDate();
}

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let value = byte;
  for (let bit = 0; bit < 8; bit += 1) {
    value = value & 1 ? 0xedb88320 ^ (value >>> 1) : value >>> 1;
  }
  return value;
});

export function crc32(bytes) {
  let crc = 0xffffffff;
  for (const byte of bytes) {
    crc = CRC_TABLE[(crc ^ byte) & 0xff] ^ (crc >>> 8);
  }
  return (crc ^ 0xffffffff) >>> 0;
}
