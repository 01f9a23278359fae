// Lays the query over the photo that contains it, at its place, up to a line that can be moved:
// left of the line is the query, and right of it the photo.

import { byId, make } from "./elements.js";
import { boundsOf, layOn } from "./found.js";

/** The query over a photo. Its lengths are pixels of the photo; the canvas knows their scale. */
export class Comparison {
  /** Share of the place that shows the query, 0 to 1. */
  share = 0.5;

  #bounds;
  #box;
  #grip;
  #layer;

  /**
   * @param {HTMLElement} canvas has the photo, and the property `--scale` of Zoom
   * @param {{width: number, height: number}} photo
   * @param {{quad: number[][], box: number[], part: number[]}} match where the query is, and what
   *     of that lies in the photo; and the part of the query's picture that is there
   * @param {{url: string, width: number, height: number}} query its picture
   * @param {AbortSignal} signal removes the listeners
   */
  constructor(canvas, photo, { quad, box, part }, query, signal) {
    this.canvas = canvas;
    this.#bounds = boundsOf(quad);
    this.#box = box;
    const [left, top, right, bottom] = part;
    const picture = make("img", { src: query.url, alt: "", draggable: "false" });
    place(picture, -left, -top, query.width, query.height);
    const piece = make("div", { class: "laid-piece" }, picture);
    place(piece, 0, 0, right - left, bottom - top);
    piece.style.transform = layOn(right - left, bottom - top, quad);
    this.#layer = make("div", { class: "laid", "aria-hidden": "true" }, piece);
    place(this.#layer, 0, 0, photo.width, photo.height);
    const [before, after] = ["Query", "Photo"].map((word) => make("span", {}, word));
    const arrows = make("span", { class: "wipe-arrows" });
    this.#grip = make(
      "div",
      { class: "wipe", "aria-hidden": "true" },
      make("div", { class: "wipe-line" }),
      make("div", { class: "wipe-grip" }, before, arrows, after),
    );
    canvas.style.setProperty("--top", this.#bounds[1]);
    canvas.style.setProperty("--bottom", this.#bounds[3]);
    this.#grip.addEventListener("pointerdown", (event) => this.#drag(event), { signal });
    this.wipe(this.share);
  }

  /** Put it over the photo, below the boxes; or take it away. */
  show(shown, below) {
    if (shown) {
      this.canvas.insertBefore(this.#layer, below);
      this.canvas.append(this.#grip);
    } else {
      this.#layer.remove();
      this.#grip.remove();
    }
  }

  /** Move the line. */
  wipe(share) {
    this.share = Math.max(0, Math.min(1, share));
    // At its ends it leaves nothing or all of the query, also of what lies beyond the photo.
    const [left, , right] = this.share % 1 === 0 ? this.#bounds : this.#box;
    this.canvas.style.setProperty("--wipe", left + this.share * (right - left));
  }

  #drag(event) {
    if (event.button !== 0) return;
    // The stage must not mark or move anything.
    event.stopPropagation();
    event.preventDefault();
    const grip = this.#grip;
    const [left, , right] = this.#box;
    const { left: edge } = this.canvas.getBoundingClientRect();
    const scale = Number(this.canvas.style.getPropertyValue("--scale"));
    const at = ({ clientX }) => ((clientX - edge) / scale - left) / (right - left);
    const offset = this.share - at(event); // the grip may be beside the line
    const ending = new AbortController();
    const listen = (name, handler) =>
      grip.addEventListener(name, handler, { signal: ending.signal });
    grip.setPointerCapture(event.pointerId);
    listen("pointermove", (moved) => {
      moved.stopPropagation();
      this.wipe(at(moved) + offset);
      byId("compare-share").value = Math.round(100 * this.share);
    });
    for (const name of ["pointerup", "pointercancel"]) {
      listen(name, (released) => {
        released.stopPropagation();
        ending.abort();
      });
    }
  }
}

function place(element, left, top, width, height) {
  const lengths = { left, top, width, height };
  for (const [name, value] of Object.entries(lengths)) element.style[name] = `${value}px`;
}
