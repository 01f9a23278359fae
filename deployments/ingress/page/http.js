// Makes a call to the service, and says what is wrong if it fails.

const TIMEOUT_MS = 130_000; // longer than the service's own timeout, so that its error arrives

/** Fires "trouble" when a request failed because the service is busy or away. */
export const connection = new EventTarget();

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

/**
 * Make a call.
 * @param {function(Response)=} read what becomes of a good answer; by default its JSON, or its
 *     headers if it is empty
 */
export async function ask(path, { timeout = TIMEOUT_MS, signal, read = content, ...options } = {}) {
  const limits = [AbortSignal.timeout(timeout), ...(signal ? [signal] : [])];
  try {
    const response = await fetch(path, { ...options, signal: AbortSignal.any(limits) });
    if (!response.ok) throw await problem(response);
    return await read(response);
  } catch (error) {
    if (signal?.aborted) throw error;
    const failure = error instanceof Problem ? error : noAnswer(error, timeout);
    if (failure.passing) connection.dispatchEvent(new Event("trouble"));
    throw failure;
  }
}

const content = (response) => (response.status === 204 ? response.headers : response.json());

function noAnswer(error, timeout) {
  if (error.name === "TimeoutError") {
    return new Problem(408, `The service did not answer within ${timeout / 1000} s.`, true);
  }
  const sentence = "The service can't be reached: it was stopped, or the network is down.";
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
