// Small parts that several pages use: the badge of a state, a moment, a table, the designed nothing.

import { h, icon, keyed, setAttr, setIcon, setShown, setText, visible } from "./dom.js";
import { ago, clock, count, moment, span, words } from "./format.js";
import { assess } from "./advice.js";
import { live, now } from "./live.js";

const STATE_ICONS = {
  starting: "dots",
  idle: "idle",
  standby: "dots",
  syncing: "sync",
  degraded: "alert",
  paused: "pause",
  stopping: "stop",
  shadow: "dots",
  unserved: "cross",
  not_in_rollout: "dots",
  behind: "clock",
};

/** A tenant's state: picture and word, so that colour is never the only sign. `update(row)`. */
export function stateBadge() {
  const picture = icon("idle");
  const word = h("span");
  const node = h("span.badge", picture, word);
  const show = (name, level) => {
    setText(word, words(name));
    setIcon(picture, STATE_ICONS[name] ?? "dots");
    setAttr(node, "data-level", level);
    setAttr(node, "data-state", name);
  };
  return {
    node,
    show,
    update(row) {
      const { word: name, level } = assess(row);
      show(name, level);
    },
  };
}

/**
 * The sentence beside a badge: reason and detail, who paused it, how late it is.
 * @param {Pick<Api.TenantRow, "state" | "paused" | "reason"> & Partial<Api.TenantRow>} row
 */
export function reasonOf(row) {
  const { word } = assess(row);
  if (word === "paused") {
    const by = row.paused?.by ? ` by ${row.paused.by}` : "";
    return `paused${by}${row.paused?.note ? `: ${row.paused.note}` : ""}`;
  }
  if (row.reason) return words(row.reason);
  if (row.state === "not_in_rollout") return "the ledger's own worker writes it";
  if (word === "unserved") return "no live worker looks after it";
  if (word === "behind") return row.ahead_seconds ? `scheduled ${span(row.ahead_seconds)} ahead` : `oldest waits ${span(Math.max(row.oldest_due_age_seconds ?? 0, row.exposure_age_seconds ?? 0))}`;
  if (row.verdict === "unknown" && row.sampled === false) return "what waits is not known";
  if (row.vanished) return visible(row.vanished.detail);
  if ((row.quarantined ?? 0) > 0) return `${count(row.quarantined)} in quarantine${row.acknowledged?.holds ? ", acknowledged" : ""}`;
  return row.verdict === "attention" ? attentionOf(row) : "";
}

/** What asks for an operator of a tenant whose balances are on time and none of whose entries is open. */
function attentionOf(/** @type {Partial<Api.TenantRow>} */ row) {
  if (row.neighbour?.deadly_mix || row.neighbour?.presence === "active") return "the ledger's own worker is active";
  if (row.shadow && row.shadow.left_behind + row.shadow.lost > 0) return "a shadow has found balances whose mutations are missing";
  return "one of the ledger's own queues is stuck";
}

/**
 * The workers that serve a tenant; who only stands by is marked so.
 * @param {Api.TenantRow} row
 */
export function ownerNames(row) {
  const name = (/** @type {string} */ owner) => (row.standby.includes(owner) ? `${visible(owner)} (standby)` : visible(owner));
  if (row.owners.length === 0 && row.shadow) return row.shadow.by.map((name) => `${visible(name)} (only looks)`);
  return [...row.owners].sort((a, b) => Number(row.standby.includes(a)) - Number(row.standby.includes(b))).map(name);
}

/** A moment that stays true: "12 s ago", with the exact time on hover. `update(text)`. */
export function timeAgo(prefix = "") {
  const node = h("time");
  /** @type {number | null} */
  let at = null;
  const tick = () => setText(node, at === null ? "–" : prefix + ago(at, now()));
  return {
    node,
    tick,
    update(text) {
      at = moment(text);
      setAttr(node, "datetime", text ?? null);
      setAttr(node, "title", at === null ? null : new Date(at).toISOString());
      tick();
    },
  };
}

/** A moment as a clock shows it. */
export function timeOfDay(text) {
  const at = moment(text);
  return h("time", { datetime: text, title: at === null ? null : new Date(at).toISOString() }, clock(at, now()));
}

/** A foreign text, isolated so that its direction can't reach its neighbours. */
export function foreign(text, spec = "bdi") {
  return h(spec, { title: visible(text) }, visible(text));
}

/** A link that the router follows. */
export function link(href, ...children) {
  return h("a", { href }, ...children);
}

/** The page of a tenant. */
export function tenantHref(id) {
  return `/tenants/${encodeURIComponent(id)}`;
}

/** The designed nothing: what it means that nothing is here, and perhaps what to do. */
export function nothing(title, text, ...more) {
  return h("div.nothing", h("strong", title), text ? h("p", text) : null, ...more);
}

/** A failed call, with a way to try again. */
export function failed(problem, retry) {
  const again = retry ? h("button.button", { type: "button", on: { click: retry } }, icon("retry"), "Try again") : null;
  return h("div.nothing.failed", { role: "alert" }, h("strong", problem.title ?? "That went wrong"), h("p", visible(problem.message)), again);
}

