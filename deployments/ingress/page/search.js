// The search view: the query, and its results beside it: the photos that were found to contain it,
// and below them those that look alike.

import { list, original, record, search, thumbnail } from "./api.js";
import { overlay } from "./boxes.js";
import { card, nameOf, showCards } from "./cards.js";
import { deletion } from "./deletion.js";
import { announce, byId, count, make, say } from "./elements.js";
import { ACCEPTED, kindsOf } from "./files.js";
import { isFound, noticed } from "./found.js";
import { Marker } from "./marker.js";
import { recall, remember } from "./pictures.js";
import { address, amend, go, preview, route } from "./route.js";
import { service } from "./service.js";
import { session } from "./session.js";

const FIRST = 24;
const MOST = 1000; // the service's largest limit
const TO_START_WITH = 12;
const TOO_PLAIN =
  "This picture is too plain to tell whether a photo contains it: it has hardly any corners and " +
  "edges. These photos look most like it.";

/** Fires "change" when the results have changed. */
export const results = new EventTarget();

let query = null; // of the route: {blob, name, url} or {id} or {text}; and box, size of its picture
let answer = null; // {found, texture, matches, limit, maxDistance}
let folded = null; // whether the photos that look alike are folded; null: if a photo was found
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

/** Search with the file that was dropped on the search view, if it is a single photo. */
export function searchWithOne({ files, leftOut }) {
  if (files.length === 1) {
    searchWith(files[0]);
  } else if (files.length > 1) {
    const sentence = `A search takes one picture, but these are ${files.length} files.`;
    const store = session.may("write") ? " To store them, drop them under “Add photos”." : "";
    say(byId("search-problem"), sentence + store);
  } else {
    const others = `, but ${count(leftOut.length, "other file")} (${kindsOf(leftOut)})`;
    say(byId("search-problem"), `There is no photo in there${leftOut.length ? others : ""}.`);
  }
}

/** Return the match of a photo, if it is among the results. */
export const matchOf = (id) => answer?.matches.find((match) => match.id === id);

/** Return the ids of the results that are seen, in order. */
export const resultOrder = () =>
  [...foundMatches(), ...(isFolded() ? [] : shown())].map(({ id }) => id);

/** Return the query if it is a picture that was dropped, else null. */
export const queryPicture = () => (query?.blob ? query : null);

/** Return the size of what was searched with, in pixels; undefined until it is known. */
export function querySize() {
  if (!query?.size || !query.box) return query?.size;
  const [x1, y1, x2, y2] = query.box;
  return { width: x2 - x1, height: y2 - y1 };
}

/**
 * Return the whole picture of the query: `url`, `width` and `height`. Null if this browser can't
 * show it, or if the query is no picture.
 */
export async function queryToLay() {
  const { blob, id, url } = query ?? {};
  if (blob) {
    const size = await sizeOf(url);
    return size && { url, ...size };
  }
  if (!id) return null;
  const { width, height } = await record(id);
  for (const url of [original(id), thumbnail(id)]) {
    if (await sizeOf(url)) return { url, width, height };
  }
  return null;
}

/** Return the size of a picture; null if this browser can't show it. */
async function sizeOf(url) {
  const image = make("img", { src: url });
  try {
    await image.decode();
  } catch {
    return null;
  }
  return { width: image.naturalWidth, height: image.naturalHeight };
}

/** Return whether a route has a query. */
export const hasQuery = ({ text, id, picture }) => Boolean(text || id || picture);

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
  answer = folded = null;
  say(byId("search-problem"), null);
  for (const grid of ["found-grid", "results-grid"]) byId(grid).replaceChildren();
  renderHead();
  byId("start").hidden = hasQuery(next) || !session.may("read");
  byId("words-text").value = next.text ?? "";
  showQuery(next);
  if (query) ask(FIRST);
  else if (!byId("start").hidden) showStart();
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
  else if (session.may("read")) showStored(query.id, stage.signal);
  else {
    query.name = nameOf(query);
    caption();
  }
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
      query.size = size ?? { width: image.naturalWidth, height: image.naturalHeight };
      startMarking(query.size);
      if (!answer) return;
      render(); // what was noticed may depend on it
      results.dispatchEvent(new Event("change"));
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
    const { found, texture, matches: firsts } = await search(query, { limit, maxDistance, signal });
    const more = firsts.length === limit && limit < MOST;
    const matches = firsts.flatMap(ungrouped);
    answer = { found, texture, matches, limit, maxDistance, more };
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

/** Return a match and its copies, each with the number of their group. */
const ungrouped = (match, group) =>
  [match, ...match.copies].map((photo) => ({ ...photo, group }));

/**
 * Return whether a photo's distance is that of its nearest chunk (`ranker.aggregation: min`). Only
 * then it stays the same when distant chunks don't count.
 */
const hasNearestDistance = (match) =>
  isFound(match) || match.distance === match.chunks[0].distance;

function filter() {
  if (!exact && answer.maxDistance !== route.maxDistance) return ask(answer.limit);
  render();
  renderHead();
}

/** Return the matches without hidden photos. */
const present = () => (answer?.matches ?? []).filter(({ id }) => !deletion.isHidden(id));

/** Return the matches that were found. They are certain: the threshold doesn't count for them. */
const foundMatches = () => present().filter(isFound);

/** Return the other matches within the threshold, with their chunks within it. */
function shown() {
  const near = ({ distance }) => distance <= route.maxDistance;
  return present()
    .filter((match) => !isFound(match) && (!exact || near(match)))
    .map((match) => ({ ...match, chunks: match.chunks.filter(near) }))
    .filter(({ chunks }) => chunks.length > 0);
}

