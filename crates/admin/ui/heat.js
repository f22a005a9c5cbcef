// All tenants in one strip, a cell each, those that lag most first: whether one is late or a thousand is seen at a glance.

import { get } from "./api.js";
import { h, setAttr, setText, visible } from "./dom.js";
import { count, plural, span } from "./format.js";
import { objective, subscribe } from "./live.js";
import { failed, link, section, tenantHref } from "./parts.js";

const PER_PAGE = 1000;
/** Side of a cell in CSS pixels: as large as all fit into MOST_ROWS, within these bounds. */
const LARGEST = 14;
const SMALLEST = 3;
const MOST_ROWS = 12;
/** @type {{ level: string, name: string, of: (lag: number, limit: number) => boolean }[]} The first that fits. */
const LEVELS = [
  { level: "late", name: "over 10 times the objective", of: (lag, limit) => lag > 10 * limit },
  { level: "warn", name: "over the objective", of: (lag, limit) => lag > limit },
  { level: "near", name: "over a tenth of it", of: (lag, limit) => lag > limit / 10 },
  { level: "good", name: "within a tenth of it", of: () => true },
];
const UNKNOWN = { level: "unknown", name: "not known", of: () => true };

/**
 * How late a tenant is: its oldest due balance, or what 99 of 100 of the last seconds took. -1: not known.
 * @param {Api.TenantRow} row
 */
function lagOf(row) {
  return row.sampled ? Math.max(row.due > 0 ? row.oldest_due_age_seconds : 0, row.lag_p99_seconds ?? 0) : -1;
}

function levelOf(/** @type {number} */ lag) {
  return lag < 0 ? UNKNOWN : (LEVELS.find(({ of }) => of(lag, objective())) ?? UNKNOWN);
}

export function heatStrip(navigate) {
  /** @type {Map<string, Api.TenantRow>} */
  const rows = new Map();
  /** @type {{ row: Api.TenantRow, lag: number }[]} */
  let order = [];
  let cell = LARGEST;
  let columns = 1;
  const canvas = h("canvas.heat", { role: "img" });
  const tip = h("span.heat-tip", { "aria-hidden": "true" });
  const legend = h("ul.heat-legend");
  const problems = h("div");
  const node = section("Lag of all tenants", canvas, tip, legend, problems);
  const more = link("/tenants?sort=oldest&order=desc", "The latest first");
  more.className = "card-link";
  node.querySelector(".card-head").append(more);
  const numbers = [...LEVELS, UNKNOWN].map(({ level, name }) => {
    const number = h("span.num");
    const item = h("li", h("span.heat-key", { data: { level } }), name, " ", number);
    legend.append(item);
    return { level, name, number, item };
  });
  const controller = new AbortController();

  async function load() {
    try {
      for (let page = 1; ; page += 1) {
        /** @type {Api.TenantPage} */
        const answer = await get(["tenants"], { sort: "id", order: "asc", page, per_page: PER_PAGE }, controller.signal);
        if (page === 1) rows.clear();
        for (const row of answer.tenants) rows.set(row.id, row);
        if (page * PER_PAGE >= answer.total) break;
      }
      problems.replaceChildren();
      update();
    } catch (problem) {
      if (problem.name !== "AbortError") problems.replaceChildren(failed(problem, load));
    }
  }

  function update() {
    order = [...rows.values()].map((row) => ({ row, lag: lagOf(row) }));
    order.sort((a, b) => b.lag - a.lag || (a.row.id < b.row.id ? -1 : 1));
    draw();
    /** @type {Record<string, number>} */
    const by = {};
    for (const { lag } of order) by[levelOf(lag).level] = (by[levelOf(lag).level] ?? 0) + 1;
    for (const { level, number, item } of numbers) {
      const amount = by[level] ?? 0;
      setText(number, count(amount));
      setAttr(item, "class", amount === 0 ? "none" : null);
    }
    const parts = numbers.filter(({ level }) => by[level] > 0).map(({ level, name }) => `${count(by[level])} ${name}`);
    setAttr(canvas, "aria-label", `Lag of ${plural(order.length, "tenant")}, the objective is ${span(objective())}: ${parts.join(", ")}`);
  }

  function draw() {
    const width = canvas.parentElement?.clientWidth ?? 0;
    if (width === 0) return;
    cell = LARGEST;
    while (cell > SMALLEST && Math.ceil(order.length / Math.floor(width / cell)) > MOST_ROWS) cell -= 1;
    columns = Math.max(1, Math.floor(width / cell));
    const height = Math.max(1, Math.ceil(order.length / columns)) * cell;
    const ratio = devicePixelRatio || 1;
    canvas.style.height = `${height}px`;
    canvas.width = columns * cell * ratio;
    canvas.height = height * ratio;
    canvas.style.width = `${columns * cell}px`;
    const context = canvas.getContext("2d");
    context.scale(ratio, ratio);
    const style = getComputedStyle(canvas);
    const gap = cell > 6 ? 1 : 0;
    order.forEach(({ lag }, at) => {
      context.fillStyle = style.getPropertyValue(`--heat-${levelOf(lag).level}`);
      context.fillRect((at % columns) * cell, Math.floor(at / columns) * cell, cell - gap, cell - gap);
    });
  }

  /** What is under the pointer. */
  function under(/** @type {MouseEvent} */ { offsetX, offsetY }) {
    const column = Math.floor(offsetX / cell);
    return column < columns ? order[Math.floor(offsetY / cell) * columns + column] : undefined;
  }

  canvas.addEventListener("pointermove", (event) => {
    const found = under(event);
    setText(tip, found ? `${visible(found.row.id)}: ${found.lag < 0 ? "not known" : span(found.lag)}` : "");
    canvas.style.cursor = found ? "pointer" : "";
  });
  canvas.addEventListener("pointerleave", () => setText(tip, ""));
  canvas.addEventListener("click", (event) => {
    const found = under(event);
    if (found) navigate(tenantHref(found.row.id));
  });
  const resized = new ResizeObserver(() => draw());
  resized.observe(node);
  const ends = [
    subscribe("tenants", ({ tenants, removed }) => {
      for (const id of removed) rows.delete(id);
      for (const row of tenants) rows.set(row.id, row);
      if (rows.size > 0) update();
    }),
    subscribe("connection", ({ again }) => again && load()),
  ];
  load();
  return {
    node,
    /** @param {Api.Overview} overview */
    update(overview) {
      // Missed between the list and the first event.
      if (rows.size > 0 && overview.tenants.total !== rows.size) load();
    },
    stop() {
      controller.abort();
      resized.disconnect();
      for (const end of ends) end();
    },
  };
}
