// What is known of the fleet, kept up to date by server-sent events. One store for all pages: they read it, subscribe to
// it, and are notified of what changed. The stream itself is one for all tabs of the browser (hub.js).
//
// "Connected" means that data come: a connection that is open but silent for SILENCE counts as lost, since a number that
// no longer changes looks like a number that is true.

import { get, signedOut } from "./api.js";
import { at } from "./base.js";
import { moment } from "./format.js";
import { BEAT, Hub } from "./hub.js";

/** Events come every 2 s; after this long without one the data are called old. */
const SILENCE = 8_000;
/** Pauses between attempts to connect again. The browser's own attempts end for good at the first odd answer. */
const RETRY = [1_000, 2_000, 4_000, 8_000];
/** Points kept of the overview's history: an hour in steps of 5 s. */
const HISTORY = 720;
/** The step of the history. */
const STEP = 5_000;

/** @type {Map<string, Set<(detail: any) => void>>} */
const listeners = new Map();

/** The store. */
export const live = {
  /** @type {Api.Session | null} */
  session: null,
  /** @type {Api.Overview | null} */
  overview: null,
  /**
   * Oldest first, as the API's `history`.
   * @type {Api.FleetPoint[]}
   */
  history: [],
  /**
   * Of the tenant whose page is open: its whole answer.
   * @type {Api.TenantDetail | null}
   */
  tenant: null,
  /** @type {"connecting" | "open" | "lost"} */
  state: "connecting",
  /**
   * Since when it is lost.
   * @type {number | null}
   */
  lostSince: null,
  /**
   * When data last came, by this browser's clock.
   * @type {number | null}
   */
  lastData: null,
  /** Server's clock minus ours. */
  skew: 0,
};

/** The server's time, so that ages are right on a laptop whose clock is wrong. */
export function now() {
  return Date.now() + live.skew;
}

/** Objective of freshness in seconds; a tenant older than that is behind. */
export function objective() {
  return live.overview?.settings?.freshness_objective_seconds ?? 5;
}

/** Calls `handler` on `overview`, `tenants`, `tenant`, `action`, `connection`. Returns what ends that. */
export function subscribe(event, handler) {
  const handlers = listeners.get(event) ?? new Set();
  listeners.set(event, handlers.add(handler));
  return () => handlers.delete(handler);
}

function emit(event, detail) {
  for (const handler of [...(listeners.get(event) ?? [])]) {
    try {
      handler(detail);
    } catch (error) {
      // One page's mistake must not cut the others off from their data.
      console.error(error);
    }
  }
}

/**
 * The way to the hub; null while nothing is to be received.
 * @type {MessagePort | null}
 */
let port = null;
/** @type {string | null} */
let watched = null;
let attempts = 0;
/** @typedef {ReturnType<typeof setTimeout> | undefined} Timer */
/** @type {Timer} */
let retryTimer;
/** @type {Timer} */
let silenceTimer;
/** @type {Timer} */
let beatTimer;

/** Connects, or connects anew for another tenant's page. */
export function connect(tenant = watched) {
  const changed = tenant !== watched;
  watched = tenant;
  if (changed) live.tenant = null;
  if (changed || !port) open("watch");
}

/** Ends the connection of all tabs, when no user is signed in. */
export function disconnect() {
  leave("end");
  watched = null;
}

/** Tries at once instead of at the next attempt. */
export function retryNow() {
  attempts = 0;
  open("silent");
}

/** @param {"leave" | "end"} say */
function leave(say) {
  clearTimeout(retryTimer);
  clearTimeout(silenceTimer);
  clearInterval(beatTimer);
  port?.postMessage({ say });
  port = null;
}

/** @param {"watch" | "silent"} say */
function open(say) {
  clearTimeout(retryTimer);
  clearInterval(beatTimer);
  if (say === "silent") {
    // The hub itself may be what doesn't answer: one whose script could not be loaded is made anew.
    port?.postMessage({ say: "leave" });
    port = null;
  }
  port ??= join();
  port.postMessage({ say, tenant: watched });
  beatTimer = setInterval(() => port?.postMessage({ say: "watch", tenant: watched }), BEAT);
  expectData();
}

/** A port to the hub that all tabs share; where the browser has no shared workers, to one of this tab. */
function join() {
  /** @type {MessagePort} */
  let ours;
  if (typeof SharedWorker === "function") {
    ours = new SharedWorker(at("/assets/stream.js"), { type: "module", name: "balance-sync" }).port;
  } else {
    const channel = new MessageChannel();
    new Hub().join(channel.port1);
    ours = channel.port2;
  }
  ours.onmessage = (message) => {
    if (ours === port) take(message.data);
  };
  return ours;
}

const TAKES = {
  overview: takeOverview,
  tenants: (changes) => emit("tenants", changes),
  tenant: takeTenant,
  action: (action) => emit("action", action),
};

function take({ event, data }) {
  if (event === "lost") lose("watch");
  else received(data, TAKES[event]);
}

function received(text, take) {
  let data;
  try {
    data = JSON.parse(text);
  } catch {
    return;
  }
  const wasLost = live.state !== "open";
  live.lastData = Date.now();
  expectData();
  if (wasLost) {
    const again = live.lostSince !== null;
    attempts = 0;
    live.state = "open";
    live.lostSince = null;
    emit("connection", { again });
    // What happened meanwhile is asked for; events tell only what is new.
    if (again) load().catch(() => {});
  }
  take(data);
}

function expectData() {
  clearTimeout(silenceTimer);
  silenceTimer = setTimeout(() => lose("silent"), SILENCE);
}

/** @param {"watch" | "silent"} say what the hub is sent at the next attempt */
function lose(say) {
  clearTimeout(silenceTimer);
  clearTimeout(retryTimer);
  if (live.state !== "lost") {
    live.state = "lost";
    live.lostSince = live.lostSince ?? Date.now();
  }
  emit("connection", { again: false });
  const pause = RETRY[Math.min(attempts, RETRY.length - 1)];
  attempts += 1;
  retryTimer = setTimeout(async () => {
    // An EventSource hides the status of the answer; a token that is no longer good must lead to the sign-in page.
    const session = await get(["session"]).catch(() => null);
    if (session?.auth_required && session.role === "none") signedOut();
    if (port) open(say);
  }, pause);
}

/** Asks for the overview with its whole history. */
export async function load() {
  const overview = await get(["overview"]);
  live.history = [];
  takeOverview(overview);
}

/** @param {Api.Overview} overview */
function takeOverview(overview) {
  const at = moment(overview.generated_at);
  if (at !== null) live.skew = at - Date.now();
  for (const point of overview.history ?? []) addPoint(point);
  live.overview = overview;
  emit("overview", overview);
}

/** @param {Api.FleetPoint} point */
function addPoint(point) {
  const last = live.history.at(-1);
  const step = (/** @type {Api.FleetPoint} */ of) => Math.floor((moment(of.at) ?? 0) / STEP);
  if (last && step(point) < step(last)) return;
  if (last && step(point) === step(last)) live.history[live.history.length - 1] = point;
  else live.history.push(point);
  if (live.history.length > HISTORY) live.history.shift();
}

/** @param {Api.TenantDetail} tenant */
function takeTenant(tenant) {
  if (tenant.id !== watched) return;
  live.tenant = tenant;
  emit("tenant", tenant);
}

// A page that the browser keeps for the way back gets no events meanwhile.
addEventListener("pagehide", () => leave("leave"));
addEventListener("pageshow", (event) => {
  if (!event.persisted || !live.session || live.session.role === "none") return;
  retryNow();
  load().catch(() => {});
});
