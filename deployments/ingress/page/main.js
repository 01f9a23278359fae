// Starts the page: it shows the view of the route, and takes files that are dropped or pasted.

import { addFiles, startAdd } from "./add.js";
import { showBrowse, startBrowse } from "./browse.js";
import { reloadFailedImages } from "./cards.js";
import { startDeletion } from "./deletion.js";
import { byId, isPlainClick } from "./elements.js";
import { filesOf } from "./files.js";
import { go, onRoute, route, start } from "./route.js";
import { searchWithOne, showSearch, startSearch } from "./search.js";
import { service } from "./service.js";
import { showViewer, startViewer } from "./viewer.js";

const VIEWS = { search: "Search", browse: "Browse", add: "Add photos" };

onRoute((next, moved) => {
  const before = Object.keys(VIEWS).find((view) => !byId(view).hidden);
  for (const view of Object.keys(VIEWS)) byId(view).hidden = view !== next.view;
  for (const link of document.querySelectorAll("nav a[data-view]")) {
    if (link.dataset.view === next.view) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${VIEWS[next.view]} – Inset`;
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

/** Search with a file in the search view; store all files in the other views. */
function take(found) {
  if (route.view === "search") return searchWithOne(found);
  if (route.view !== "add") go({ view: "add" });
  addFiles(found);
}

startSearch();
startBrowse();
startAdd();
startViewer();
startDeletion();
service.addEventListener("up", reloadFailedImages);
service.check();
start();
