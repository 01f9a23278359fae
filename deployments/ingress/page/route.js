// What is shown, as the address bar has it: views, queries and the open photo.
//
// A picture that was dropped can't be in an address. It is in the history's state, by its key
// among the pictures that this page remembers.

/**
 * @typedef {object} Route
 * @property {"search"|"browse"|"add"} view
 * @property {string=} text search by words
 * @property {string=} id search by a stored photo
 * @property {string=} picture search by a picture that was dropped, by its key
 * @property {number[]=} box the part of it
 * @property {number=} maxDistance
 * @property {string=} after the page of stored photos
 * @property {string[]=} trail the pages before it
 * @property {string=} photo the open photo
 * @property {boolean=} marking the query is open, to mark a part of it
 */

const listeners = [];

/** The route shown now. */
export let route = read();

/** Call a function with each route to show, and whether a link led to it. */
export function onRoute(listener) {
  listeners.push(listener);
}

/** Show a route: a step that the back button takes back. */
export function go(next) {
  history.pushState({ ...hiddenPart(next), steps: steps() + 1 }, "", address(next));
  show(true);
}

/** Show a route in the place of this one, which the address bar still has. */
export function preview(changes) {
  route = { ...route, ...changes };
  for (const listener of listeners) listener(route, false);
}

/** Show a route in the place of this one. */
export function amend(changes) {
  const next = { ...route, ...changes };
  history.replaceState({ ...hiddenPart(next), steps: steps() }, "", address(next));
  show(false);
}

/** Leave what was opened on top of a route: as the back button does where that leads there. */
export function leave(closed) {
  if (steps() > 0) history.back();
  else amend(closed);
}

/** Show what the address bar has, first of all. */
export function start() {
  show(false);
}

/** The address of a route. */
export function address({ view, text, id, box, maxDistance, after, photo }) {
  const parameters = new URLSearchParams();
  if (view !== "search") parameters.set("view", view);
  if (text) parameters.set("text", text);
  if (id) parameters.set("id", id);
  if (id && box) parameters.set("box", box.join(","));
  if (maxDistance < 2) parameters.set("max_distance", maxDistance);
  if (after) parameters.set("after", after);
  if (photo) parameters.set("photo", photo);
  const query = parameters.toString().replaceAll("%2C", ",");
  return query ? `?${query}` : "./";
}

function read() {
  const parameters = new URLSearchParams(location.search);
  const given = (name) => parameters.get(name) || undefined;
  const view = ["browse", "add"].find((name) => name === given("view")) ?? "search";
  const box = given("box")?.split(",").map(Number);
  const maxDistance = Number(given("max_distance") ?? 2);
  const { picture, box: hiddenBox, trail, marking } = history.state ?? {};
  return {
    view,
    text: given("text"),
    id: given("id"),
    picture,
    box: hiddenBox ?? (box?.length === 4 && box.every(Number.isFinite) ? box : undefined),
    maxDistance: maxDistance >= 0 && maxDistance <= 2 ? maxDistance : 2,
    after: given("after"),
    trail,
    photo: given("photo"),
    marking,
  };
}

function hiddenPart({ picture, box, trail, marking }) {
  return { picture, box: picture === undefined ? undefined : box, trail, marking };
}

const steps = () => history.state?.steps ?? 0;

function show(moved) {
  route = read();
  for (const listener of listeners) listener(route, moved);
}

window.addEventListener("popstate", () => show(false));
