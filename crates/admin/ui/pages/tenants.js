// All tenants in one table that stays fluid with thousands: they are fetched once, kept up to date by events, sorted and
// filtered here. The address keeps sort and filter, so a view can be sent to a colleague.

import { assess, VERDICTS, WORDS } from "../advice.js";
import { get } from "../api.js";
import { h, icon, setAttr, setShown, setText, visible } from "../dom.js";
import { exportButtons } from "../export.js";
import { brief, count, rate } from "../format.js";
import { virtualGrid } from "../grid.js";
import { live, subscribe } from "../live.js";
import { failed, heading, loading, nothing, ownerNames, reasonOf, stateBadge, tenantHref } from "../parts.js";

const PER_PAGE = 1000;
/** The whole list is fetched again after this many seconds, or when the overview counts another number of tenants. */
const REFETCH_AFTER = 60;
const REFETCH_ON_DIFFERENCE = 6;

/** The worst state first when sorted downwards. */
const SEVERITY = new Map(WORDS.map((word, at) => [word, WORDS.length - at]));

const unknownLast = (/** @type {unknown} */ value) => (typeof value === "number" ? value : -1);
/** @type {Record<string, { name: string, of: ((row: Api.TenantRow) => number) | null, ascending?: boolean }>} */
const SORTS = {
  id: { name: "name", of: null, ascending: true },
  state: { name: "state", of: (row) => VERDICTS.indexOf(row.verdict) * WORDS.length + (SEVERITY.get(assess(row).word) ?? 0) },
  backlog: { name: "backlog", of: (row) => row.scheduled },
  due: { name: "due", of: (row) => row.due },
  leased: { name: "leased", of: (row) => row.leased },
  oldest: { name: "oldest due", of: (row) => (row.due > 0 ? unknownLast(row.oldest_due_age_seconds) : -1) },
  lag: { name: "lag", of: (row) => unknownLast(row.lag_p99_seconds) },
  rows: { name: "rows/s", of: (row) => row.rows_per_second },
  quarantined: { name: "quarantined", of: (row) => row.quarantined },
};

