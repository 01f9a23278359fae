// The view that stores photos. It sends some with each call, and shows the progress and failures.

import { index } from "./api.js";
import { forgetListing } from "./browse.js";
import { card } from "./cards.js";
import { deletion } from "./deletion.js";
import { announce, byId, count, make, say } from "./elements.js";
import { ACCEPTED, filesOfFolder, kindsOf } from "./files.js";
import { forgetResults } from "./search.js";
import { service } from "./service.js";
import { session } from "./session.js";

const IN_FLIGHT = 2; // calls
const MOST_FILES = 16; // of a call, at first
const MOST_BYTES = 8e6; // of a call with several files
const ATTEMPTS = 8; // in a row that get nowhere
const SHOWN_FAILURES = 200;
const SHOWN_NEW = 24;
const RECENT = 20; // photos that the rate is computed from
const REDRAW_MS = 200;
const ANNOUNCE_MS = 15_000;

let current = null; // the running or the last run

class Run {
  total = 0;
  created = 0;
  existed = 0;
  leftOut = []; // suffixes
  failures = []; // {file, reason}
  queue = [];
  abort = new AbortController();
  recent = [performance.now()]; // when the latest photos were done
  announced = performance.now();
  ended = false;
  most = MOST_FILES; // of a call

  /** Take the files of the next call from the queue. */
  take() {
    const files = [this.queue.shift()];
    let { size } = files[0];
    while (this.queue.length > 0 && files.length < this.most) {
      size += this.queue[0].size;
      if (size > MOST_BYTES) break;
      files.push(this.queue.shift());
    }
    return files;
  }

  get done() {
    return this.created + this.existed + this.failures.length;
  }
}

/** Store files; they join a run that has not ended. */
export async function addFiles({ files, leftOut }) {
  const fresh = !isStoring();
  if (fresh) current = new Run();
  current.queue.push(...files);
  current.total += files.length;
  current.leftOut = current.leftOut.concat(leftOut);
  if (!fresh) return;
  byId("add-grid").replaceChildren();
  byId("add-new").hidden = true;
  byId("add-failures-list").replaceChildren();
  byId("add-progress").hidden = false;
  announce(`Storing ${count(current.total, "photo")}.`);
  await work(current);
}

/** Return whether photos are being stored. */
export const isStoring = () => Boolean(current) && !current.ended && !current.abort.signal.aborted;

/** Stop storing, because the key doesn't allow it any more; return a sentence that says so. */
export function stopStoring() {
  current.abort.abort();
  const { done, total } = current;
  return `${session.refusal("write")} ${done} of ${count(total, "photo")} were done.`;
}

async function work(run) {
  const redraw = setInterval(draw, REDRAW_MS);
  draw();
  // More files may be dropped meanwhile.
  while (run.queue.length > 0 && !run.abort.signal.aborted) {
    await Promise.all(Array.from({ length: IN_FLIGHT }, () => worker(run)));
  }
  clearInterval(redraw);
  run.ended = true;
  forgetListing();
  forgetResults();
  service.check(); // for its counts
  if (run !== current) return;
  draw();
  announce(byId("add-title").textContent + ". " + byId("add-numbers").textContent);
}

async function worker(run) {
  while (run.queue.length > 0 && !run.abort.signal.aborted) await send(run, run.take());
}

/** Store some files. Those without an answer are sent again when the service is busy or away. */
async function send(run, files) {
  const { signal } = run.abort;
  const left = new Set(files);
  const done = (file) => {
    left.delete(file);
    run.recent = [...run.recent.slice(-RECENT), performance.now()];
  };
  const stored = (file, image) => {
    done(file);
    run[image.status === "created" ? "created" : "existed"] += 1;
    deletion.keep(image.id); // it may be waiting to be deleted, but was sent again
    if (image.status === "created") showNew(image);
  };
  const failed = (file, reason) => {
    done(file);
    run.failures.push({ file, reason });
    showFailure(file, reason);
  };
  for (let attempt = 1; left.size > 0; attempt += 1) {
    const { size } = left;
    try {
      await index([...left], { stored, failed }, signal);
    } catch (problem) {
      if (signal.aborted) return;
      if (problem.passing) await failUnreadable(left, failed);
      if (left.size < size) {
        attempt = 0; // it got on
      } else if (left.size > 1 && (problem.passing || isTooMuch(problem))) {
        run.most = Math.ceil(left.size / 2);
        run.queue.unshift(...left);
        left.clear();
      } else if (!problem.passing || attempt === ATTEMPTS) {
        for (const file of left) failed(file, problem.message);
      }
      if (problem.passing) await service.afterwards(problem, signal).catch(() => {});
    }
  }
}

