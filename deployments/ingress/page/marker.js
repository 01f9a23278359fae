// Marks a part of a photo with a rectangle, by mouse, finger or keyboard.

import { announce, makeSvg } from "./elements.js";

const DRAG_PX = 4; // a shorter drag is a click
const GRIP_PX = { mouse: 8, pen: 14, touch: 22 }; // how near to an edge a press grips it
const STEP = 1 / 64; // of the longest side, for one press of an arrow key
const LEAST = 8; // smallest side of the rectangle, pixels of the photo

/**
 * A rectangle on a photo. Fires "change" when it changes, "commit" when it was drawn or confirmed
 * with Enter (`detail.asked`), and "click" for a press that draws nothing (`detail.point`).
 */
export class Marker extends EventTarget {
  /** x1, y1, x2, y2 in pixels of the photo; null if nothing is marked. */
  box = null;
  /** Whether dragging draws. */
  enabled = true;

  #drag = null;

  /**
   * @param {HTMLElement} surface receives pointer and key events
   * @param {SVGElement} svg the overlay, which covers the photo exactly
   * @param {{width: number, height: number, touch: boolean}} options size of the photo in pixels;
   *     whether fingers draw too
   * @param {AbortSignal} signal removes the listeners
   */
  constructor(surface, svg, { width, height, touch }, signal) {
    super();
    Object.assign(this, { surface, svg, width, height, touch });
    this.layer = svg.appendChild(makeSvg("g", { class: "marked" }));
    const listen = (name, handler) =>
      surface.addEventListener(name, handler.bind(this), { signal });
    listen("pointerdown", this.#press);
    listen("pointermove", this.#move);
    listen("pointerup", this.#release);
    listen("pointercancel", this.#cancel);
    listen("keydown", this.#key);
  }

  /** Mark a part, or nothing (null). */
  mark(box) {
    const changed = String(box) !== String(this.box);
    this.box = box;
    this.#draw();
    if (changed) this.dispatchEvent(new Event("change"));
  }

  #point({ clientX, clientY }) {
    const { left, top, width, height } = this.svg.getBoundingClientRect();
    return [((clientX - left) / width) * this.width, ((clientY - top) / height) * this.height];
  }

  /** Return which edges are near: -1, 0 or 1 for x and for y; null if none is. */
  #grip(event) {
    if (!this.box) return null;
    const reach = GRIP_PX[event.pointerType] ?? GRIP_PX.mouse;
    const { width, height } = this.svg.getBoundingClientRect();
    const near = [(reach / width) * this.width, (reach / height) * this.height];
    const edges = this.#point(event).map((at, axis) => {
      const [low, high] = [this.box[axis], this.box[axis + 2]];
      if (at < low - near[axis] || at > high + near[axis]) return null;
      // Both edges of a small rectangle may be near: take the nearer one.
      const distances = [Math.abs(at - low), Math.abs(at - high)];
      if (Math.min(...distances) > near[axis]) return 0;
      return distances[0] < distances[1] ? -1 : 1;
    });
    return edges.includes(null) || edges.every((edge) => edge === 0) ? null : edges;
  }

  #press(event) {
    if (this.#drag) {
      this.#cancel(); // a second finger makes it a pinch
      return;
    }
    const draws = event.pointerType !== "touch" || this.touch;
    if (!this.enabled || !draws || event.button !== 0 || !event.isPrimary) return;
    this.surface.focus({ preventScroll: true });
    event.preventDefault();
    this.surface.setPointerCapture(event.pointerId);
    const { clientX, clientY, pointerId } = event;
    this.#drag = {
      pointerId,
      client: [clientX, clientY],
      from: this.#point(event),
      before: this.box,
      grip: this.#grip(event),
      moved: false,
    };
  }

  #move(event) {
    const drag = this.#drag;
    if (event.pointerId !== drag?.pointerId) return;
    const way = Math.hypot(event.clientX - drag.client[0], event.clientY - drag.client[1]);
    if (!drag.moved && way < DRAG_PX) return;
    drag.moved = true;
    const at = this.#point(event);
    const box = drag.grip ? [...drag.before] : [...drag.from, ...at];
    drag.grip?.forEach((edge, axis) => {
      if (edge) box[edge < 0 ? axis : axis + 2] = at[axis];
    });
    this.mark(this.#proper(box));
  }

  #release(event) {
    const drag = this.#drag;
    if (event.pointerId !== drag?.pointerId) return;
    this.#drag = null;
    if (drag.moved) this.#commit(false);
    else this.dispatchEvent(new CustomEvent("click", { detail: { point: drag.from } }));
  }

  #cancel() {
    if (!this.#drag) return;
    const { before } = this.#drag;
    this.#drag = null;
    this.mark(before);
  }

  #commit(asked) {
    this.dispatchEvent(new CustomEvent("commit", { detail: { asked } }));
  }

  /** Order the corners, keep them within the photo, round to pixels, and enforce `LEAST`. */
  #proper(box) {
    const limits = [this.width, this.height];
    const proper = [0, 0, 0, 0];
    limits.forEach((limit, axis) => {
      const within = (at) => Math.round(Math.max(0, Math.min(limit, at)));
      const ends = [within(box[axis]), within(box[axis + 2])];
      const least = Math.min(LEAST, limit);
      const low = Math.min(...ends, limit - least);
      proper[axis] = low;
      proper[axis + 2] = Math.max(...ends, low + least);
    });
    return proper;
  }

  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target !== this.surface) return;
    const direction = {
      ArrowLeft: [-1, 0],
      ArrowRight: [1, 0],
      ArrowUp: [0, -1],
      ArrowDown: [0, 1],
    }[event.key];
    if (event.key === "Enter") {
      if (this.box) this.#commit(true);
      else this.mark(this.#middle());
    } else if (event.key === "Escape" && this.box) {
      this.mark(null);
    } else if (direction && this.box) {
      this.#step(direction, event.shiftKey);
    } else {
      return;
    }
    event.preventDefault();
    event.stopPropagation();
    this.#announce();
  }

  #middle() {
    const { width, height } = this;
    return this.#proper([width / 4, height / 4, (3 * width) / 4, (3 * height) / 4]);
  }

  #step(direction, resize) {
    const step = Math.max(1, Math.round(Math.max(this.width, this.height) * STEP));
    const box = [...this.box];
    direction.forEach((sign, axis) => {
      const size = box[axis + 2] - box[axis];
      if (resize) {
        // The edge must not pass the other one.
        box[axis + 2] = Math.max(box[axis] + Math.min(LEAST, size), box[axis + 2] + sign * step);
      } else {
        const limit = [this.width, this.height][axis] - size;
        box[axis] = Math.max(0, Math.min(limit, box[axis] + sign * step));
        box[axis + 2] = box[axis] + size;
      }
    });
    this.mark(this.#proper(box));
  }

  #announce() {
    if (!this.box) return announce("Nothing is marked.");
    const [x1, y1, x2, y2] = this.box;
    announce(`Marked: ${x2 - x1} by ${y2 - y1} pixels, ${x1} from the left, ${y1} from the top.`);
  }

  #draw() {
    if (!this.box) return this.layer.replaceChildren();
    const { width, height } = this;
    const [x1, y1, x2, y2] = this.box;
    const hole = `M0 0H${width}V${height}H0ZM${x1} ${y1}V${y2}H${x2}V${y1}Z`;
    // Lines of length 0 with round ends are dots whose size doesn't depend on the photo's.
    const corners = [x1, x2].flatMap((x) => [y1, y2].map((y) => `M${x} ${y}h0`)).join("");
    const place = { x: x1, y: y1, width: x2 - x1, height: y2 - y1 };
    this.layer.replaceChildren(
      makeSvg("path", { class: "shade", d: hole, "fill-rule": "evenodd" }),
      makeSvg("rect", { class: "casing", ...place }),
      makeSvg("rect", { class: "line", ...place }),
      makeSvg("path", { class: "corners-casing", d: corners }),
      makeSvg("path", { class: "corners", d: corners }),
    );
  }
}
