// The dialog that shows one photo: zoomed, with its boxes, with a part marked to search with, and
// with the query laid over it if it was found there.

import { original, record, thumbnail } from "./api.js";
import { drawBoxes, overlay } from "./boxes.js";
import { browseOrder } from "./browse.js";
import { nameOf, similarity } from "./cards.js";
import { Comparison } from "./comparison.js";
import { deletion } from "./deletion.js";
import { byId, count, make, say } from "./elements.js";
import { amount, degrees, isFound, shareOf } from "./found.js";
import { Marker } from "./marker.js";
import { amend, go, leave, route } from "./route.js";
import {
  matchOf,
  queryPicture,
  querySize,
  queryToLay,
  resultOrder,
  results,
  searchPart,
} from "./search.js";
import { service } from "./service.js";
import { session } from "./session.js";
import { Zoom } from "./zoom.js";

const KINDS = {
  found: "Found here",
  match: "Matches",
  detection: "Objects",
  tile: "Tiles",
  whole: "Whole photo",
};

// The kinds of boxes to show, for all photos. Null: chunks that match are shown if the query was not
// found in the photo, and objects if no chunk matches either.
const wanted = { found: true, match: null, detection: null, tile: false, whole: false };

let opened = null; // the id of the photo shown, or "" for the picture that was dropped
let photo = null; // its record, or the size of a dropped picture
let chunks = []; // {box, source, label, confidence, distance?}
let found = null; // the match, if the query was found in the photo
let comparison = null; // of the query with the photo
let marker = null;
let zoom = null;
let opening = new AbortController(); // of the requests and listeners of this photo
let comparing = new AbortController(); // of those of the comparison

/** Open, change or close the dialog for a route. */
export function showViewer({ photo: id, marking }) {
  const next = id ?? (marking && queryPicture() ? "" : null);
  if (next === opened) return;
  if (next === null) {
    close();
  } else {
    opened = next;
    open();
  }
}

function close() {
  opened = photo = null;
  opening.abort();
  comparing.abort();
  byId("viewer").close();
  byId("canvas").replaceChildren();
  // The element that the dialog was opened from may be gone.
  if (document.activeElement === document.body) byId("main").focus({ preventScroll: true });
}

async function open() {
  opening.abort();
  comparing.abort();
  opening = new AbortController();
  const { signal } = opening;
  marker = zoom = photo = found = comparison = null;
  chunks = [];
  byId("compare").hidden = true;
  byId("canvas").replaceChildren();
  byId("viewer-name").textContent = "";
  byId("panel").hidden = true;
  byId("search-part").disabled = true;
  say(byId("viewer-problem"), null);
  showNeighbours();
  if (!byId("viewer").open) byId("viewer").showModal();
  if (opened === "") return showPicture(signal);
  try {
    photo = await record(opened, signal);
  } catch (problem) {
    if (signal.aborted) return;
    const missing = problem.status === 404 && !problem.passing;
    byId("viewer-name").textContent = missing ? "Photo not found" : "Waiting for the service";
    say(byId("viewer-problem"), problem.message);
    if (problem.passing) service.afterwards(problem, signal).then(open, () => {});
    return;
  }
  if (!signal.aborted) showPhoto(signal);
}

/** Show the picture that was dropped. It has no record. */
function showPicture(signal) {
  const { url, name } = queryPicture();
  byId("viewer-name").replaceChildren(make("bdi", {}, name));
  const image = make("img", { alt: name, draggable: "false" });
  image.addEventListener(
    "load",
    () => {
      photo = { width: image.naturalWidth, height: image.naturalHeight };
      lay([image], signal);
      if (route.box) marker.mark(route.box);
    },
    { signal, once: true },
  );
  image.src = url;
}

function showPhoto(signal) {
  const name = nameOf(photo);
  byId("viewer-name").replaceChildren(make("bdi", {}, name));
  findMatches();

  // The thumbnail is loaded quickly; the photo then replaces it.
  const small = make("img", { src: thumbnail(photo.id), alt: "", draggable: "false" });
  const large = make("img", { alt: name, draggable: "false", hidden: true });
  large.addEventListener(
    "load",
    () => {
      large.hidden = false;
      small.remove();
    },
    { signal, once: true },
  );
  large.addEventListener(
    "error",
    () => {
      small.alt = name;
      const sentence = `This browser can't show the photo itself (${photo.media_type}).`;
      say(byId("viewer-problem"), `${sentence} This is its thumbnail, enlarged.`);
    },
    { signal, once: true },
  );
  large.src = original(photo.id);
  lay([small, large], signal);
  showPanel();
  if (route.marking && route.box) marker.mark(route.box);
}

