// The search view: the query, and its results beside it.

import { list, record, search, thumbnail } from "./api.js";
import { overlay } from "./boxes.js";
import { card, nameOf, showCards } from "./cards.js";
import { deletion } from "./deletion.js";
import { announce, byId, count, make, say } from "./elements.js";
import { Marker } from "./marker.js";
import { recall, remember } from "./pictures.js";
import { address, amend, go, preview, route } from "./route.js";
import { service } from "./service.js";

const FIRST = 24;
const MOST = 1000; // the service's largest limit
const TO_START_WITH = 12;

/** Fires "change" when the results have changed. */
export const results = new EventTarget();

let query = null; // of the route: {blob, name, url} or {id} or {text}; and box
let answer = null; // {matches, limit, maxDistance}
let asking = new AbortController(); // of the request in flight
let exact = true; // whether the page can apply the threshold as the service would
let droppedAt = 0; // when the picture was dropped, milliseconds
let marker = null;
let stage = new AbortController(); // of the listeners on the query's image

/** Search with a picture that was dropped, pasted or chosen. */
export function searchWith(blob) {
  droppedAt = performance.now();
  go({ view: "search", picture: remember(blob), maxDistance: route.maxDistance });
}

/** Search with the file that was dropped on the search view, if it is a single one. */
export function searchWithOne(files) {
  if (files.length === 1) {
    searchWith(files[0]);
  } else if (files.length > 1) {
    const sentence = `A search takes one picture, but these are ${files.length} files.`;
    say(byId("search-problem"), `${sentence} To store them, drop them under “Add photos”.`);
  }
}

/** Return the match of a photo, if it is among the results. */
export const matchOf = (id) => answer?.matches.find((match) => match.id === id);

/** Return the ids of the results, in order. */
export const resultOrder = () => shown().map(({ id }) => id);

/** Return the query if it is a picture that was dropped, else null. */
export const queryPicture = () => (query?.blob ? query : null);

/** Return whether a route has a query. */
const hasQuery = ({ text, id, picture }) => Boolean(text || id || picture);

function key({ text, id, picture, box }) {
  return JSON.stringify([text, id, picture, box]);
}

let shownKey = null;

/** Show a route in this view. */
export function showSearch(next) {
  byId("search").classList.toggle("has-query", hasQuery(next));
  byId("threshold").value = Math.max(0, 1 - next.maxDistance);
  const least = next.maxDistance < 2 ? (1 - next.maxDistance).toFixed(2) : "any";
  byId("threshold-value").textContent = least;
  byId("threshold").setAttribute("aria-valuetext", least);
  if (shownKey === key(next)) {
    if (answer) filter();
    return;
  }
  shownKey = key(next);
  asking.abort();
  byId("results").setAttribute("aria-busy", "false");
  answer = null;
  say(byId("search-problem"), null);
  byId("results-grid").replaceChildren();
  renderHead();
  byId("start").hidden = hasQuery(next);
  byId("words-text").value = next.text ?? "";
  showQuery(next);
  if (query) ask(FIRST);
  else if (!hasQuery(next)) showStart();
}

// The query

function showQuery(next) {
  const picture = next.picture && recall(next.picture);
  const isSame = picture ? query?.url === picture.url : next.id && query?.id === next.id;
  if (isSame && marker) {
    // For another part of the same picture the image stays, and so does the focus.
    query.box = next.box;
    marker.mark(next.box ?? null);
    caption();
    return;
  }
  stage.abort();
  stage = new AbortController();
  marker = null;
  query = null;
  if (picture) query = { ...picture, box: next.box };
  else if (next.id) query = { id: next.id, box: next.box };
  else if (next.text) query = { text: next.text };
  else if (next.picture) {
    const sentence = "The picture of this search is not available any more: drop it again.";
    say(byId("search-problem"), sentence);
  }
  byId("query").hidden = !query;
  byId("query-text").hidden = !query?.text;
  byId("query-stage").hidden = true;
  byId("query-mark").hidden = byId("query-whole").hidden = true;
  byId("query-caption").replaceChildren();
  byId("query-stage").replaceChildren();
  if (!query) return;
  if (query.text) byId("query-text").textContent = query.text;
  else if (query.blob) showPicture(query.url, null);
  else showStored(query.id, stage.signal);
}

