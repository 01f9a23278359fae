// The view of all stored photos, page by page.

import { list } from "./api.js";
import { card, showCards } from "./cards.js";
import { deletion } from "./deletion.js";
import { announce, byId, count, isPlainClick, say } from "./elements.js";
import { address, go, route } from "./route.js";
import { service } from "./service.js";

const PAGE = 40;

let page = null; // {images, more}
let shownAfter = null;
let asking = null;

/** Ids of the photos on this page, in order. */
export const browseOrder = () => shown().map(({ id }) => id);

/** Show a route in this view. */
export function showBrowse(next) {
  if (shownAfter === (next.after ?? "")) return;
  shownAfter = next.after ?? "";
  ask();
}

/** Ask again when the view is next shown: what is stored has changed. */
export function forgetPage() {
  shownAfter = null;
}

async function ask() {
  asking?.abort();
  asking = new AbortController();
  const { signal } = asking;
  byId("browse-grid").setAttribute("aria-busy", "true");
  try {
    page = await list(shownAfter, PAGE, signal);
    say(byId("browse-problem"), null);
    render();
    announce(count(page.images.length, "photo"));
  } catch (problem) {
    if (signal.aborted) return;
    say(byId("browse-problem"), problem.message);
    if (problem.passing) service.afterwards(problem, signal).then(ask, () => {});
  } finally {
    if (!signal.aborted) byId("browse-grid").setAttribute("aria-busy", "false");
  }
}

const shown = () => (page?.images ?? []).filter(({ id }) => !deletion.isHidden(id));

function render() {
  const present = new Map([...byId("browse-grid").children].map((item) => [item.dataset.id, item]));
  const cards = shown().map(
    (photo) =>
      present.get(photo.id) ?? card(photo, { onDelete: () => deletion.delete(photo) }),
  );
  showCards(byId("browse-grid"), cards);
  renderPages();
  renderCount();
}

function renderPages() {
  const { after, trail = [] } = route;
  byId("browse-first").hidden = !after;
  byId("browse-previous").hidden = trail.length === 0;
  byId("browse-next").hidden = !page.more;
  byId("browse-pages").hidden = !after && !page.more;
  byId("browse-next").href = address(following());
  byId("browse-previous").href = address(preceding());
}

function following() {
  const { after, trail = [] } = route;
  return { view: "browse", after: page?.images.at(-1)?.id, trail: [...trail, after ?? ""] };
}

/** The list only goes forward, so the pages that led here are remembered. */
function preceding() {
  const { trail = [] } = route;
  return { view: "browse", after: trail.at(-1) || undefined, trail: trail.slice(0, -1) };
}

function renderCount() {
  if (!service.stats || !page) return;
  const { photos } = service.stats.store;
  const empty = page.images.length === 0 && !route.after;
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
  deletion.addEventListener("change", () => {
    if (page) render();
  });
  deletion.addEventListener("deleted", ({ detail }) => {
    if (page) page.images = page.images.filter(({ id }) => id !== detail);
  });
}
