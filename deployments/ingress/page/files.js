// Collects files that were dropped or chosen. From folders it takes those that look like photos.

// What the service reads, some of it only with an extra; without it, its answer says so. Browsers
// don't know all of them. scripts/common/photos.py has the same list.
const SUFFIXES = (
  ".jpg .jpeg .jpe .jfif .mpo .png .apng .webp .avif .gif .tif .tiff .bmp .jp2 .j2k .j2c .jpc " +
  ".jpf .jpx .heic .heif .hif .jxl .dng .cr2 .cr3 .nef .arw .raf .orf .rw2"
).split(" ");
const NAMED_SUFFIXES = 8; // in a sentence

/** What a file picker offers. */
export const ACCEPTED = ["image/*", ...SUFFIXES].join();

/** Return the suffix of a file in lower case, as `.jpg`; "" if it has none. */
const suffixOf = (file) => file.name.match(/[^.](\.[^.]+)$/)?.[1].toLowerCase() ?? "";

const looksLikePhoto = (file) => SUFFIXES.includes(suffixOf(file));

/**
 * Return which files were left out: `10 .txt, 2 .mp4`.
 * @param {string[]} suffixes of the files
 */
export function kindsOf(suffixes) {
  const counts = new Map();
  for (const suffix of suffixes) counts.set(suffix, (counts.get(suffix) ?? 0) + 1);
  const sorted = [...counts].sort(([, one], [, other]) => other - one);
  const kinds = sorted.map(([suffix, number]) => `${number} ${suffix || "without a suffix"}`);
  const rest = sorted.slice(NAMED_SUFFIXES).reduce((sum, [, number]) => sum + number, 0);
  return [...kinds.slice(0, NAMED_SUFFIXES), ...(rest ? [`${rest} others`] : [])].join(", ");
}

/**
 * Collect the files of a drop, folders included.
 * @param {DataTransfer} transfer
 * @returns {Promise<{files: File[], leftOut: string[]}>} `leftOut`: the suffixes of the files in
 *     folders that don't look like photos
 */
export async function filesOf(transfer) {
  // The browser empties the list of items at the first `await`.
  const entries = [...transfer.items]
    .filter((item) => item.kind === "file")
    .map((item) => item.webkitGetAsEntry?.() ?? item.getAsFile())
    .filter(Boolean);
  const found = { files: [], leftOut: [] };
  for (const entry of entries) await collect(entry, found, false);
  return found;
}

/** Collect the files of a folder that was chosen. */
export function filesOfFolder(list) {
  const others = [...list].filter((file) => !looksLikePhoto(file));
  return { files: [...list].filter(looksLikePhoto), leftOut: others.map(suffixOf) };
}

async function collect(entry, found, inFolder) {
  if (entry.isDirectory) {
    const reader = entry.createReader();
    // It returns at most a hundred at a time, and none at the end.
    for (;;) {
      const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
      if (some.length === 0) return;
      for (const one of some) await collect(one, found, true);
    }
  }
  const file =
    entry instanceof File
      ? entry
      : await new Promise((resolve, reject) => entry.file(resolve, reject));
  if (!inFolder || looksLikePhoto(file)) found.files.push(file);
  else found.leftOut.push(suffixOf(file));
}
