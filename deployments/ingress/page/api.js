// Calls to the service. They use its HTTP interface only as /openapi.json describes it.

import { Problem, ask } from "./http.js";
import { session } from "./session.js";

const TRIES = 3; // of a call that needs a key

// The last change that this page made in the store. Searches must know it.
let sequence = 0;

/** Make a call; if it needs a key, make it again when somebody has signed in. */
async function request(path, options = {}) {
  for (let attempt = 1; ; attempt += 1) {
    try {
      return await ask(path, options);
    } catch (problem) {
      if (problem.status !== 401 || attempt === TRIES) throw problem;
      await session.whenOpen(options.signal);
    }
  }
}

/** Return the path of a stored photo, or of its thumbnail. */
export const original = (id) => `images/${encodeURIComponent(id)}`;
export const thumbnail = (id) => `${original(id)}/thumbnail`;

function body(blob) {
  // The service takes the format from the bytes, but it requires the type of an image.
  const type = blob.type.startsWith("image/") ? blob.type : "image/unknown";
  return { method: "POST", body: blob, headers: { "Content-Type": type } };
}

/**
 * Search by a picture, a stored photo or a text.
 * @param {{blob?: Blob, id?: string, text?: string, box?: number[]}} query
 * @returns {Promise<{found: ?boolean, texture: ?string, matches: object[]}>} verified matches
 *     first, then the others, nearest first; copies of a match are in its `copies`
 */
export async function search(query, { limit, maxDistance, signal }) {
  const parameters = new URLSearchParams({ limit, group: "copies" });
  if (maxDistance < 2) parameters.set("max_distance", maxDistance);
  if (sequence > 0) parameters.set("min_sequence", sequence);
  if (query.box) parameters.set("box", query.box.join(","));
  if (query.id) parameters.set("id", query.id);
  if (query.text) parameters.set("text", query.text);
  const options = query.blob ? body(query.blob) : { method: "POST" };
  return request(`search?${parameters}`, { ...options, signal });
}

/**
 * Store photos with one call.
 * @param {File[]} files
 * @param {{stored: function(File, object), failed: function(File, string)}} then called for each
 *     file as soon as it is done, with its record and the status "created" or "exists", or with the
 *     reason why it can't be stored
 * @throws {Problem} a passing one if some files were not done: they can be sent again
 */
export async function index(files, { stored, failed }, signal) {
  const body = new FormData();
  for (const file of files) body.append("file", file, file.name);
  let missing = files.length;
  let reason = "The answer of the service broke off.";
  const take = ({ part, ...image }) => {
    if (image.error?.status === 503) {
      reason = image.error.detail;
      return;
    }
    missing -= 1;
    if (image.status === "failed") return failed(files[part], image.error.detail);
    sequence = Math.max(sequence, image.sequence);
    stored(files[part], image);
  };
  const headers = { Accept: "application/x-ndjson" };
  const read = (response) => readLines(response, take);
  await request("index", { method: "POST", body, headers, read, signal });
  if (missing > 0) throw new Problem(503, reason, true);
}

/** Call a function with each line of an answer, which is JSON, as soon as it is there. */
async function readLines(response, take) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return; // a line without an end was cut off
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) take(JSON.parse(line));
  }
}

/** Remove a photo, even if the page is closed meanwhile. */
export async function remove(id) {
  const headers = await request(original(id), { method: "DELETE", keepalive: true });
  sequence = Math.max(sequence, Number(headers.get("Inset-Sequence")));
}

/** Forget the changes that were made: the service may come back with an older store. */
export function forgetChanges() {
  sequence = 0;
}

export const record = (id, signal) => request(`${original(id)}/record`, { signal });

/** Return the next records, and whether there are more. */
export async function list(after, limit, signal) {
  const parameters = new URLSearchParams({ limit, chunks: false, ...(after && { after }) });
  const { images, next } = await request(`images?${parameters}`, { signal });
  return { images, more: next !== null };
}

/** Return the answer of `/stats`, once `/healthz` reports that the service is ready. */
export async function state() {
  await request("healthz", { timeout: 10_000 });
  return request("stats", { timeout: 10_000 });
}
