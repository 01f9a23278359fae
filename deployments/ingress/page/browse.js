// The view of all stored photos, a portion at a time.

import { list } from "./api.js";
import { card, showCards } from "./cards.js";
import { deletion } from "./deletion.js";
import { announce, byId, count, isPlainClick, say } from "./elements.js";
import { address, go, route } from "./route.js";
import { service } from "./service.js";
import { session } from "./session.js";

const AT_A_TIME = 40;

let listing = null; // {images, more}
let shownAfter = null;
let asking = null;

/** Return the ids of the photos shown, in order. */
export const browseOrder = () => shown().map(({ id }) => id);

/** Show a route in this view. */
export function showBrowse(next) {
  if (shownAfter === (next.after ?? "")) return;
  shownAfter = next.after ?? "";
  ask();
}

/** Fetch the records again when the view is shown next, because they have changed. */
export function forgetListing() {
  shownAfter = null;
}

async function ask() {
  asking?.abort();
  asking = new AbortController();
  const { signal } = asking;
  byId("browse-grid").setAttribute("aria-busy", "true");
  try {
    listing = await list(shownAfter, AT_A_TIME, signal);
    say(byId("browse-problem"), null);
    render();
    announce(count(listing.images.length, "photo"));
  } catch (problem) {
    if (signal.aborted) return;
    say(byId("browse-problem"), problem.message);
    if (problem.passing) service.afterwards(problem, signal).then(ask, () => {});
  } finally {
    if (!signal.aborted) byId("browse-grid").setAttribute("aria-busy", "false");
  }
}

const shown = () => (listing?.images ?? []).filter(({ id }) => !deletion.isHidden(id));

function render() {
  const present = new Map([...byId("browse-grid").children].map((item) => [item.dataset.id, item]));
  const cards = shown().map(
    (photo) =>
      present.get(photo.id) ?? card(photo, { onDelete: session.may("admin") ? doom(photo) : null }),
  );
  showCards(byId("browse-grid"), cards);
  renderPages();
  renderCount();
}

const doom = (photo) => () => deletion.delete(photo);

function renderPages() {
  const { after, trail = [] } = route;
  byId("browse-first").hidden = !after;
  byId("browse-previous").hidden = trail.length === 0;
  byId("browse-next").hidden = !listing.more;
  byId("browse-pages").hidden = !after && !listing.more;
  byId("browse-next").href = address(following());
  byId("browse-previous").href = address(preceding());
}

function following() {
  const { after, trail = [] } = route;
  return { view: "browse", after: listing?.images.at(-1)?.id, trail: [...trail, after ?? ""] };
}

/** Return the route back. The service only lists forward, so the route remembers the way here. */
function preceding() {
  const { trail = [] } = route;
  return { view: "browse", after: trail.at(-1) || undefined, trail: trail.slice(0, -1) };
}

function renderCount() {
  if (!service.stats || !listing) return;
  const { photos } = service.stats.store;
  const empty = listing.images.length === 0 && !route.after;
  byId("browse-count").textContent = empty ? "Nothing is stored yet." : count(photos, "photo");
}

/** Wire the view. */
export function startBrowse() {
  for (const [id, target] of [
    ["browse-first", () => ({ view: "browse" })],
    ["browse-previous", preceding],
    ["browse-next", following],
  ]) {
    byId(id).addEventListener("click", (event) => {
      if (!isPlainClick(event)) return;
      event.preventDefault();
      go(target());
    });
  }
  service.addEventListener("state", renderCount);
  session.addEventListener("change", () => {
    forgetListing();
    byId("browse-grid").replaceChildren();
  });
  deletion.addEventListener("change", () => {
    if (listing) render();
  });
  deletion.addEventListener("deleted", ({ detail }) => {
    if (listing) listing.images = listing.images.filter(({ id }) => id !== detail);
  });
}
