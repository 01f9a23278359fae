// Collects files that were dropped or chosen. From folders it takes those that look like photos.

// Formats that the service reads, some of which browsers don't know.
const SUFFIXES =
  /\.(avif|bmp|dds|gif|heic|ico|j2k|jfif|jp2|jpe?g|pcx|p[bgnp]m|png|psd|qoi|sgi|tga|tiff?|webp)$/i;

/** Return whether a file looks like a photo, by its type or its name. */
export const looksLikePhoto = (file) => file.type.startsWith("image/") || SUFFIXES.test(file.name);

/**
 * Collect the files of a drop, folders included.
 * @param {DataTransfer} transfer
 * @returns {Promise<{files: File[], leftOut: number}>} `leftOut`: files of folders that don't look
 *     like photos
 */
export async function filesOf(transfer) {
  // The browser empties the list of items at the first `await`.
  const entries = [...transfer.items]
    .filter((item) => item.kind === "file")
    .map((item) => item.webkitGetAsEntry?.() ?? item.getAsFile())
    .filter(Boolean);
  const found = { files: [], leftOut: 0 };
  for (const entry of entries) await collect(entry, found, false);
  return found;
}

/** Collect the files of a folder that was chosen. */
export function filesOfFolder(list) {
  const files = [...list].filter(looksLikePhoto);
  return { files, leftOut: list.length - files.length };
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
  else found.leftOut += 1;
}
