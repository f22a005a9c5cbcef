// A table for thousands of rows: only the rows in view are in the document. One tab stop; arrows, Page Up and Down, Home
// and End move the marked row, Enter opens it. The mark stays with its item when the order changes.

import { h, setAttr, setText } from "./dom.js";

/** Rows drawn above and below the view, so that fast scrolling shows no holes. */
const OVERSCAN = 6;

let grids = 0;

/**
 * `columns`: `{ id, label, sort, num, make(cell) → update(item) }`; `key(item)`; `open(item)`: what Enter does;
 * `sorted(column)`: a head was chosen.
 */
export function virtualGrid({ label, columns, key, open, sorted }) {
  grids += 1;
  const prefix = `grid-${grids}-`;
  const heads = columns.map((column) => {
    const name = h("span", column.label);
    const arrow = h("span.sort-arrow", { "aria-hidden": "true" });
    const inner = column.sort ? h("button", { type: "button", on: { click: () => sorted(column) } }, name, arrow) : name;
    return { column, arrow, node: h(column.num ? "div.cell.num" : "div.cell", { role: "columnheader", data: { column: column.id } }, inner) };
  });
  const body = h("div.grid-body", { role: "rowgroup" });
  const head = h("div.grid-head", { role: "rowgroup" }, h("div.grid-row", { role: "row", "aria-rowindex": "1" }, heads.map((each) => each.node)));
  const node = h("div.grid", { role: "grid", tabindex: "0", "aria-label": label, "aria-colcount": columns.length }, head, body);

  let items = [];
  let marked = null;
  let rowHeight = 40;
  let frame = null;
  /** Rows by place: row `index` lives in slot `index % slots.length`, so scrolling by one redraws one. */
  let slots = [];

  function makeSlot(number) {
    const row = h("div.grid-row", { role: "row", id: `${prefix}${number}` });
    const updates = columns.map((column) => {
      const cell = h(column.num ? "div.cell.num" : "div.cell", { role: "gridcell", data: { column: column.id, label: column.label } });
      row.append(cell);
      return column.make(cell);
    });
    const slot = { row, updates, index: -1, item: null };
    row.addEventListener("click", (event) => {
      if (!slot.item || event.target.closest("a, button") || getSelection()?.toString()) return;
      mark(key(slot.item));
      open(slot.item);
    });
    return slot;
  }

  function viewHeight() {
    return Math.max(node.clientHeight - head.offsetHeight, rowHeight);
  }

  function measure() {
    rowHeight = Number.parseFloat(getComputedStyle(node).getPropertyValue("--row")) || 40;
    const wanted = Math.ceil(viewHeight() / rowHeight) + 2 * OVERSCAN;
    if (wanted !== slots.length) {
      slots = Array.from({ length: wanted }, (_, number) => makeSlot(number));
      body.replaceChildren(...slots.map((slot) => slot.row));
    }
    draw(true);
  }

  function draw(all) {
    frame = null;
    body.style.height = `${items.length * rowHeight}px`;
    setAttr(node, "aria-rowcount", items.length + 1);
    if (slots.length === 0) return;
    const first = Math.max(0, Math.min(Math.floor(node.scrollTop / rowHeight) - OVERSCAN, items.length - slots.length));
    let active = null;
    for (let index = first; index < first + slots.length; index += 1) {
      const slot = slots[index % slots.length];
      const item = items[index] ?? null;
      if (slot.row.hidden !== (item === null)) slot.row.hidden = item === null;
      if (item === null) {
        slot.item = null;
        slot.index = -1;
        continue;
      }
      if (slot.index !== index) {
        slot.index = index;
        slot.row.style.transform = `translateY(${index * rowHeight}px)`;
        setAttr(slot.row, "aria-rowindex", index + 2);
      }
      if (all || slot.item !== item) {
        slot.item = item;
        for (const update of slot.updates) update(item);
      }
      const isMarked = key(item) === marked;
      if (isMarked) active = slot.row.id;
      setAttr(slot.row, "aria-selected", isMarked ? "true" : null);
    }
    setAttr(node, "aria-activedescendant", active);
  }

  function redraw(all = false) {
    if (all) draw(true);
    else frame = frame ?? requestAnimationFrame(() => draw(false));
  }

  function mark(which) {
    marked = which;
    redraw(false);
  }

  function moveTo(index) {
    if (items.length === 0) return;
    const at = Math.max(0, Math.min(index, items.length - 1));
    const top = at * rowHeight;
    if (top < node.scrollTop) node.scrollTop = top;
    else if (top + rowHeight > node.scrollTop + viewHeight()) node.scrollTop = top + rowHeight - viewHeight();
    marked = key(items[at]);
    draw(false);
  }

  node.addEventListener("scroll", () => redraw(), { passive: true });
  node.addEventListener("keydown", (event) => {
    if (event.target !== node || event.ctrlKey || event.metaKey || event.altKey) return;
    const at = items.findIndex((item) => key(item) === marked);
    const page = Math.max(1, Math.floor(viewHeight() / rowHeight) - 1);
    const moves = { ArrowDown: at + 1, ArrowUp: at < 0 ? 0 : at - 1, PageDown: at + page, PageUp: at - page, Home: 0, End: items.length - 1 };
    if (event.key in moves) {
      event.preventDefault();
      moveTo(moves[event.key]);
    } else if (event.key === "Enter" && at >= 0) {
      event.preventDefault();
      open(items[at]);
    }
  });
  node.addEventListener("focus", () => {
    if (!items.some((item) => key(item) === marked) && items.length) moveTo(Math.floor(node.scrollTop / rowHeight));
  });
  const observer = new ResizeObserver(measure);
  observer.observe(node);

  return {
    node,
    /** Shows these items, in this order. */
    update(next) {
      items = next;
      redraw(true);
    },
    /** Marks the head by which it is sorted. */
    showSort(sort, descending) {
      for (const each of heads) {
        const isIt = each.column.sort === sort;
        setAttr(each.node, "aria-sort", isIt ? (descending ? "descending" : "ascending") : null);
        setText(each.arrow, isIt ? (descending ? "↓" : "↑") : "");
      }
    },
    toTop() {
      node.scrollTop = 0;
    },
    stop: () => observer.disconnect(),
  };
}