/** Take the photo's chunks, with their distances if it is among the results. */
function findMatches() {
  const key = ({ box, source }) => `${source} ${box}`;
  const match = route.view === "search" ? matchOf(photo.id) : undefined;
  found = match && isFound(match) ? match : null;
  const distances = new Map(match?.chunks.map((chunk) => [key(chunk), chunk.distance]));
  chunks = photo.chunks.map((chunk) => ({ ...chunk, distance: distances.get(key(chunk)) }));
}

function lay(images, signal) {
  const canvas = byId("canvas");
  const boxes = overlay(photo.width, photo.height);
  const marks = overlay(photo.width, photo.height);
  canvas.replaceChildren(...images, boxes, marks);
  // The marker comes first, because it takes the arrow keys while something is marked.
  marker = new Marker(byId("stage"), marks, { ...photo, touch: true }, signal);
  zoom = new Zoom(byId("stage"), canvas, photo, signal);
  marker.addEventListener("change", showMarked);
  marker.addEventListener("commit", ({ detail }) => {
    if (detail.asked) searchMarked();
  });
  marker.addEventListener("click", ({ detail }) => choose(detail.point));
  useTool();
  drawPhotoBoxes();
  compare();
}

// The query over the photo

/** Lay the query over the photo, if it was found there. */
async function compare() {
  comparing.abort();
  comparing = new AbortController();
  const { signal } = comparing;
  comparison?.show(false);
  comparison = null;
  byId("compare").hidden = true;
  if (!found) return;
  const picture = await queryToLay().catch(() => null);
  if (signal.aborted || !picture) return;
  comparison = new Comparison(byId("canvas"), photo, found, picture, signal);
  byId("compare").hidden = false;
  showComparison();
}

function showComparison() {
  const { checked } = byId("compare-on");
  byId("compare-wiper").hidden = !checked;
  wipe();
  comparison?.show(checked, byId("canvas").querySelector("svg"));
}

function wipe() {
  const slider = byId("compare-share");
  slider.setAttribute("aria-valuetext", `${slider.value} % of the query`);
  comparison?.wipe(slider.value / 100);
}

// Boxes

/** Return whether boxes of a kind are shown. */
function isWanted(kind) {
  if (kind === "match") return wanted.match ?? !found;
  if (kind === "detection") return wanted.detection ?? !(found || chunks.some(isMatch));
  return wanted[kind];
}

const isMatch = ({ distance }) => distance !== undefined && distance <= route.maxDistance;

/** Return what is shown: where the query was found, then the chunks that match, nearest first. */
function shownParts() {
  const place = found && isWanted("found") ? [{ ...found, source: "found", kind: "best" }] : [];
  const matches = chunks.filter(isMatch).sort((one, other) => one.distance - other.distance);
  const shown = isWanted("match") ? matches : [];
  const others = chunks.filter((chunk) => isWanted(chunk.source) && !shown.includes(chunk));
  const nearest = found ? null : matches[0];
  return [
    ...place,
    ...shown.map((chunk) => ({ ...chunk, kind: chunk === nearest ? "best" : "match" })),
    ...others.map((chunk) => ({ ...chunk, kind: chunk.source })),
  ];
}

function drawPhotoBoxes() {
  const [boxes] = byId("canvas").querySelectorAll("svg");
  drawBoxes(boxes, shownParts().reverse());
}

/** Mark the smallest box shown at a point; nothing if there is none. */
function choose([x, y]) {
  const area = ({ box: [x1, y1, x2, y2] }) => (x2 - x1) * (y2 - y1);
  const [smallest] = shownParts()
    .filter(({ box: [x1, y1, x2, y2] }) => x >= x1 && x < x2 && y >= y1 && y < y2)
    .sort((one, other) => area(one) - area(other));
  marker.mark(smallest?.box ?? null);
}

// The panel

