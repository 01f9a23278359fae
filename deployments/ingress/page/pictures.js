// Keeps the pictures that were dropped, pasted or chosen to search with, while the page is open.

const KEPT = 20; // so many, for the back button
const pictures = new Map();
let last = 0;

/** Remember a picture; return its key. */
export function remember(blob) {
  last += 1;
  const key = `${performance.timeOrigin}/${last}`; // unique, because the history outlives the page
  pictures.set(key, { blob, name: blob.name ?? "pasted picture", url: URL.createObjectURL(blob) });
  if (pictures.size > KEPT) {
    const [oldest, { url }] = pictures.entries().next().value;
    URL.revokeObjectURL(url);
    pictures.delete(oldest);
  }
  return key;
}

/** Return a picture (`blob`, `name`, `url`); undefined if the page was reloaded since. */
export const recall = (key) => pictures.get(key);
