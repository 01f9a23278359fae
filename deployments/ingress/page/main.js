// Starts the page: it shows the view of the route, and takes files that are dropped or pasted.

import { addFiles, isStoring, startAdd, stopStoring } from "./add.js";
import { showBrowse, startBrowse } from "./browse.js";
import { reloadFailedImages } from "./cards.js";
import { startDeletion } from "./deletion.js";
import { byId, isPlainClick, say } from "./elements.js";
import { filesOf } from "./files.js";
import { go, onRoute, replace, route, start } from "./route.js";
import { hasQuery, searchWithOne, showSearch, startSearch } from "./search.js";
import { service } from "./service.js";
import { session } from "./session.js";
import { startSignin } from "./signin.js";
import { showViewer, startViewer } from "./viewer.js";

const VIEWS = {
  search: { title: "Search", scope: "search" },
  browse: { title: "Browse", scope: "read" },
  add: { title: "Add photos", scope: "write" },
};

onRoute((next, moved) => {
  if (!session.scopes) return; // nobody has signed in yet
  say(byId("refusal"), null);
  const { scope } = VIEWS[next.view];
  if (!session.may(scope)) {
    const view = Object.keys(VIEWS).find((name) => session.may(VIEWS[name].scope));
    replace({ view });
    // Nobody has to be told who only came to the front door.
    if (next.view !== "search" || hasQuery(next)) say(byId("refusal"), session.refusal(scope));
    return;
  }
  if (next.photo && !session.may("read")) {
    replace({ ...next, photo: undefined });
    return say(byId("refusal"), session.refusal("read"));
  }
  const before = Object.keys(VIEWS).find((view) => !byId(view).hidden);
  for (const view of Object.keys(VIEWS)) byId(view).hidden = view !== next.view;
  for (const link of document.querySelectorAll("nav a[data-view]")) {
    if (link.dataset.view === next.view) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${VIEWS[next.view].title} – Inset`;
  if (next.view === "search") showSearch(next);
  if (next.view === "browse") showBrowse(next);
  showViewer(next);
  if (moved && before !== next.view && !byId("viewer").open) {
    byId(next.view).querySelector("h1").focus({ preventScroll: true });
    window.scrollTo(0, 0);
  }
});

// Links to a view don't reload the page.
document.addEventListener("click", (event) => {
  const link = event.target.closest?.("a[data-view]");
  if (!link || !isPlainClick(event)) return;
  event.preventDefault();
  go({ view: link.dataset.view });
});
byId("query-clear").addEventListener("click", (event) => {
  if (!isPlainClick(event)) return;
  event.preventDefault();
  go({ view: "search" });
});

// Dropped and pasted

let depth = 0; // dragenter and dragleave fire for each element under the pointer

const hasFiles = (event) => event.dataTransfer?.types.includes("Files");

document.addEventListener("dragenter", (event) => {
  if (!hasFiles(event)) return;
  depth += 1;
  document.body.classList.add("dragging");
});
document.addEventListener("dragleave", (event) => {
  if (!hasFiles(event)) return;
  depth -= 1;
  if (depth <= 0) stopDragging();
});
document.addEventListener("dragover", (event) => {
  if (hasFiles(event)) event.preventDefault();
});
document.addEventListener("drop", async (event) => {
  if (!hasFiles(event)) return;
  event.preventDefault();
  stopDragging();
  take(await filesOf(event.dataTransfer));
});
document.addEventListener("paste", (event) => {
  const files = [...event.clipboardData.files];
  if (files.length === 0) return;
  event.preventDefault();
  take({ files, leftOut: [] });
});

function stopDragging() {
  depth = 0;
  document.body.classList.remove("dragging");
}

let waiting = null; // files that came before it was known what this browser may do

/** Search with a file in the search view; store all files in the other views. */
function take(found) {
  if (!session.scopes) {
    waiting = found;
    return;
  }
  if (route.view === "search") return searchWithOne(found);
  if (!session.may("write")) return say(byId("refusal"), session.refusal("write"));
  if (route.view !== "add") go({ view: "add" });
  addFiles(found);
}

startSearch();
startBrowse();
startAdd();
startViewer();
startDeletion();
startSignin();
service.addEventListener("up", reloadFailedImages);
session.addEventListener("change", () => {
  document.body.dataset.may = session.scopes.join(" ");
  start();
  if (isStoring() && !session.may("write")) say(byId("refusal"), stopStoring());
  if (waiting) take(waiting);
  waiting = null;
});
service.check();
begin();

/** Ask what this browser may do. The answer shows the first view. */
async function begin() {
  try {
    await session.check();
  } catch (problem) {
    await service.afterwards(problem);
    begin();
  }
}