/** Return whether fewer files may help: they were too many, or too large or too slow together. */
const isTooMuch = ({ status }) => [400, 408, 413].includes(status);

/** Give up files that can't be read: a call with one of them fails as if the service were away. */
async function failUnreadable(files, failed) {
  for (const file of files) {
    if (await isReadable(file)) continue;
    failed(file, "It can't be read: it was moved or changed, or is not a file.");
  }
}

async function isReadable(file) {
  try {
    await file.slice(0, 1).arrayBuffer();
    return true;
  } catch {
    return false;
  }
}

function showNew(image) {
  byId("add-new").hidden = false;
  byId("add-grid").prepend(card(image));
  byId("add-grid").children[SHOWN_NEW]?.remove();
}

function showFailure(file, reason) {
  const list = byId("add-failures-list");
  if (list.children.length >= SHOWN_FAILURES) return;
  const name = make("bdi", { class: "name" }, file.webkitRelativePath || file.name);
  list.append(make("li", {}, name, " ", reason));
}

// Progress

function draw() {
  const { total, done, created, existed, leftOut, failures, abort, ended } = current;
  const cancelled = abort.signal.aborted;
  byId("add-bar").max = Math.max(1, total);
  byId("add-bar").value = total ? done : 1;
  const title = cancelled ? "Cancelled" : ended ? "Done" : "Storing";
  byId("add-title").textContent = `${title}: ${done} of ${count(total, "photo")}`;
  const numbers = [
    [created, `${created} stored`],
    [existed, `${existed} already stored`],
    [failures.length, `${failures.length} failed`],
    [leftOut.length, `${count(leftOut.length, "other file")} left out (${kindsOf(leftOut)})`],
  ];
  const texts = numbers.filter(([number]) => number > 0).map(([, text]) => text);
  if (ended && total === 0) texts.unshift("There were no photos");
  byId("add-numbers").textContent = texts.join(" · ");
  byId("add-pace").textContent = ended || cancelled ? "" : pace();
  byId("add-cancel").hidden = ended || cancelled;
  byId("add-retry").hidden = !ended || failures.length === 0;
  byId("add-failures").hidden = failures.length === 0;
  const more = failures.length > SHOWN_FAILURES ? ` (the first ${SHOWN_FAILURES})` : "";
  byId("add-failures-title").textContent = `Failed files${more}`;
  if (!ended && performance.now() - current.announced > ANNOUNCE_MS) {
    current.announced = performance.now();
    announce(`${done} of ${total} photos. ${pace()}`);
  }
}

/** Return the rate and the time left, computed from the latest photos. */
function pace() {
  if (session.locked) return "Waiting for a key.";
  if (service.ready === false) return "Waiting for the service.";
  const { recent, total, done } = current;
  if (recent.length < 3) return "";
  const rate = (recent.length - 1) / ((performance.now() - recent[0]) / 1000);
  return `${rate.toFixed(1)} photos/s · ${duration((total - done) / rate)} left`;
}

function duration(seconds) {
  if (seconds < 90) return `${Math.ceil(seconds)} s`;
  if (seconds < 90 * 60) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

/** Wire the view. */
export function startAdd() {
  byId("add-files").accept = ACCEPTED;
  byId("add-files").addEventListener("change", ({ target }) => {
    addFiles({ files: [...target.files], leftOut: [] });
    target.value = "";
  });
  byId("add-folder").addEventListener("change", ({ target }) => {
    addFiles(filesOfFolder(target.files));
    target.value = "";
  });
  // Phones can't choose folders.
  byId("add-folder-label").hidden = !("webkitdirectory" in HTMLInputElement.prototype);
  byId("add-cancel").addEventListener("click", () => current.abort.abort());
  byId("add-retry").addEventListener("click", () => {
    addFiles({ files: current.failures.map(({ file }) => file), leftOut: [] });
  });
  deletion.addEventListener("change", () => {
    for (const item of byId("add-grid").children) item.hidden = deletion.isHidden(item.dataset.id);
  });
  deletion.addEventListener("deleted", ({ detail }) => {
    [...byId("add-grid").children].find((item) => item.dataset.id === detail)?.remove();
  });
  session.addEventListener("change", () => {
    byId("add-grid").replaceChildren();
    byId("add-new").hidden = true;
  });
  window.addEventListener("beforeunload", (event) => {
    if (current && !current.ended) event.preventDefault();
  });
}