/** Loading, as grey lines where the text will be. */
export function loading(lines = 3) {
  return h("div.loading", { role: "status", "aria-label": "Loading" }, ...Array.from({ length: lines }, () => h("span.bone")));
}

/** A button with a picture. */
export function button(label, picture, click, spec = "button.button") {
  return h(spec, { type: "button", on: { click } }, picture ? icon(picture) : null, h("span", label));
}

/** The heading of a page: takes the focus when the page is opened, so that a screen reader says where one is. */
export function heading(text, ...more) {
  return h("div.page-head", h("h1", { tabindex: "-1" }, text), ...more);
}

/** A section with its heading. */
export function section(title, ...children) {
  return h("section.card", h("div.card-head", h("h2", title)), ...children);
}

/** A part that may be too wide or too high for its place: while it is, keys reach it, so that it can be scrolled without a mouse. */
export function scrollable(node) {
  const look = () => setAttr(node, "tabindex", node.scrollWidth > node.clientWidth || node.scrollHeight > node.clientHeight ? "0" : null);
  const resized = new ResizeObserver(look);
  resized.observe(node);
  for (const child of node.children) resized.observe(child);
  return node;
}

/**
 * @template T
 * @typedef {{ label: string, num?: boolean, wide?: boolean, make: (cell: HTMLElement) => (item: T) => void }} Column
 */

/**
 * A table that is updated in place. Columns: `{ label, num, make(cell) → update(item), wide }`. On a phone each row
 * becomes a card whose values carry the columns' names.
 *
 * @template T
 * @param {{ label: string, columns: Column<T>[], key: (item: T) => string, empty?: HTMLElement, rowClass?: (item: T) => string | null }} options
 */
export function dataTable({ label, columns, key, empty, rowClass }) {
  const body = h("tbody");
  const head = h("tr", columns.map((column) => h(column.num ? "th.num" : "th", { scope: "col" }, column.label)));
  const table = h("table.table", { "aria-label": label }, h("thead", head), body);
  const none = empty ?? nothing("Nothing here");
  const node = scrollable(h("div.table-wrap", table, none));
  const update = keyed(body, key, () => {
    const row = h("tr");
    const updates = columns.map((column) => {
      const cell = h(column.num ? "td.num" : "td", { data: { label: column.label } });
      if (column.wide) cell.classList.add("wide");
      row.append(cell);
      return column.make(cell);
    });
    return {
      node: row,
      update(item) {
        if (rowClass) setAttr(row, "class", rowClass(item));
        for (const each of updates) each(item);
      },
    };
  });
  return {
    node,
    /** @param {T[]} items */
    update(items) {
      update(items);
      setShown(table, items.length > 0);
      setShown(none, items.length === 0);
    },
  };
}

/**
 * A column whose cell is only text.
 * @template T
 * @param {string} label
 * @param {(item: T) => string} text
 * @param {{ num?: boolean, wide?: boolean }} [options]
 * @returns {Column<T>}
 */
export function textColumn(label, text, options = {}) {
  return { label, ...options, make: (cell) => (item) => setText(cell, text(item)) };
}

/**
 * A column of numbers.
 * @template T
 * @param {string} label
 * @param {(item: T) => string} text
 * @returns {Column<T>}
 */
export function numberColumn(label, text) {
  return textColumn(label, text, { num: true });
}

/**
 * The column of a tenant's id, a link to its page.
 * @template {{ id?: string, tenant?: string | null }} T
 * @param {string} [label]
 * @returns {Column<T>}
 */
export function tenantColumn(label = "Tenant") {
  return {
    label,
    make(cell) {
      const anchor = h("a.id");
      cell.append(anchor);
      return (item) => {
        const id = item.tenant ?? item.id ?? "";
        setAttr(anchor, "href", tenantHref(id));
        setText(anchor, visible(id));
      };
    },
  };
}

/** A pager under a list: "1–100 of 312". `update({ page, per_page, total })`. */
export function pager(go) {
  const text = h("span");
  const back = button("Previous", null, () => go(page - 1));
  const next = button("Next", null, () => go(page + 1));
  const node = h("nav.pager", { "aria-label": "Pages of the list" }, back, text, next);
  let page = 1;
  return {
    node,
    update(answer) {
      page = answer.page;
      const first = (answer.page - 1) * answer.per_page + 1;
      const last = Math.min(answer.page * answer.per_page, answer.total);
      setText(text, `${first}–${last} of ${answer.total}`);
      back.disabled = page <= 1;
      next.disabled = last >= answer.total;
      setShown(node, answer.total > answer.per_page);
    },
  };
}

/** Calls `choose` when a field's text is complete: with Enter, on leaving it, or when it is emptied. */
export function whenChosen(field, choose) {
  let last = field.value.trim();
  const take = () => {
    const text = field.value.trim();
    if (text !== last) choose((last = text));
  };
  field.addEventListener("change", take);
  field.addEventListener("input", () => field.value === "" && take());
}

/** Whether the one who looks may act. */
export function mayAct() {
  return live.session?.role === "operator";
}

/** What a reader sees where an operator has buttons. */
export function readerNote() {
  return h("p.note", icon("key"), "You are signed in to read. Actions and amounts need an operator's token.");
}

