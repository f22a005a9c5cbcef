// The hub of all tabs, as a worker that they share.

import { Hub } from "./hub.js";

const hub = new Hub();
// The types are those of a page, which has no such event.
/** @type {any} */ (self).onconnect = (/** @type {MessageEvent} */ event) => hub.join(event.ports[0]);
