// One stream of events for all tabs of a browser: browsers allow six connections per server over HTTP/1.1, and a stream per tab
// would take them all. A tab has a port to the hub, says each BEAT what it watches, and is sent what comes.

import { at } from "./base.js";

/** A tab says this often that it is there; in the background the browser lets it speak once a minute. */
export const BEAT = 20_000;
/** A tab that is silent for this long is gone: a tab that is closed by force says no farewell. */
const GONE = 150_000;
/** Tenants that are asked for in detail, at most: those of the tabs that spoke last. The server takes no more. */
const MOST_TENANTS = 16;
const EVENTS = ["overview", "tenants", "tenant", "action"];

/**
 * What a tab says. `watch`: it is there, with this tenant's page; `silent`: nothing has come for too long, the stream is to be
 * opened anew; `end`: the user has signed out, in all tabs.
 * @typedef {{ say: "watch" | "silent" | "leave" | "end", tenant?: string | null }} Said
 */

export class Hub {
  constructor() {
    /** @type {Map<MessagePort, { tenant: string | null, at: number }>} */
    this.tabs = new Map();
    /** @type {EventSource | null} */
    this.source = null;
    this.address = "";
    this.dataAt = 0;
  }

  /** Takes in a tab. */
  join(/** @type {MessagePort} */ port) {
    port.onmessage = ({ data }) => this.hear(port, data);
  }

  hear(/** @type {MessagePort} */ port, /** @type {Said} */ { say, tenant = null }) {
    const now = Date.now();
    if (say === "leave" || say === "end") this.tabs.delete(port);
    else this.tabs.set(port, { tenant, at: now });
    for (const [other, tab] of this.tabs) if (now - tab.at > GONE) this.tabs.delete(other);
    // Several tabs notice one silence: the stream that the first of them had opened is given its time.
    if (say === "end" || (say === "silent" && now - this.dataAt > 5_000)) this.close();
    if (say === "end") this.send({ event: "lost" });
    else if (this.tabs.size === 0) this.close();
    else this.open();
  }

  /** Opens the stream unless it is open with all that is watched. */
  open() {
    const tabs = [...this.tabs.values()].sort((a, b) => b.at - a.at);
    const tenants = [...new Set(tabs.flatMap(({ tenant }) => tenant ?? []))].slice(0, MOST_TENANTS).sort();
    const address = at(`/api/v1/events${tenants.length ? `?tenant=${encodeURIComponent(tenants.join(","))}` : ""}`);
    if (this.source && this.address === address) return;
    const former = this.source;
    const source = new EventSource(address);
    this.source = source;
    this.address = address;
    this.dataAt = Date.now();
    // Until the new one is open the former one goes on, so that nothing is missed between them.
    source.addEventListener("open", () => former?.close());
    source.addEventListener("error", () => {
      former?.close();
      if (this.source !== source) return;
      this.close();
      this.send({ event: "lost" });
    });
    for (const event of EVENTS) {
      source.addEventListener(event, ({ data }) => {
        this.dataAt = Date.now();
        this.send({ event, data });
      });
    }
  }

  close() {
    this.source?.close();
    this.source = null;
  }

  send(/** @type {{ event: string, data?: string }} */ message) {
    for (const port of this.tabs.keys()) port.postMessage(message);
  }
}