export function tenantsPage({ query, navigate }) {
  /** @type {Map<string, Api.TenantRow>} */
  const rows = new Map();
  const view = {
    sort: query.get("sort") in SORTS ? query.get("sort") : "state",
    state: WORDS.includes(query.get("state")) ? query.get("state") : "",
    text: query.get("q") ?? "",
  };
  view.descending = query.has("order") ? query.get("order") === "desc" : !SORTS[view.sort].ascending;

  const search = h("input", { type: "search", id: "tenant-search", placeholder: "Filter by name or reason", "aria-label": "Filter tenants by name or reason", "data-search": "", value: view.text, autocomplete: "off", spellcheck: "false" });
  const chips = WORDS.map((name) => {
    const number = h("span.num");
    const node = h("button.chip", { type: "button", data: { state: name }, on: { click: () => change({ state: view.state === name ? "" : name }) } }, name, number);
    return { name, number, node };
  });
  const sortSelect = h("select", { "aria-label": "Sort by" }, Object.entries(SORTS).map(([id, sort]) => h("option", { value: id }, `by ${sort.name}`)));
  const status = h("p.quiet", { role: "status" });
  const grid = virtualGrid({
    label: "Tenants",
    columns: columns(),
    key: (row) => row.id,
    open: (row) => navigate(tenantHref(row.id)),
    sorted: (column) => change(view.sort === column.sort ? { descending: !view.descending } : { sort: column.sort, descending: !SORTS[column.sort].ascending }),
  });
  const clear = h("button.button", { type: "button", on: { click: () => change({ state: "", text: "" }) } }, "Clear the filter");
  const noMatch = nothing("No tenant matches", "No tenant has this state and this text in its name or reason.", clear);
  const noTenants = nothing("No tenants yet", "The tenant service or the static directory lists none. New ones appear here by themselves.");
  const body = h("div.grid-place", loading(8));
  const node = h(
    "div.page.fill",
    heading("Tenants", status),
    h("div.toolbar", h("label.search", icon("search"), search), h("div.chips", { role: "group", "aria-label": "Filter by state" }, chips.map((chip) => chip.node)), sortSelect, exportButtons("tenants", () => order.flatMap((id) => rows.get(id) ?? []))),
    body,
  );

  let loaded = false;
  let held = false;
  /** @type {string[]} */
  let order = [];
  let sinceFetch = 0;
  const controller = new AbortController();

  function change(changes) {
    Object.assign(view, changes);
    if ("text" in changes && search.value !== view.text) search.value = view.text;
    const params = new URLSearchParams();
    if (view.state) params.set("state", view.state);
    if (view.text) params.set("q", view.text);
    if (view.sort !== "state" || !view.descending) {
      params.set("sort", view.sort);
      params.set("order", view.descending ? "desc" : "asc");
    }
    const text = params.toString();
    navigate(`/tenants${text ? `?${text}` : ""}`, { replace: true, silent: true });
    grid.toTop();
    refresh(true);
  }

  function refresh(anew = false) {
    if (!loaded) return;
    const wanted = view.text.trim().toLowerCase();
    /** @type {Record<string, number>} */
    const counts = Object.fromEntries(WORDS.map((name) => [name, 0]));
    /** @type {Api.TenantRow[]} */
    const chosen = [];
    for (const row of rows.values()) {
      const { word } = assess(row);
      counts[word] = (counts[word] ?? 0) + 1;
      if (view.state && word !== view.state) continue;
      if (wanted && !row.id.toLowerCase().includes(wanted) && !(row.reason ?? "").includes(wanted) && !reasonOf(row).toLowerCase().includes(wanted)) continue;
      chosen.push(row);
    }
    // Under a pointer or a marked row the order stays as it is: a target that moves can't be hit.
    const steady = !anew && held && order.length === chosen.length;
    if (steady) {
      const byId = new Map(chosen.map((row) => [row.id, row]));
      const same = order.flatMap((id) => byId.get(id) ?? []);
      if (same.length === chosen.length) chosen.splice(0, chosen.length, ...same);
      else sortRows(chosen);
    } else {
      sortRows(chosen);
    }
    order = chosen.map((row) => row.id);
    for (const chip of chips) {
      setText(chip.number, count(counts[chip.name]));
      setAttr(chip.node, "aria-pressed", String(view.state === chip.name));
      setShown(chip.node, counts[chip.name] > 0 || view.state === chip.name);
    }
    grid.showSort(view.sort, view.descending);
    sortSelect.value = view.sort;
    const shown = rows.size === 0 ? noTenants : chosen.length === 0 ? noMatch : grid.node;
    if (body.firstChild !== shown) body.replaceChildren(shown);
    grid.update(chosen);
    const all = chosen.length === rows.size ? `${count(rows.size)}` : `${count(chosen.length)} of ${count(rows.size)}`;
    setText(status, `${all}${held && rows.size > 1 ? " · order held" : ""}`);
  }

  function sortRows(list) {
    const sort = SORTS[view.sort];
    const sign = view.descending ? -1 : 1;
    const byId = (a, b) => (a.id < b.id ? -1 : a.id > b.id ? 1 : 0);
    list.sort((a, b) => (sort.of ? sign * (sort.of(a) - sort.of(b)) || byId(a, b) : sign * byId(a, b)));
  }

  async function fetchAll() {
    sinceFetch = 0;
    const found = new Map();
    for (let page = 1; ; page += 1) {
      const answer = await get(["tenants"], { sort: "id", order: "asc", page, per_page: PER_PAGE }, controller.signal);
      for (const row of answer.tenants) found.set(row.id, row);
      if (answer.tenants.length === 0 || found.size >= answer.total) break;
    }
    rows.clear();
    for (const [id, row] of found) rows.set(id, row);
    loaded = true;
    refresh();
  }

  function start() {
    fetchAll().catch((problem) => {
      if (problem.name !== "AbortError" && !loaded) body.replaceChildren(failed(problem, start));
    });
  }

  function hold(value) {
    if (held === value) return;
    held = value;
    refresh();
  }
  grid.node.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && hold(true));
  grid.node.addEventListener("pointerleave", () => hold(document.activeElement === grid.node));
  grid.node.addEventListener("focus", () => hold(true));
  grid.node.addEventListener("blur", () => hold(grid.node.matches(":hover")));
  search.addEventListener("input", () => change({ text: search.value }));
  search.addEventListener("keydown", (event) => {
    if (event.key === "ArrowDown" || event.key === "Enter") {
      event.preventDefault();
      grid.node.focus();
    }
  });
  sortSelect.addEventListener("change", () => change({ sort: sortSelect.value, descending: !SORTS[sortSelect.value].ascending }));

  const ends = [
    subscribe("tenants", ({ tenants, removed }) => {
      for (const row of tenants) rows.set(row.id, row);
      for (const id of removed) rows.delete(id);
      refresh();
    }),
    subscribe("connection", ({ again }) => again && start()),
  ];
  start();
  return {
    node,
    tick() {
      sinceFetch += 1;
      const differs = live.overview && live.overview.tenants.total !== rows.size;
      if (live.state === "open" && loaded && sinceFetch >= (differs ? REFETCH_ON_DIFFERENCE : REFETCH_AFTER)) start();
    },
    stop() {
      controller.abort();
      grid.stop();
      for (const end of ends) end();
    },
  };
}