function showPanel() {
  byId("panel").hidden = false;
  showToggles();
  showParts();
  showFacts();
  byId("photo-download").href = original(photo.id);
  byId("photo-download").download = photo.filename ?? photo.id;
}

function showToggles() {
  const isOf = (kind) => (chunk) => (kind === "match" ? isMatch(chunk) : chunk.source === kind);
  const of = (kind) => (kind !== "found" ? chunks.filter(isOf(kind)) : found ? [found] : []);
  const toggles = Object.entries(KINDS)
    .filter(([kind]) => of(kind).length > 0)
    .map(([kind, name]) =>
      make(
        "label",
        { class: "toggle" },
        make("input", {
          type: "checkbox",
          checked: isWanted(kind),
          change: ({ target }) => {
            wanted[kind] = target.checked;
            drawPhotoBoxes();
            showParts();
          },
        }),
        make("span", { class: `swatch ${kind}` }),
        `${name} `,
        make("span", { class: "quiet" }, String(of(kind).length)),
      ),
    );
  byId("toggles").replaceChildren(byId("toggles").firstElementChild, ...toggles);
}

function showParts() {
  const kinds = { found: "found here", tile: "tile", whole: "whole photo" };
  const parts = shownParts().map((chunk) => {
    const words = kinds[chunk.source] ?? chunk.label ?? "object";
    const sure = chunk.confidence ? `${Math.round(100 * chunk.confidence)} % sure` : "";
    const details = isMatch(chunk) ? `similarity ${similarity(chunk.distance)}` : sure;
    return make(
      "li",
      {},
      make(
        "button",
        {
          type: "button",
          class: "part",
          "data-box": chunk.box.join(","),
          "aria-pressed": "false",
          click: () => marker.mark(String(marker.box) === String(chunk.box) ? null : chunk.box),
        },
        make("span", { class: `swatch ${chunk.kind}` }),
        make("span", {}, words),
        make("span", { class: "quiet" }, details),
      ),
    );
  });
  byId("parts").replaceChildren(...parts);
  byId("parts-block").hidden = parts.length === 0;
  showMarked();
}

function showMarked() {
  const box = marker?.box;
  byId("search-part").disabled = !box;
  for (const part of byId("parts").querySelectorAll(".part")) {
    part.setAttribute("aria-pressed", String(part.dataset.box === String(box)));
  }
}

function showFacts() {
  const kilobytes = Math.ceil(photo.bytes / 1000).toLocaleString("en");
  const style = { dateStyle: "medium", timeStyle: "short" };
  const facts = {
    ...(found && factsOf(found)),
    Size: `${photo.width} × ${photo.height}`,
    File: `${photo.media_type}, ${kilobytes} kB`,
    Stored: new Date(photo.indexed_at).toLocaleString("en", style),
    ...(photo.animated && { Animated: "only the first frame is indexed" }),
    ...(photo.skipped && { "Not indexed": `${count(photo.skipped, "other picture")} in the file` }),
    Id: photo.id,
  };
  const [said, others] = metadataOf(photo);
  const rows = [...Object.entries(facts), ...Object.entries(said), ...Object.entries(others)];
  byId("facts").replaceChildren(
    ...rows.map(([name, value]) => {
      const [term, details] = [make("bdi", {}, name), make("bdi", {}, String(value))];
      return make("div", {}, make("dt", {}, term), make("dd", {}, details));
    }),
  );
}

/** Return what a photo says of itself, in people's words, and the rest of its metadata. */
function metadataOf({ metadata, asked }) {
  const others = { ...metadata };
  const said = {};
  // A client may mean something else by such a key.
  const says = (...names) => names.every((name) => asked.includes(name) && name in metadata);
  const move = (title, words, ...names) => {
    if (!says(...names)) return;
    said[title] = words(...names.map((name) => metadata[name]));
    for (const name of names) delete others[name];
  };
  move("Taken", moment, "date_taken");
  move("Camera", String, "camera");
  move("Lens", String, "lens");
  const place = (...degrees) => degrees.map((number) => number.toFixed(4)).join(", ");
  move("Place", place, "latitude", "longitude");
  return [said, others];
}

