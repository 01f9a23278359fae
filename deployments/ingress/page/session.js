// What this browser may do. Its key is in a cookie that no script can read.
//
// Fires "locked" when the service wants a key, and "open" when it has got one. Before "open" comes
// "change" if something else is allowed now, or if that is known for the first time.

import { Problem, ask } from "./http.js";

const DEEDS = {
  search: "search",
  read: "see photos",
  write: "add photos",
  admin: "delete photos",
};

class Session extends EventTarget {
  /** Whether the service takes keys. */
  keys = false;
  /** The name of the key; null if there is none. */
  name = null;
  /** What is allowed; null until it is known. */
  scopes = null;
  /** Whether somebody has to sign in. */
  locked = false;

  #asking = null;

  /** Return whether a scope is allowed. */
  may(scope) {
    return this.scopes?.includes(scope) ?? false;
  }

  /** Return a sentence that says that a scope is not allowed. */
  refusal(scope) {
    return `The key “${this.name}” may not ${DEEDS[scope]}.`;
  }

  /** Ask the service what this browser may do. */
  check() {
    this.#asking ??= this.#ask().finally(() => (this.#asking = null));
    return this.#asking;
  }

  /** Return when a call that was refused for want of a key is worth another try. */
  async whenOpen(signal) {
    await this.check();
    while (this.locked) {
      signal?.throwIfAborted();
      await new Promise((resolve, reject) => {
        this.addEventListener("open", resolve, { once: true });
        signal?.addEventListener("abort", () => reject(signal.reason), { once: true });
      });
    }
  }

  /** Let the browser keep a key. */
  async signIn(key) {
    // Others can't be in a header.
    if (!/^[!-~]+$/.test(key)) {
      throw new Problem(401, "A key has no spaces and no letters beyond ASCII.", false);
    }
    await ask("session", { method: "POST", headers: { Authorization: `Bearer ${key}` } });
    // An answer that was asked for before knows nothing of the key.
    await this.#asking?.catch(() => {});
    await this.check();
    if (this.locked) {
      throw new Problem(401, "This browser did not keep the key: let it accept cookies.", false);
    }
  }

  /** Let the browser forget its key. */
  async signOut() {
    await ask("session", { method: "DELETE" });
  }

  async #ask() {
    try {
      this.#take(await ask("session", { cache: "no-store" }));
    } catch (problem) {
      if (problem.status !== 401) throw problem;
      this.locked = true;
      this.dispatchEvent(new Event("locked"));
    }
  }

  #take({ name, scopes, keys }) {
    const before = JSON.stringify([this.name, this.scopes, this.keys]);
    Object.assign(this, { name, scopes, keys, locked: false });
    const isOther = JSON.stringify([name, scopes, keys]) !== before;
    if (isOther) this.dispatchEvent(new Event("change"));
    this.dispatchEvent(new Event("open"));
  }
}

export const session = new Session();

// Somebody may have signed in or out in another tab, or have come back to this page.
document.addEventListener("visibilitychange", () => {
  if (!document.hidden && session.locked) session.check().catch(() => {});
});
window.addEventListener("pageshow", ({ persisted }) => {
  if (persisted) session.check().catch(() => {});
});
