// Calls of /api/v1. Errors come as problem+json and become `Problem`, whose message can be shown as it is.

import { at } from "./base.js";

const BASE = at("/api/v1");

/** What went wrong with a call. `status` 0: no answer at all. */
export class Problem extends Error {
  constructor(status, title, detail) {
    super(detail || title);
    this.status = status;
    this.title = title;
  }
}

let onSignedOut = () => {};

/** Called when an answer says that a token is needed. */
export function whenSignedOut(handler) {
  onSignedOut = handler;
}

/** To be called when something else shows that the user is no longer signed in. */
export function signedOut() {
  onSignedOut();
}

/**
 * A path of the API with a query; parameters that are null or empty are left out.
 * @param {string[]} parts
 * @param {Record<string, unknown>} [query]
 */
export function path(parts, query = {}) {
  const params = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) {
    if (value !== null && value !== undefined && value !== "") params.set(name, String(value));
  }
  const text = params.toString();
  return parts.map((part) => `/${encodeURIComponent(part)}`).join("") + (text ? `?${text}` : "");
}

/**
 * GET; `signal` ends it when its page is left.
 * @param {string[]} parts
 * @param {Record<string, unknown>} [query]
 * @param {AbortSignal} [signal]
 * @returns {Promise<any>}
 */
export function get(parts, query, signal) {
  return call("GET", path(parts, query), undefined, signal);
}

/** POST. The header says that the request comes from our own page, which a foreign page's form can't. */
export function post(parts, body) {
  return call("POST", path(parts), body);
}

/** DELETE. */
export function remove(parts) {
  return call("DELETE", path(parts));
}

async function call(method, where, body, signal) {
  /** @type {Record<string, string>} */
  const headers = { accept: "application/json" };
  if (method !== "GET") headers["x-balance-sync"] = "1";
  if (body !== undefined) headers["content-type"] = "application/json";
  let response;
  try {
    response = await fetch(BASE + where, {
      method,
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      credentials: "same-origin",
      cache: "no-store",
      signal,
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, "no answer", "The worker that serves this page gives no answer.");
  }
  const answer = await response.json().catch(() => null);
  if (response.ok) return answer;
  // An attempt to sign in is reported by its own page.
  if (response.status === 401 && where !== "/session") onSignedOut();
  throw new Problem(response.status, answer?.title ?? `HTTP ${response.status}`, answer?.detail);
}
