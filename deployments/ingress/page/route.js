// The route: the view, the query and the open photo, as in the address bar.
//
// A picture that was dropped can't be in an address. Its key in pictures.js is in the history's
// state.

/**
 * @typedef {object} Route
 * @property {"search"|"browse"|"add"} view
 * @property {string=} text search by this text
 * @property {string=} id search by this stored photo
 * @property {string=} picture search by the dropped picture with this key
 * @property {number[]=} box search by this part of the photo or picture
 * @property {number=} maxDistance
 * @property {string=} after list the stored photos after this id
 * @property {string[]=} trail `after` of the routes that led here, for going back
 * @property {string=} photo id of the open photo
 * @property {boolean=} marking whether the query is open, to mark a part of it
 */

const listeners = [];

/** The current route. */
export let route = read();

/** Call a function with each new route, and whether `go` led to it. */
export function onRoute(listener) {
  listeners.push(listener);
}

/** Show a route, as a new entry of the history. */
export function go(next) {
  history.pushState({ ...hiddenPart(next), steps: steps() + 1 }, "", address(next));
  show(true);
}

/** Change the current route, but not yet the address bar. */
export function preview(changes) {
  route = { ...route, ...changes };
  for (const listener of listeners) listener(route, false);
}

/** Change the current route and its entry in the history. */
export function amend(changes) {
  replace({ ...route, ...changes });
}

/** Show a route instead of the current one, which leaves the history. */
export function replace(next) {
  history.replaceState({ ...hiddenPart(next), steps: steps() }, "", address(next));
  show(false);
}

/** Close what was opened on top of a route: go back if the page has history, else change it. */
export function leave(closed) {
  if (steps() > 0) history.back();
  else amend(closed);
}

/** Show the route of the address bar: when the page has loaded, or when another key allows more. */
export function start() {
  show(false);
}

/** Return the address of a route. */
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
