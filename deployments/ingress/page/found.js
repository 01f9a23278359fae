// A photo that was found: what was noticed about the query's place in it, in words and as a shape.

const WHOLE = 0.95; // from this share on it counts as all of the query
const TURNED = 5; // degrees; less is not worth a word
const LARGER = 1.25; // and a scale within this factor isn't, either

/** Return whether a match was verified. */
export const isFound = ({ verified, quad }) => verified === true && Boolean(quad);

/**
 * Return what was noticed about a match that was verified, in words: at least one.
 * @param {object} match as `/search` answers it
 * @param {?{width: number, height: number}} size of the query in pixels, if it is known
 */
export function noticed(match, size) {
  const words = [];
  const share = shareOf(match, size);
  if (share < WHOLE) words.push(`${amount(share)} of it`);
  if (match.mirrored) words.push("mirrored");
  if (Math.abs(match.rotation) > TURNED) words.push(`turned by ${degrees(match.rotation)}°`);
  if (match.scale >= LARGER) words.push(`${factor(match.scale)} × larger here`);
  if (match.scale <= 1 / LARGER) words.push(`${factor(1 / match.scale)} × smaller here`);
  return words.length ? words : ["all of it"];
}

/** Return the share of the query that is in the photo, 0 to 1. */
export function shareOf({ coverage, part }, size) {
  if (!size) return coverage;
  const [x1, y1, x2, y2] = part;
  return coverage * Math.min(1, ((x2 - x1) * (y2 - y1)) / (size.width * size.height));
}

/** Return a share in words. */
export function amount(share) {
  if (share >= WHOLE) return "all";
  return Math.abs(share - 0.5) < 0.05 ? "half" : `${Math.max(1, Math.round(100 * share))} %`;
}

/** Return how much something is turned: whole degrees, and right angles where it is nearly one. */
export function degrees(rotation) {
  const turned = Math.abs(rotation);
  const right = 90 * Math.round(turned / 90);
  return Math.abs(turned - right) <= 2 ? right : Math.round(turned);
}

const factor = (scale) => (scale < 10 ? Number(scale.toFixed(1)) : Math.round(scale));

/** Return the bounds of a quad: x1, y1, x2, y2. */
export function boundsOf(quad) {
  const [xs, ys] = [0, 1].map((axis) => quad.map((corner) => corner[axis]));
  return [Math.min(...xs), Math.min(...ys), Math.max(...xs), Math.max(...ys)];
}

/**
 * Return the CSS transform that lays a picture on a quad.
 * @param {number} width of the picture, CSS pixels; its origin is its top left corner
 * @param {number} height
 * @param {number[][]} quad where its corners come to lie: top left, top right, bottom right,
 *     bottom left
 */
export function layOn(width, height, [[x0, y0], [x1, y1], [x2, y2], [x3, y3]]) {
  // The projective map of the unit square, after Heckbert; g and h are 0 for a parallelogram.
  const [sx, sy] = [x0 - x1 + x2 - x3, y0 - y1 + y2 - y3];
  const [ax, ay, bx, by] = [x1 - x2, y1 - y2, x3 - x2, y3 - y2];
  const area = ax * by - bx * ay;
  const g = (sx * by - bx * sy) / area;
  const h = (ax * sy - sx * ay) / area;
  const across = [x1 - x0 + g * x1, y1 - y0 + g * y1, 0, g].map((value) => value / width);
  const down = [x3 - x0 + h * x3, y3 - y0 + h * y3, 0, h].map((value) => value / height);
  return `matrix3d(${[...across, ...down, 0, 0, 1, 0, x0, y0, 0, 1].join(",")})`;
}
