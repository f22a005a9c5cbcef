// The ledger's own queues, of a tenant and of all: what is not known is never shown as nothing.

import { h, setAttr, setText, visible } from "./dom.js";
import { ago, count, moment, plural, UNKNOWN, words } from "./format.js";
import { now } from "./live.js";
import { dataTable, nothing, numberColumn } from "./parts.js";

/** How old a record is that was created then. */
const age = (/** @type {string | null} */ text) => {
  const at = moment(text);
  return at === null ? UNKNOWN : ago(at, now());
};

/**
 * The oldest record, or how old it is at least while a scan has not seen all of them.
 * @param {{ depth: number | null, oldest_at: string | null, oldest_seen_at: string | null }} queue
 */
function oldest(queue) {
  if (queue.oldest_at) return age(queue.oldest_at);
  if (queue.oldest_seen_at) return `${age(queue.oldest_seen_at)} or earlier`;
  return queue.depth === 0 ? "–" : "not known yet";
}

/** As of when ages and attempts are true. */
function asOf(/** @type {Api.Queue} */ queue) {
  if (queue.scanned_at) return `scanned ${age(queue.scanned_at)}`;
  if (queue.depth === null || queue.looked_at === 0) return "";
  return `${count(queue.looked_at)} of ${count(queue.depth)} scanned so far`;
}

/** What is in doubt, in words. */
function doubts(/** @type {Api.Queue} */ queue) {
  const parts = [];
  if (queue.undated > 0) parts.push(`${count(queue.undated)} without a time`);
  if (queue.unreadable > 0) parts.push(`${count(queue.unreadable)} unreadable`);
  if (queue.error) parts.push(`can't be read: ${visible(queue.error)}`);
  return parts.join("; ");
}

/** The table on a tenant's page. */
export function queueTable() {
  const none = nothing("Nothing waits", "The ledger's own queues are empty.");
  const unknown = nothing("Not known", "No worker has looked at the ledger's own queues yet.");
  const table = dataTable({
    label: "The ledger's own queues",
    key: (/** @type {Api.Queue} */ queue) => queue.queue,
    columns: [
      {
        label: "Queue",
        wide: true,
        make(cell) {
          const name = h("strong");
          const doubt = h("span.reason");
          cell.append(name, doubt);
          return (queue) => {
            setText(name, words(queue.queue));
            setText(doubt, doubts(queue));
          };
        },
      },
      numberColumn("Records", (queue) => (queue.depth === null ? "?" : count(queue.depth))),
      numberColumn("Oldest", oldest),
      numberColumn("Tried before", (queue) => (queue.retried === null ? UNKNOWN : count(queue.retried))),
      numberColumn("Most attempts", (queue) => (queue.most_attempts === null ? UNKNOWN : count(queue.most_attempts))),
      numberColumn("As of", asOf),
    ],
    empty: none,
  });
  const place = h("div.scroll", table.node);
  return {
    node: place,
    /** @param {Api.TenantDetail} tenant */
    update(tenant) {
      const wanted = tenant.queues === null ? unknown : table.node;
      if (place.firstChild !== wanted) place.replaceChildren(wanted);
      table.update(tenant.queues ?? []);
    },
  };
}

/** All tenants together, in one list. */
export function fleetQueues() {
  const list = h("dl.pairs");
  /** @type {Map<string, HTMLElement>} */
  const cells = new Map();
  return {
    node: list,
    /** @param {Api.Overview} overview */
    update(overview) {
      for (const queue of overview.queues) {
        const cell = cells.get(queue.queue) ?? h("dd");
        if (!cells.has(queue.queue)) {
          cells.set(queue.queue, cell);
          list.append(h("div", h("dt", words(queue.queue)), cell));
        }
        const parts = [`${plural(queue.depth, "record")} of ${plural(queue.tenants, "tenant")}`];
        if (queue.depth > 0) parts.push(`oldest ${oldest(queue)}`);
        if (queue.most_attempts) parts.push(`up to ${plural(queue.most_attempts, "attempt")}`);
        if (queue.unreadable > 0) parts.push(`${count(queue.unreadable)} unreadable`);
        if (queue.unknown_tenants > 0) parts.push(`unknown of ${plural(queue.unknown_tenants, "tenant")}`);
        setText(cell, parts.join(", "));
        setAttr(cell, "data-level", queue.unknown_tenants > 0 ? "warn" : null);
      }
    },
  };
}
