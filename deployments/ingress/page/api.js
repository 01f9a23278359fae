// Calls to the service. They use its HTTP interface only as /openapi.json describes it.

const TIMEOUT_MS = 130_000; // longer than the service's own timeout, so that its error arrives

/** Fires "trouble" when a request failed because the service is busy or away. */
export const connection = new EventTarget();

// The last change that this page made in the store. Searches must know it.
let sequence = 0;

/** A request that failed; the message is for the user. */
export class Problem extends Error {
  /**
   * @param {number} status the HTTP status; 0 if there was no answer
   * @param {boolean} passing whether it is worth another try
   * @param {number} retryAfter seconds to wait before that
   */
  constructor(status, detail, passing, retryAfter = 1) {
    super(detail);
    Object.assign(this, { status, passing, retryAfter });
  }
}

async function request(path, { timeout = TIMEOUT_MS, signal, ...options } = {}) {
  const limits = [AbortSignal.timeout(timeout), ...(signal ? [signal] : [])];
  try {
    const response = await fetch(path, { ...options, signal: AbortSignal.any(limits) });
    if (!response.ok) throw await problem(response);
    return response.status === 204 ? response.headers : await response.json();
  } catch (error) {
    if (signal?.aborted) throw error;
    const failure = error instanceof Problem ? error : noAnswer(error, timeout);
    if (failure.passing) connection.dispatchEvent(new Event("trouble"));
    throw failure;
  }
}

function noAnswer(error, timeout) {
  const sentence =
    error.name === "TimeoutError"
      ? `The service did not answer within ${timeout / 1000} s.`
      : "The service can't be reached: it was stopped, or the network is down.";
  return new Problem(0, sentence, true);
}

async function problem(response) {
  const retryAfter = Number(response.headers.get("Retry-After")) || 1;
  const { status } = response;
  if (response.headers.get("Content-Type")?.startsWith("application/problem+json")) {
    const passing = status === 503;
    const { detail } = await response.json();
    return new Problem(status, detail, passing, retryAfter);
  }
  // This is not the service's answer: the proxy in front of it reports that it isn't running (yet).
  const passing = [404, 500, 502, 503, 504].includes(status);
  return new Problem(
    status,
    passing ? "The service is starting." : `The answer was ${status} ${response.statusText}.`,
    passing,
    retryAfter,
  );
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

/** Store a photo; return its record, with the status "created" or "exists". */
export async function index(file, signal) {
  const parameters = new URLSearchParams({ filename: file.name });
  const answer = await request(`index?${parameters}`, { ...body(file), signal });
  const [image] = answer.images;
  sequence = Math.max(sequence, image.sequence);
  return image;
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
  const parameters = new URLSearchParams({ limit, ...(after && { after }) });
  const { images, next } = await request(`images?${parameters}`, { signal });
  return { images, more: next !== null };
}

/** Return the answer of `/stats`, once `/healthz` reports that the service is ready. */
export async function state() {
  await request("healthz", { timeout: 10_000 });
  return request("stats", { timeout: 10_000 });
}
