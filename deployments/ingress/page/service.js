// Polls the state of the service and shows it in a line. Fires "state" after each poll, and "up"
// when the service is ready again.

import { forgetChanges, state } from "./api.js";
import { announce, byId, count, say } from "./elements.js";
import { connection } from "./http.js";

const CALM_MS = 15_000;
const FIRST_MS = 500;
const LONGEST_MS = 8000;

class Service extends EventTarget {
  /** The last answer of `/stats`; null before the first. */
  stats = null;
  /** Whether the last poll was answered; null before the first. */
  ready = null;

  #asking = null;
  #timer = 0;
  #failures = 0;

  /** Poll now; return when the answer has arrived. */
  check() {
    this.#asking ??= this.#ask().finally(() => (this.#asking = null));
    return this.#asking;
  }

  /** Return when the service is ready, however long that takes, or when the signal aborts. */
  async whenReady(signal) {
    await this.check();
    while (!this.ready && !signal?.aborted) {
      await new Promise((resolve) => {
        this.addEventListener("up", resolve, { once: true });
        signal?.addEventListener("abort", resolve, { once: true });
      });
    }
  }

  /** Return when a request that failed with a passing problem is worth another try. */
  async afterwards(problem, signal) {
    await new Promise((resolve) => setTimeout(resolve, 1000 * problem.retryAfter));
    signal?.throwIfAborted();
    await this.whenReady(signal);
    signal?.throwIfAborted();
  }

  async #ask() {
    clearTimeout(this.#timer);
    const before = this.ready;
    try {
      this.stats = await state();
      this.ready = true;
      this.#failures = 0;
    } catch (problem) {
      this.ready = false;
      this.#failures += 1;
      this.#show(problem);
    }
    if (this.ready) this.#show(null);
    if (this.ready && before === false) {
      forgetChanges();
      announce("The service is ready again.");
      this.dispatchEvent(new Event("up"));
    }
    this.dispatchEvent(new Event("state"));
    const wait = this.ready ? CALM_MS : Math.min(LONGEST_MS, FIRST_MS * 2 ** (this.#failures - 1));
    this.#timer = setTimeout(() => {
      if (this.ready && document.hidden) return; // polled again when the page is visible
      this.check();
    }, wait);
  }

  #show(problem) {
    byId("state").dataset.state = problem ? "down" : "ready";
    if (problem) {
      byId("state-text").textContent = problem.status === 0 ? "Not reachable" : "Not ready";
      const text = `${problem.message} This page continues when the service is back.`;
      // A change makes screen readers read it again.
      if (byId("trouble").textContent !== text) say(byId("trouble"), text);
      return;
    }
    say(byId("trouble"), null);
    const { store, encoder, chunk_index: index } = this.stats;
    const counts = [count(store.photos, "photo"), count(store.chunks, "chunk")];
    const parts = ["Ready", ...counts, `encoder ${encoder.name}`, `${index.engine} index`];
    byId("state-text").textContent = parts.join(" · ");
  }
}

export const service = new Service();

connection.addEventListener("trouble", () => {
  if (service.ready) service.check();
});
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) service.check();
});
window.addEventListener("online", () => service.check());