async function showStored(id, signal) {
  try {
    const photo = await record(id, signal);
    if (signal.aborted) return;
    query.name = nameOf(photo);
    showPicture(thumbnail(id), photo);
  } catch (problem) {
    if (!signal.aborted && problem.passing) {
      service.afterwards(problem, signal).then(() => showStored(id, signal), () => {});
    }
  }
}

/** Show the query's image; `size` in pixels, or null if only the browser knows it. */
function showPicture(url, size) {
  caption();
  const { signal } = stage;
  const image = make("img", { alt: `The query: ${query.name}`, draggable: "false" });
  image.addEventListener(
    "load",
    () => {
      if (signal.aborted) return;
      byId("query-stage").hidden = byId("query-mark").hidden = false;
      startMarking(size ?? { width: image.naturalWidth, height: image.naturalHeight });
    },
    { signal, once: true },
  );
  image.addEventListener(
    "error",
    () => {
      // For a stored photo this is the thumbnail, which is loaded again when the service is back.
      if (query.blob) byId("query-caption").append(" (this browser can't show it)");
    },
    { signal, once: true },
  );
  byId("query-stage").append(image);
  image.src = url;
}

function startMarking({ width, height }) {
  const holder = byId("query-stage");
  holder.style.aspectRatio = `${width} / ${height}`;
  holder.style.setProperty("--ratio", width / height);
  const boxes = overlay(width, height);
  holder.append(boxes);
  marker = new Marker(holder, boxes, { width, height, touch: false }, stage.signal);
  if (query.box) marker.mark(query.box);
  marker.addEventListener("commit", () => searchPart(marker.box));
}

function caption() {
  const name = make("bdi", {}, query.name);
  byId("query-caption").replaceChildren(...(query.box ? ["A part of ", name] : [name]));
  byId("query-whole").hidden = !query.box;
}

/** Search with a part of the query, or with the whole query (null). */
export function searchPart(box) {
  const { text, id, picture, maxDistance } = route;
  if (String(box ?? undefined) === String(route.box)) return;
  go({ view: "search", text, id, picture, maxDistance, box: box ?? undefined });
}

// The results

async function ask(limit) {
  asking.abort();
  asking = new AbortController();
  const { signal } = asking;
  const started = droppedAt || performance.now();
  droppedAt = 0;
  // All matches are fetched, and the distant ones are hidden here, so that the slider acts at once.
  const maxDistance = exact ? 2 : route.maxDistance;
  byId("results").setAttribute("aria-busy", "true");
  try {
    const matches = await search(query, { limit, maxDistance, signal });
    answer = { matches, limit, maxDistance, more: matches.length === limit && limit < MOST };
    if (maxDistance === 2) exact = matches.every(hasNearestDistance);
    if (!exact && maxDistance !== route.maxDistance) return ask(limit);
    say(byId("search-problem"), null);
    render();
    answer.seconds = (performance.now() - started) / 1000;
    renderHead();
    announceResults();
    results.dispatchEvent(new Event("change"));
  } catch (problem) {
    if (signal.aborted) return;
    const more = problem.passing ? " The search is repeated when the service is back." : "";
    say(byId("search-problem"), problem.message + more);
    if (problem.passing) service.afterwards(problem, signal).then(() => ask(limit), () => {});
  } finally {
    if (!signal.aborted) byId("results").setAttribute("aria-busy", "false");
  }
}

/**
 * Return whether a photo's distance is that of its nearest chunk (`ranker.aggregation: min`). Only
 * then it stays the same when distant chunks don't count.
 */
const hasNearestDistance = ({ distance, chunks }) => distance === chunks[0].distance;

function filter() {
  if (!exact && answer.maxDistance !== route.maxDistance) return ask(answer.limit);
  render();
  renderHead();
}