/** Return whether there are two groups: photos were looked at, and there are some. */
const isGrouped = () => answer !== null && answer.found !== null && answer.matches.length > 0;

const isFolded = () =>
  isGrouped() && !present().every(isFound) && (folded ?? foundMatches().length > 0);

function render() {
  showMatches(byId("found-grid"), foundMatches());
  showMatches(byId("results-grid"), shown());
}

function showMatches(grid, matches) {
  const before = new Map([...grid.children].map((item) => [item.dataset.content, item]));
  const groups = [...Map.groupBy(matches, ({ group }) => group).values()];
  const cards = groups.map(([match, ...copies]) => {
    const words = isFound(match) ? noticed(match, querySize()) : [];
    // An unchanged card stays, so that nothing flickers and the focus stays.
    const seen = [match.id, match.chunks.length, match.distance, words, copies.map(({ id }) => id)];
    const content = JSON.stringify(seen);
    const item = before.get(content) ?? card(match, { words, copies });
    item.dataset.content = content;
    return item;
  });
  showCards(grid, cards);
}

function renderHead() {
  const [certain, number, grouped] = [foundMatches().length, shown().length, isGrouped()];
  const isFiltered = present().some((match) => !isFound(match)) && number === 0;
  const seconds = answer?.seconds ? `in ${answer.seconds.toFixed(2)} s` : "";
  renderVerdict(certain, seconds);
  say(byId("results-plain"), answer?.texture ? TOO_PLAIN : null);
  byId("results-head").hidden = !answer || (grouped && number === 0 && !isFiltered);
  byId("results-fold").hidden = !grouped;
  byId("results-fold").textContent = certain || answer?.found ? "Looks alike" : "These look alike";
  byId("results-fold").setAttribute("aria-expanded", String(!isFolded()));
  byId("alike").hidden = byId("results-threshold").hidden = isFolded();
  byId("alike").classList.toggle("doubtful", grouped);
  const alone = number ? `${count(number, "photo")} ${seconds}`.trim() : "No photo";
  byId("results-count").textContent = grouped ? number.toLocaleString("en") : alone;
  byId("results-more").hidden = !answer?.more || number + certain === 0;
  const nothing =
    isFiltered || answer?.maxDistance < 2
      ? "No photo is that similar. Move the slider to the left to see more."
      : "There are no photos to search yet.";
  const isNone = answer && number === 0 && (certain === 0 || isFiltered);
  say(byId("results-none"), isNone ? nothing : null);
  const isBlind = number + certain > 0 && !session.may("read");
  say(byId("results-blind"), isBlind ? `${session.refusal("read")} Here are their names.` : null);
}

/** Say whether the query was found, and in how many photos. */
function renderVerdict(certain, seconds) {
  const stored = service.stats?.store.photos;
  const among = stored ? `among ${count(stored, "photo")}` : "";
  byId("found").hidden = !isGrouped() || (answer.found && certain === 0);
  const isPhoto = query?.id && !query.box; // it is not looked for in itself
  if (certain) {
    const photos = count(certain, isPhoto ? "other photo" : "photo");
    byId("found-title").textContent = `Found in ${photos}`;
    byId("found-note").textContent = [among, seconds].filter(Boolean).join(", ");
  } else {
    // Where the service applies the threshold, it looks at no photo beyond it.
    const near = answer?.maxDistance < 2 ? "among the photos that are so similar" : among;
    byId("found-title").textContent = `Not found ${isPhoto ? "in another photo" : near}`.trim();
    byId("found-note").textContent = seconds && `Searched ${seconds}`;
  }
}

function announceResults() {
  const [certain] = foundMatches();
  const [nearest] = shown();
  const sentences = [byId(isGrouped() ? "found-title" : "results-count").textContent];
  if (certain) sentences.push(`The first is ${nameOf(certain)}`);
  else if (nearest) sentences.push(`The nearest is ${nameOf(nearest)}`);
  announce(`${sentences.join(". ")}.`);
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
    const toAdd = [make("a", add, "Add photos"), " first, then search them."];
    const [title, text] = images.length
      ? ["Or start from a stored photo", ["Open one and mark what you are looking for."]]
      : ["Nothing is stored yet", session.may("write") ? toAdd : []];
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
  byId("search-file").accept = ACCEPTED;
  byId("search-file").addEventListener("change", ({ target }) => {
    searchWithOne({ files: [...target.files], leftOut: [] });
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
  byId("results-fold").addEventListener("click", () => {
    folded = !isFolded();
    renderHead();
  });
  byId("query-whole").addEventListener("click", () => searchPart(null));
  byId("query-mark").addEventListener("click", () =>
    go({ ...route, photo: query.id, marking: true }),
  );
  session.addEventListener("change", forgetResults);
  service.addEventListener("state", () => {
    byId("words").hidden = !service.stats?.encoder.text;
    if (answer) renderHead(); // it says among how many photos
  });
  deletion.addEventListener("change", () => {
    if (answer) filter();
    else if (shownKey && !byId("start").hidden) showStart();
  });
  deletion.addEventListener("deleted", ({ detail }) => {
    if (answer) answer.matches = answer.matches.filter(({ id }) => id !== detail);
  });
}

/** Search again when the view is shown next, because the stored photos have changed. */
export function forgetResults() {
  shownKey = null;
}