function columns() {
  const text = (/** @type {string} */ id, /** @type {string} */ label, /** @type {string | null} */ sort, /** @type {(row: Api.TenantRow) => string} */ of) => ({ id, label, sort, num: true, make: (/** @type {HTMLElement} */ cell) => (/** @type {Api.TenantRow} */ row) => setText(cell, of(row)) });
  return [
    {
      id: "tenant",
      label: "Tenant",
      sort: "id",
      make(cell) {
        const anchor = h("a.id", { tabindex: "-1" });
        cell.append(anchor);
        return (row) => {
          setAttr(anchor, "href", tenantHref(row.id));
          setText(anchor, visible(row.id));
        };
      },
    },
    {
      id: "state",
      label: "State",
      sort: "state",
      make(cell) {
        const badge = stateBadge();
        const reason = h("span.reason");
        cell.append(badge.node, reason);
        return (row) => {
          badge.update(row);
          const why = visible(reasonOf(row));
          setText(reason, why);
          setAttr(reason, "title", row.detail ? `${why}: ${visible(row.detail)}` : why || null);
        };
      },
    },
    text("backlog", "Backlog", "backlog", (row) => count(row.scheduled)),
    text("due", "Due", "due", (row) => (row.sampled || row.numbers_age_seconds !== null ? count(row.due) : "?")),
    text("leased", "Leased", "leased", (row) => count(row.leased)),
    text("oldest", "Oldest", "oldest", (row) => (row.due > 0 ? brief(row.oldest_due_age_seconds) : "–")),
    text("p50", "Lag p50", null, (row) => brief(row.lag_p50_seconds)),
    text("p99", "Lag p99", "lag", (row) => brief(row.lag_p99_seconds)),
    text("rows", "Rows/s", "rows", (row) => rate(row.rows_per_second)),
    text("quarantined", "Quarant.", "quarantined", (row) => count(row.quarantined)),
    text("pool", "Pool", null, (row) => (row.pool ? `${row.pool.in_use} / ${row.pool.open}` : "–")),
    {
      id: "owner",
      label: "Owner",
      make: (cell) => (row) => {
        const names = ownerNames(row).join(", ");
        setText(cell, names || "no worker");
        setAttr(cell, "title", names || null);
      },
    },
  ];
}
