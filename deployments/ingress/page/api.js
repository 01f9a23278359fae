// The service's HTTP interface, and nothing that it does not describe at /openapi.json.

const TIMEOUT_MS = 130_000; // longer than the service's own, so that it says what was wrong

/** Fires "trouble" when the service didn't answer as it does when it is well. */
export const connection = new EventTarget();

// The last change of the store made from here: searches must know of it.
let sequence = 0;

/** A request that failed; the message is a sentence for people. */
export class Problem extends Error {
  /**
   * @param {number} status the HTTP status; 0 if there was no answer
   * @param {boolean} passing worth another try
   * @param {number} retryAfter seconds to wait before it
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
    const failure = error instanceof Problem ? error : silence(error, timeout);
    if (failure.passing) connection.dispatchEvent(new Event("trouble"));
    throw failure;
  }
}

function silence(error, timeout) {
  const sentence =
    error.name === "TimeoutError"
      ? `The service did not answer within ${timeout / 1000} s.`
      : "The service can't be reached: it was stopped, or the network is gone.";
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
  // Not the service's own words: what is in front of it says that it is not there (yet).
  const passing = [404, 500, 502, 503, 504].includes(status);
  return new Problem(
    status,
    passing ? "The service is starting." : `The answer was ${status} ${response.statusText}.`,
    passing,
    retryAfter,
  );
}

/** Paths of a stored photo. */
export const original = (id) => `images/${encodeURIComponent(id)}`;
export const thumbnail = (id) => `${original(id)}/thumbnail`;

function body(blob) {
  // The service looks at the bytes, not at this; but it wants to hear of an image.
  const type = blob.type.startsWith("image/") ? blob.type : "image/unknown";
  return { method: "POST", body: blob, headers: { "Content-Type": type } };
}

/**
 * Search by a picture, a stored photo, or words.
 * @param {{blob?: Blob, id?: string, text?: string, box?: number[]}} query
 * @returns {Promise<object[]>} matches, nearest first
 */
export async function search(query, { limit, maxDistance, signal }) {
  const parameters = new URLSearchParams({ limit });
  if (maxDistance < 2) parameters.set("max_distance", maxDistance);
  if (sequence > 0) parameters.set("min_sequence", sequence);
  if (query.box) parameters.set("box", query.box.join(","));
  if (query.id) parameters.set("id", query.id);
  if (query.text) parameters.set("text", query.text);
  const options = query.blob ? body(query.blob) : { method: "POST" };
  return (await request(`search?${parameters}`, { ...options, signal })).matches;
}

/** Store a photo; returns its record, with the status "created" or "exists". */
export async function index(file, signal) {
  const parameters = new URLSearchParams({ filename: file.name });
  const answer = await request(`index?${parameters}`, { ...body(file), signal });
  const [image] = answer.images;
  sequence = Math.max(sequence, image.sequence);
  return image;
}

/** Remove a photo, also when the page goes away meanwhile. */
export async function remove(id) {
  const headers = await request(original(id), { method: "DELETE", keepalive: true });
  sequence = Math.max(sequence, Number(headers.get("Inset-Sequence")));
}

/** Forget which changes were made: a service may come back with an older store. */
export function forgetChanges() {
  sequence = 0;
}

export const record = (id, signal) => request(`${original(id)}/record`, { signal });

/** A page of records, and whether there is another. */
export async function list(after, limit, signal) {
  const parameters = new URLSearchParams({ limit, ...(after && { after }) });
  const { images, next } = await request(`images?${parameters}`, { signal });
  return { images, more: next !== null };
}

/** What `/stats` says of a service that `/healthz` says is ready. */
export async function state() {
  await request("healthz", { timeout: 10_000 });
  return request("stats", { timeout: 10_000 });
}
