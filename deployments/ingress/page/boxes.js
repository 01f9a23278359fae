// Boxes over a photo: an SVG whose unit is a pixel of the photo, at any size on the screen.

import { makeSvg } from "./elements.js";
import { isFound } from "./found.js";

/**
 * Make the SVG that lies over a photo.
 * @param {number} width of the upright photo, pixels
 * @param {number} height of the upright photo, pixels
 */
export function overlay(width, height) {
  const viewBox = `0 0 ${width} ${height}`;
  return makeSvg("svg", { class: "overlay", viewBox, "aria-hidden": "true" });
}

/**
 * Replace the boxes of an overlay; the last ones are on top.
 * @param {SVGElement} svg
 * @param {{box: number[], quad: ?number[][], kind: string}[]} boxes a quad is drawn instead of its
 *     box; `kind` is a class of style.css: best, match, detection, tile or whole
 */
export function drawBoxes(svg, boxes) {
  svg.replaceChildren(
    ...boxes.map(({ kind, ...place }) => {
      // A light line on a dark one is visible on any photo.
      const lines = ["casing", "line"].map((line) => shape(place, line));
      return makeSvg("g", { class: `box ${kind}` }, ...lines);
    }),
  );
}

function shape({ box, quad }, line) {
  if (quad) return makeSvg("polygon", { points: quad.join(" "), class: line });
  const [x1, y1, x2, y2] = box;
  return makeSvg("rect", { x: x1, y: y1, width: x2 - x1, height: y2 - y1, class: line });
}

/**
 * Return the boxes of a match: its quad if it was verified, else those of its chunks. The nearest
 * is strong and on top, the others are thin.
 */
export function matchBoxes(match) {
  if (isFound(match)) return [{ quad: match.quad, kind: "best" }];
  return match.chunks
    .map(({ box }, rank) => ({ box, kind: rank === 0 ? "best" : "match" }))
    .reverse();
}
