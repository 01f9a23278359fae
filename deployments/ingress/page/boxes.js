// Boxes over a photo: SVG whose unit is the photo's pixel, whatever size the photo is shown at.

import { makeSvg } from "./elements.js";

/**
 * Make the SVG that lies over a photo.
 * @param {number} width of the upright photo, pixels
 * @param {number} height
 */
export function overlay(width, height) {
  const viewBox = `0 0 ${width} ${height}`;
  return makeSvg("svg", { class: "overlay", viewBox, "aria-hidden": "true" });
}

/**
 * Draw boxes into an overlay, in the place of those it has; the last ones come on top.
 * @param {SVGElement} svg
 * @param {{box: number[], kind: string}[]} boxes `kind` is a class of style.css: best, match,
 *     detection, tile or whole
 */
export function drawBoxes(svg, boxes) {
  svg.replaceChildren(
    ...boxes.map(({ box: [x1, y1, x2, y2], kind }) => {
      const place = { x: x1, y: y1, width: x2 - x1, height: y2 - y1 };
      // A dark line beneath a light one is seen on any photo.
      const lines = ["casing", "line"].map((line) => makeSvg("rect", { ...place, class: line }));
      return makeSvg("g", { class: `box ${kind}` }, ...lines);
    }),
  );
}

/** The boxes of a match: the nearest strong and on top, the others thin. */
export function matchBoxes(chunks) {
  return chunks
    .map(({ box }, rank) => ({ box, kind: rank === 0 ? "best" : "match" }))
    .reverse();
}
