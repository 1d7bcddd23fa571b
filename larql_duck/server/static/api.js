// Requests to the server that the page came from, with the key where it wants one.

const KEY = "larql-duck-key";

export class ServerError extends Error {
  constructor(status, body) {
    super(body.error?.message ?? body.error ?? `the server answered ${status}`);
    this.status = status;
    this.line = body.line;
    this.column = body.column;
  }
}

export function setKey(key) {
  sessionStorage.setItem(KEY, key);
}

async function ask(path, options = {}) {
  const headers = { Accept: "application/json", ...options.headers };
  const key = sessionStorage.getItem(KEY);
  if (key) headers.Authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError(0, { error: "the server does not answer; is larql-duck serve still running?" });
  }
  const body = await response.json().catch(() => ({}));
  if (!response.ok) throw new ServerError(response.status, body);
  return body;
}

export function models() {
  return ask("/v1/models");
}

/** GET below /v1/{model}/ with these parameters. */
export function get(model, path, parameters = {}, signal = undefined) {
  const query = new URLSearchParams(parameters).toString();
  return ask(`/v1/${encodeURIComponent(model)}/${path}${query ? `?${query}` : ""}`, { signal });
}

/** POST below /v1/{model}/ with this body. */
export function post(model, path, body, signal = undefined) {
  return ask(`/v1/${encodeURIComponent(model)}/${path}`, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
}

/** The text as a string of LQL. */
export function quoted(text) {
  const escapes = { "\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t", "\r": "\\r", "\0": "\\0" };
  return `"${text.replace(/[\\"\n\t\r\0]/g, (c) => escapes[c])}"`;
}

/** The rows of one LQL statement as objects, and its notices. */
export async function lql(model, statement, signal = undefined) {
  const answer = await post(model, "query", { statement }, signal);
  const rows = answer.rows.map((row) => Object.fromEntries(answer.columns.map((name, i) => [name, row[i]])));
  return { rows, notices: answer.notices };
}
