// Pictures that were dropped, pasted or chosen to search with, while the page is open.

const KEPT = 20; // so that the back button finds them
const pictures = new Map();
let last = 0;

/** Remember a picture; returns its key. */
export function remember(blob) {
  last += 1;
  const key = `${performance.timeOrigin}/${last}`; // the history outlives the page
  pictures.set(key, { blob, name: blob.name ?? "pasted picture", url: URL.createObjectURL(blob) });
  if (pictures.size > KEPT) {
    const [oldest, { url }] = pictures.entries().next().value;
    URL.revokeObjectURL(url);
    pictures.delete(oldest);
  }
  return key;
}

/** The picture of a key: `blob`, `name` and `url`; none if the page was loaded anew since. */
export const recall = (key) => pictures.get(key);
