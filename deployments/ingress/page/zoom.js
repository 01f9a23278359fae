// Zooms and moves a photo: by wheel, pinch, drag, buttons and keys.

const FIT_AT_MOST = 4; // a small photo is enlarged at most so much to fill the stage
const MOST = 8; // CSS pixels for a pixel of the photo
const WHEEL = 0.0015;
const PINCH_WHEEL = 0.01; // browsers report a pinch on a touchpad as a wheel with Ctrl
const STEP = 1.4;
const KEY_PX = 60;
const ROOM = 0.8; // share of the stage that a part fills which is shown large

/** Places a canvas, which has the photo and its overlay, on a stage. */
export class Zoom {
  /** Whether dragging with one pointer moves the photo. */
  dragMoves = false;

  #scale = 1; // CSS pixels for a pixel of the photo
  #fit = 1;
  #left = 0;
  #top = 0;
  #pointers = new Map();

  /**
   * @param {HTMLElement} stage the visible area
   * @param {HTMLElement} canvas
   * @param {AbortSignal} signal removes the listeners
   */
  constructor(stage, canvas, { width, height }, signal) {
    Object.assign(this, { stage, canvas, width, height });
    const listen = (name, handler, options) =>
      stage.addEventListener(name, handler.bind(this), { signal, ...options });
    listen("wheel", this.#wheel, { passive: false });
    listen("pointerdown", this.#press);
    listen("pointermove", this.#move);
    listen("pointerup", this.#release);
    listen("pointercancel", this.#release);
    listen("keydown", this.#key);
    const observer = new ResizeObserver(() => this.#resize());
    observer.observe(stage);
    signal.addEventListener("abort", () => observer.disconnect());
    this.#resize();
  }

  /** Show the whole photo. */
  fit() {
    this.#scale = this.#fit;
    this.#place();
  }

  /** Zoom by a factor, about a point of the window or the middle of the stage. */
  by(factor, x, y) {
    const { left, top, width, height } = this.stage.getBoundingClientRect();
    const [atX, atY] = x === undefined ? [width / 2, height / 2] : [x - left, y - top];
    const scale = this.#within(this.#scale * factor);
    const change = scale / this.#scale;
    this.#left = atX - (atX - this.#left) * change;
    this.#top = atY - (atY - this.#top) * change;
    this.#scale = scale;
    this.#place();
  }

  /** Show a part of the photo as large as it fits, in the middle. */
  to([x1, y1, x2, y2]) {
    const { clientWidth, clientHeight } = this.stage;
    const room = Math.min(clientWidth / (x2 - x1), clientHeight / (y2 - y1)) * ROOM;
    this.#scale = this.#within(room);
    this.#left = clientWidth / 2 - (this.#scale * (x1 + x2)) / 2;
    this.#top = clientHeight / 2 - (this.#scale * (y1 + y2)) / 2;
    this.#place();
  }

  zoomIn() {
    this.by(STEP);
  }

  zoomOut() {
    this.by(1 / STEP);
  }

  #within(scale) {
    return Math.max(this.#fit, Math.min(Math.max(MOST, this.#fit), scale));
  }

  #resize() {
    const { clientWidth, clientHeight } = this.stage;
    if (!clientWidth || !clientHeight) return;
    const fitted = this.#scale === this.#fit;
    this.#fit = Math.min(clientWidth / this.width, clientHeight / this.height, FIT_AT_MOST);
    if (fitted || this.#scale < this.#fit) this.#scale = this.#fit;
    this.#place();
  }

  /**
   * Lay the canvas out. It gets a size and no scale, so that lines keep their width. What lies on
   * it and has to be scaled finds the scale in `--scale`.
   */
  #place() {
    const [width, height] = [this.width * this.#scale, this.height * this.#scale];
    const within = (at, size, room) =>
      size <= room ? (room - size) / 2 : Math.max(room - size, Math.min(0, at));
    this.#left = within(this.#left, width, this.stage.clientWidth);
    this.#top = within(this.#top, height, this.stage.clientHeight);
    this.canvas.style.setProperty("--scale", this.#scale);
    Object.assign(this.canvas.style, {
      width: `${width}px`,
      height: `${height}px`,
      transform: `translate(${this.#left}px, ${this.#top}px)`,
    });
  }

  #pan(x, y) {
    this.#left += x;
    this.#top += y;
    this.#place();
  }

  #wheel(event) {
    event.preventDefault();
    const lines = event.deltaMode === WheelEvent.DOM_DELTA_LINE ? 16 : 1;
    const strength = event.ctrlKey ? PINCH_WHEEL : WHEEL;
    this.by(Math.exp(-event.deltaY * lines * strength), event.clientX, event.clientY);
  }

  #press(event) {
    this.#pointers.set(event.pointerId, event);
    if (event.pointerType === "mouse" && event.button === 1) event.preventDefault();
    if (this.#moves(event)) this.stage.setPointerCapture(event.pointerId);
  }

  /** Return whether this pointer moves the photo rather than marking it. */
  #moves(event) {
    return this.#pointers.size > 1 || this.dragMoves || (event.buttons & 4) > 0;
  }

  #move(event) {
    const before = this.#pointers.get(event.pointerId);
    if (!before) return;
    this.#pointers.set(event.pointerId, event);
    if (!this.#moves(event)) return;
    const others = [...this.#pointers.values()].filter((other) => other !== event);
    if (others.length === 0) {
      this.#pan(event.clientX - before.clientX, event.clientY - before.clientY);
    } else if (others.length === 1) {
      // A pinch: the middle of the two fingers moves the photo, and their distance zooms.
      const [other] = others;
      const distance = ({ clientX, clientY }) =>
        Math.hypot(clientX - other.clientX, clientY - other.clientY);
      this.#pan((event.clientX - before.clientX) / 2, (event.clientY - before.clientY) / 2);
      const [x, y] = [(event.clientX + other.clientX) / 2, (event.clientY + other.clientY) / 2];
      this.by(distance(event) / Math.max(1, distance(before)), x, y);
    }
  }

  #release(event) {
    this.#pointers.delete(event.pointerId);
  }

  #key(event) {
    if (event.defaultPrevented || event.target !== this.stage) return;
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const action = {
      "+": () => this.zoomIn(),
      "=": () => this.zoomIn(),
      "-": () => this.zoomOut(),
      0: () => this.fit(),
      ArrowLeft: () => this.#pan(KEY_PX, 0),
      ArrowRight: () => this.#pan(-KEY_PX, 0),
      ArrowUp: () => this.#pan(0, KEY_PX),
      ArrowDown: () => this.#pan(0, -KEY_PX),
    }[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  }
}