/** Return a date as the camera's clock showed it, wherever the reader is. */
function moment(date) {
  const [clock, zone] = [date.slice(0, 19), date.slice(19)];
  const style = { dateStyle: "medium", timeZone: "UTC" };
  if (clock.length === 10) return new Date(clock).toLocaleString("en", style);
  const shown = new Date(`${clock}Z`).toLocaleString("en", { ...style, timeStyle: "short" });
  return zone ? `${shown} (${zone})` : shown;
}

/** Return what was noticed where the query was found. */
function factsOf(match) {
  const turned = degrees(match.rotation);
  const way = turned % 180 === 0 ? "" : match.rotation > 0 ? " clockwise" : " counterclockwise";
  return {
    Found: `${amount(shareOf(match, querySize()))} of the query`,
    Agreeing: count(match.inliers, "place"),
    Turned: turned ? `${turned}°${way}` : "no",
    Mirrored: match.mirrored ? "yes" : "no",
    Scale: `${Number(match.scale.toPrecision(3))} × the query`,
  };
}

// Actions

function searchMarked() {
  if (!marker?.box) return;
  const { box } = marker;
  if (opened === "") {
    amend({ marking: undefined }); // so that the back button doesn't open this dialog
    searchPart(box);
  } else {
    go({ view: "search", id: opened, box, maxDistance: route.maxDistance });
  }
}

/** Show the buttons to the previous and next photo of the view that this one was opened from. */
function showNeighbours() {
  const [before, after] = neighbours();
  byId("viewer-previous").disabled = !before;
  byId("viewer-next").disabled = !after;
  byId("viewer-previous").hidden = byId("viewer-next").hidden = !before && !after;
}

function neighbours() {
  const order = route.view === "browse" ? browseOrder() : resultOrder();
  const place = order.indexOf(opened);
  return place < 0 ? [] : [order[place - 1], order[place + 1]];
}

function turn(side) {
  const id = neighbours()[side];
  if (id) amend({ photo: id, marking: undefined });
}

let tool = "mark";

function useTool(chosen = tool) {
  tool = session.may("search") ? chosen : "move"; // a part is marked to search with it
  for (const name of ["mark", "move"]) {
    byId(`tool-${name}`).setAttribute("aria-pressed", String(name === tool));
  }
  byId("stage").dataset.tool = tool;
  if (marker) marker.enabled = tool === "mark";
  if (zoom) zoom.dragMoves = tool === "move";
}

function leaveViewer() {
  leave({ photo: undefined, marking: undefined });
}

/** Wire the dialog. */
export function startViewer() {
  byId("tool-mark").addEventListener("click", () => useTool("mark"));
  byId("tool-move").addEventListener("click", () => useTool("move"));
  byId("zoom-in").addEventListener("click", () => zoom?.zoomIn());
  byId("zoom-out").addEventListener("click", () => zoom?.zoomOut());
  byId("zoom-fit").addEventListener("click", () => zoom?.fit());
  byId("compare-on").addEventListener("change", showComparison);
  byId("compare-share").addEventListener("input", wipe);
  byId("compare-zoom").addEventListener("click", () => zoom?.to(found.box));
  byId("search-part").addEventListener("click", searchMarked);
  byId("search-whole").addEventListener("click", () =>
    go({ view: "search", id: opened, maxDistance: route.maxDistance }),
  );
  byId("photo-delete").addEventListener("click", () => {
    const doomed = photo;
    leaveViewer();
    deletion.delete(doomed);
  });
  // With a link to an open photo, the photo may arrive before the results.
  results.addEventListener("change", () => {
    if (!photo?.chunks) return;
    findMatches();
    drawPhotoBoxes();
    showPanel();
    showNeighbours();
    compare();
  });
  byId("viewer-previous").addEventListener("click", () => turn(0));
  byId("viewer-next").addEventListener("click", () => turn(1));
  byId("viewer-close").addEventListener("click", leaveViewer);
  byId("viewer").addEventListener("cancel", (event) => {
    event.preventDefault(); // the route closes it
    leaveViewer();
  });
  byId("viewer").addEventListener("close", () => {
    if (opened !== null) leaveViewer(); // a browser may close it nevertheless
  });
  byId("viewer").addEventListener("keydown", ({ key, target }) => {
    if (target.type === "range") return; // it has a use of its own for these keys
    if (key === "PageUp") turn(0);
    if (key === "PageDown") turn(1);
  });
}
