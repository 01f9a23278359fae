// Deletes photos. They are hidden at once, and deleted some seconds later, unless the user undoes
// it.
//
// Fires "change" when photos are hidden or shown again, and "deleted" (`detail`: the id) when the
// service has deleted one.

import { remove } from "./api.js";
import { nameOf } from "./cards.js";
import { announce, byId, count, say } from "./elements.js";
import { service } from "./service.js";

const SECONDS = 5;
const ATTEMPTS = 5;

const waiting = new Map(); // photos by id that can still be kept
const leaving = new Map(); // photos by id that the service is asked to delete
let timer = 0;

class Deletion extends EventTarget {
  /** Return whether a photo is hidden. */
  isHidden(id) {
    return waiting.has(id) || leaving.has(id);
  }

  /** Hide a photo, and delete it after some seconds. */
  delete(photo) {
    waiting.set(photo.id, photo);
    changed();
    showToast("Undo with the button, or Ctrl+Z.");
    wait();
  }

  /** Delete now what still waits; return when that is done. */
  async settle() {
    if (waiting.size > 0) await commit();
  }

  /** Keep a photo that was about to be deleted. */
  keep(id) {
    if (!waiting.delete(id)) return;
    changed();
    showToast("");
  }
}

export const deletion = new Deletion();

function changed() {
  deletion.dispatchEvent(new Event("change"));
}

function showToast(more) {
  const photos = [...waiting.values()];
  const what = photos.length === 1 ? nameOf(photos[0]) : count(photos.length, "photo");
  say(byId("toast-text"), photos.length ? `Deleted ${what}.` : null);
  byId("toast-undo").hidden = photos.length === 0;
  byId("toast").hidden = photos.length === 0;
  if (photos.length) announce(`Deleted ${what}. ${more}`);
}

function wait() {
  clearTimeout(timer);
  timer = setTimeout(commit, 1000 * SECONDS);
}

function undo() {
  clearTimeout(timer);
  const photos = count(waiting.size, "photo");
  waiting.clear();
  byId("toast").hidden = true;
  changed();
  announce(`${photos} restored.`);
}

async function commit() {
  clearTimeout(timer);
  const photos = [...waiting.values()];
  waiting.clear();
  byId("toast").hidden = true;
  for (const photo of photos) leaving.set(photo.id, photo);
  const failures = await Promise.all(photos.map(erase));
  changed();
  const failure = failures.find(Boolean);
  if (failure) {
    say(byId("toast-text"), failure);
    byId("toast-undo").hidden = true;
    byId("toast").hidden = false;
    announce(failure);
  }
  service.check(); // for its counts
}

/** Delete one photo; return a message if that failed. */
async function erase(photo) {
  for (let attempt = 1; ; attempt += 1) {
    try {
      await remove(photo.id);
      break;
    } catch (problem) {
      if (problem.status === 404 && !problem.passing) break; // another client has deleted it
      if (!problem.passing || attempt === ATTEMPTS) {
        leaving.delete(photo.id);
        return `${nameOf(photo)} was not deleted: ${problem.message}`;
      }
      await service.afterwards(problem);
    }
  }
  deletion.dispatchEvent(new CustomEvent("deleted", { detail: photo.id }));
  leaving.delete(photo.id);
  return null;
}

/** Wire the toast and its buttons. */
export function startDeletion() {
  const toast = byId("toast");
  byId("toast-undo").addEventListener("click", undo);
  byId("toast-close").addEventListener("click", () => {
    if (waiting.size) commit();
    else toast.hidden = true;
  });
  // The timer stops while the pointer or the focus is on the buttons.
  for (const name of ["pointerenter", "focusin"]) {
    toast.addEventListener(name, () => clearTimeout(timer));
  }
  for (const name of ["pointerleave", "focusout"]) {
    toast.addEventListener(name, () => {
      if (waiting.size && !toast.matches(":hover") && !toast.matches(":focus-within")) wait();
    });
  }
  document.addEventListener("keydown", (event) => {
    const isUndo = event.key === "z" && (event.ctrlKey || event.metaKey) && !event.shiftKey;
    if (!isUndo || !waiting.size || event.target.matches("input")) return;
    event.preventDefault();
    undo();
  });
  window.addEventListener("pagehide", () => {
    for (const id of waiting.keys()) remove(id);
    waiting.clear();
  });
}