/** Return the matches within the threshold, with their chunks within it, without hidden photos. */
function shown() {
  const near = ({ distance }) => distance <= route.maxDistance;
  return (answer?.matches ?? [])
    .filter((match) => !deletion.isHidden(match.id) && (!exact || near(match)))
    .map((match) => ({ ...match, chunks: match.chunks.filter(near) }))
    .filter(({ chunks }) => chunks.length > 0);
}

function render() {
  const present = new Map(
    [...byId("results-grid").children].map((item) => [item.dataset.content, item]),
  );
  const cards = shown().map((match) => {
    // An unchanged card stays, so that nothing flickers and the focus stays.
    const content = JSON.stringify([match.id, match.chunks.length, match.distance]);
    const item = present.get(content) ?? card(match, { chunks: match.chunks });
    item.dataset.content = content;
    return item;
  });
  showCards(byId("results-grid"), cards);
}

function renderHead() {
  const number = shown().length;
  byId("results-head").hidden = !answer;
  const seconds = answer?.seconds ? ` in ${answer.seconds.toFixed(2)} s` : "";
  byId("results-count").textContent = number ? `${count(number, "photo")}${seconds}` : "No photo";
  byId("results-more").hidden = !answer?.more || number === 0;
  const nothing = answer?.matches.length
    ? "No photo is that similar. Move the slider to the left to see more."
    : "There are no photos to search yet.";
  say(byId("results-none"), answer && number === 0 ? nothing : null);
}

function announceResults() {
  const [first] = shown();
  const nearest = first ? ` The nearest is ${nameOf(first)}.` : "";
  announce(`${byId("results-count").textContent}.${nearest}`);
}

function threshold() {
  const least = Number(byId("threshold").value);
  // At 0 everything counts, also chunks with a negative similarity.
  return { maxDistance: least === 0 ? 2 : Number((1 - least).toFixed(2)) };
}

// Without a query

async function showStart() {
  asking.abort();
  asking = new AbortController();
  const { signal } = asking;
  try {
    const { images } = await list(null, TO_START_WITH, signal);
    const add = { href: address({ view: "add" }), "data-view": "add" };
    const [title, text] = images.length
      ? ["Or start from a stored photo", ["Open one and mark what you are looking for."]]
      : ["Nothing is stored yet", [make("a", add, "Add photos"), " first, then search them."]];
    byId("start-title").textContent = title;
    byId("start-text").replaceChildren(...text);
    const cards = images.filter(({ id }) => !deletion.isHidden(id)).map((photo) => card(photo));
    showCards(byId("start-grid"), cards);
  } catch (problem) {
    if (signal.aborted) return;
    if (problem.passing) service.afterwards(problem, signal).then(showStart, () => {});
    else say(byId("search-problem"), problem.message);
  }
}

/** Wire the view. */
export function startSearch() {
  byId("search-file").addEventListener("change", ({ target }) => {
    searchWithOne([...target.files]);
    target.value = ""; // so that the same file can be chosen again
  });
  byId("words").addEventListener("submit", (event) => {
    event.preventDefault();
    const text = byId("words-text").value.trim();
    if (text) go({ view: "search", text, maxDistance: route.maxDistance });
  });
  // Browsers limit changes of the address, so it changes only when the slider is released.
  byId("threshold").addEventListener("input", () => preview(threshold()));
  byId("threshold").addEventListener("change", () => amend(threshold()));
  byId("results-more").addEventListener("click", () => ask(Math.min(MOST, answer.limit + FIRST)));
  byId("query-whole").addEventListener("click", () => searchPart(null));
  byId("query-mark").addEventListener("click", () =>
    go({ ...route, photo: query.id, marking: true }),
  );
  service.addEventListener("state", () => {
    byId("words").hidden = !service.stats?.encoder.text;
  });
  deletion.addEventListener("change", () => {
    if (answer) filter();
    else if (shownKey && !query) showStart();
  });
  deletion.addEventListener("deleted", ({ detail }) => {
    if (answer) answer.matches = answer.matches.filter(({ id }) => id !== detail);
  });
}

/** Search again when the view is shown next, because the stored photos have changed. */
export function forgetResults() {
  shownKey = null;
}

