// What was set aside, by reason and text: one entry with its value, those that are ticked, or all that the filter leaves, retried
// or dropped.

import { actOnQuarantine } from "../actions.js";
import { quarantineMeaning } from "../advice.js";
import { get } from "../api.js";
import { showDialog, toast } from "../dialog.js";
import { h, icon, keyed, setAttr, setShown, setText, visible } from "../dom.js";
import { exportButtons } from "../export.js";
import { count, plural, words } from "../format.js";
import { live, subscribe } from "../live.js";
import { button, dataTable, failed, heading, link, loading, mayAct, nothing, numberColumn, pager, readerNote, tenantColumn, timeAgo, timeOfDay, whenChosen } from "../parts.js";

const PER_PAGE = 50;
/** The same while all that are meant are gathered. */
const GATHERED = 1000;
/** The list is asked for again when the fleet's number of entries changes, at most this often. */
const RELOAD_EVERY = 2;

export function quarantinePage({ query, navigate }) {
  const view = {
    tenant: query.get("tenant") ?? "",
    reason: query.get("reason") ?? "",
    text: query.get("text") ?? "",
    page: Math.max(1, Number.parseInt(query.get("page") ?? "1", 10) || 1),
  };
  const search = h("input", { type: "search", placeholder: "Only this tenant", "aria-label": "Only this tenant", "data-search": "", value: view.tenant, autocomplete: "off", spellcheck: "false" });
  const textField = h("input", { type: "search", placeholder: "Alias, member, reason or text", "aria-label": "Alias, member, reason or text", value: view.text, autocomplete: "off", spellcheck: "false" });
  const reasons = h("ul.reason-list", { "aria-label": "By reason" });
  const meaning = h("p.meaning");
  const bulkText = h("span");
  const retryAll = button("Retry all", "retry", () => bulk("retry"));
  const dropAll = button("Drop all", "trash", () => bulk("drop"), "button.button.danger");
  const allHere = h("input", { type: "checkbox", id: "tick-all", on: { change: () => tickAll(allHere.checked) } });
  const tickHere = h("label.tick", { for: "tick-all" }, allHere, h("span", "This page"));
  const unticked = button("Clear the selection", null, () => tick(null), "button.button.small");
  const bulkBar = h("div.bulk", tickHere, bulkText, unticked, h("span.spread"), retryAll, dropAll);
  /** What is ticked, by key, whichever page it is on. @type {Map<string, Api.QuarantineEntry>} */
  const ticked = new Map();
  /** @type {Api.QuarantineEntry[]} */
  let shownEntries = [];
  const note = readerNote();
  const pages = pager((page) => go({ page }));
  const tickers = new Set();
  const table = dataTable({
    label: "Entries",
    key: keyOf,
    columns: entryColumns({ tickers, open: openEntry, one, isTicked: (entry) => ticked.has(keyOf(entry)), tick }),
    empty: nothing("Nothing is in quarantine", "Every balance could be read and written. What can't be is set aside here with its reason, and blocks no other balance."),
  });
  const list = h("section.card", meaning, bulkBar, table.node, pages.node);
  const place = h("div", loading(6));
  const node = h(
    "div.page",
    heading("Quarantine"),
    h("form.toolbar", { role: "search" }, h("label.search", icon("search"), textField), h("label.search", icon("search"), search), exportButtons("quarantine", everything)),
    reasons,
    note,
    place,
  );
  node.querySelector("form").addEventListener("submit", (event) => event.preventDefault());

  let controller = new AbortController();
  let total = 0;
  /** @type {number | null} */
  let known = null;
  let seconds = 0;
  let stale = false;

  const chips = keyed(reasons, ([reason]) => reason, ([reason]) => {
    const number = h("span.num");
    const chip = h("button.chip", { type: "button", on: { click: () => go({ reason: view.reason === reason ? "" : reason, page: 1 }) } }, reason ? words(reason) : "All", number);
    return {
      node: h("li", chip),
      update([, amount]) {
        setText(number, count(amount));
        setAttr(chip, "aria-pressed", String(view.reason === reason));
      },
    };
  });

  function go(changes) {
    // What is no longer meant by the filter isn't acted on unseen.
    if (Object.keys(changes).some((name) => name !== "page")) ticked.clear();
    Object.assign(view, changes);
    const params = new URLSearchParams();
    if (view.tenant) params.set("tenant", view.tenant);
    if (view.reason) params.set("reason", view.reason);
    if (view.text) params.set("text", view.text);
    if (view.page > 1) params.set("page", String(view.page));
    const text = params.toString();
    navigate(`/quarantine${text ? `?${text}` : ""}`, { replace: true, silent: true });
    load();
  }

  async function load() {
    controller.abort();
    controller = new AbortController();
    stale = false;
    try {
      const answer = await get(["quarantine"], { ...filter(), page: view.page, per_page: PER_PAGE }, controller.signal);
      show(answer);
      if (place.firstChild !== list) place.replaceChildren(list);
    } catch (problem) {
      if (problem.name === "AbortError") return;
      setShown(reasons, false);
      const unknown = nothing("No such tenant", "No tenant has this name. Give its whole id.");
      place.replaceChildren(problem.status === 404 ? unknown : failed(problem, load));
    }
  }

  /** @param {Api.QuarantinePage} answer */
  function show(answer) {
    total = answer.total;
    const sum = Object.values(answer.by_reason).reduce((all, amount) => all + amount, 0);
    const byReason = Object.entries(answer.by_reason).sort((a, b) => b[1] - a[1]);
    if (view.reason && !(view.reason in answer.by_reason)) byReason.push([view.reason, 0]);
    setShown(reasons, byReason.length > 0);
    chips([["", sum], ...byReason]);
    setText(meaning, quarantineMeaning(view.reason));
    setShown(meaning, view.reason && answer.total > 0);
    setShown(bulkBar, mayAct() && answer.total > 0);
    setShown(note, !mayAct());
    shownEntries = answer.entries;
    table.update(shownEntries);
    pages.update(answer);
    showTicks();
  }

  function showTicks() {
    const some = ticked.size > 0;
    setText(bulkText, some ? `${plural(ticked.size, "entry", "entries")} selected` : plural(total, "entry", "entries") + subject());
    setText(retryAll.querySelector("span"), some ? "Retry selected" : "Retry all");
    setText(dropAll.querySelector("span"), some ? "Drop selected" : "Drop all");
    setShown(unticked, some);
    const here = shownEntries.filter((entry) => ticked.has(keyOf(entry))).length;
    allHere.checked = here > 0 && here === shownEntries.length;
    allHere.indeterminate = here > 0 && here < shownEntries.length;
  }

  /** Ticks an entry, or not; null: none any more. */
  function tick(/** @type {Api.QuarantineEntry | null} */ entry, on = false) {
    if (entry === null) ticked.clear();
    else if (on) ticked.set(keyOf(entry), entry);
    else ticked.delete(keyOf(entry));
    table.update(shownEntries);
    showTicks();
  }

  function tickAll(on) {
    for (const entry of shownEntries) {
      if (on) ticked.set(keyOf(entry), entry);
      else ticked.delete(keyOf(entry));
    }
    table.update(shownEntries);
    showTicks();
  }

  /** What the API is asked for. */
  function filter() {
    return { tenant: view.tenant, reason: view.reason, text: view.text };
  }

  /** All entries that the filter leaves, from all pages, as they are now. */
  async function everything() {
    /** @type {Map<string, Api.QuarantineEntry>} */
    const all = new Map();
    for (let page = 1; ; page += 1) {
      /** @type {Api.QuarantinePage} */
      const answer = await get(["quarantine"], { ...filter(), page, per_page: GATHERED });
      for (const entry of answer.entries) all.set(keyOf(entry), entry);
      if (page * GATHERED >= answer.total) return [...all.values()];
    }
  }

  /** What the filter leaves, in words. */
  function subject() {
    return `${view.text ? `, with “${visible(view.text)}”` : ""}${view.reason ? `, reason ${words(view.reason)}` : ""}${view.tenant ? `, tenant ${visible(view.tenant)}` : ""}`;
  }

  async function bulk(what) {
    const some = ticked.size > 0;
    const filtered = view.reason || view.tenant || view.text;
    let entries;
    try {
      entries = some ? [...ticked.values()] : await everything();
    } catch (problem) {
      toast("").update("bad", visible(problem.message));
      return;
    }
    const said = some ? `What is selected${subject()}` : filtered ? `All entries${subject()}` : "Everything in quarantine, of all tenants";
    if (await actOnQuarantine(what, entries, said)) {
      ticked.clear();
      load();
    }
  }

  async function one(what, entry, dialog) {
    if (await actOnQuarantine(what, [entry], visible(entry.member))) {
      ticked.delete(keyOf(entry));
      dialog?.close();
      load();
    }
  }

  /** @param {Api.QuarantineEntry} entry */
  async function openEntry(entry) {
    const value = h("div", loading(2));
    const buttons = mayAct()
      ? h("div.actions", button("Retry", "retry", () => one("retry", entry, dialog)), button("Drop", "trash", () => one("drop", entry, dialog), "button.button.danger"))
      : readerNote();
    const facts = [
      ["Tenant", link(`/tenants/${encodeURIComponent(entry.tenant)}`, visible(entry.tenant))],
      ["Member", h("code.breaks", visible(entry.member))],
      ["Reason", h("span", h("strong", words(entry.reason)), " ", h("span.quiet", quarantineMeaning(entry.reason)))],
      ["Detail", visible(entry.detail ?? "–")],
      ["First", timeOfDay(entry.first_at)],
      ["Last", timeOfDay(entry.last_at)],
      ["Times", count(entry.count)],
      ...(entry.loss ? sidesOf(entry.loss) : []),
      ["Value", value],
    ];
    const dialog = showDialog(
      "In quarantine",
      h("dl.pairs", facts.map(([name, what]) => h("div", h("dt", name), h("dd", what)))),
      link(`/why?member=${encodeURIComponent(entry.member)}`, "Why? Compare Redis and Postgres"),
      buttons,
    );
    dialog.addEventListener("click", (event) => event.target.closest("a") && dialog.close());
    try {
      const full = await get(["quarantine", "entry"], { tenant: entry.tenant, member: entry.member });
      value.replaceChildren(valueOf(full));
    } catch (problem) {
      value.replaceChildren(problem.status === 404 ? h("span.quiet", "It is no longer in quarantine.") : h("span.field-error", visible(problem.message)));
    }
  }

  whenChosen(search, (tenant) => go({ tenant, page: 1 }));
  whenChosen(textField, (text) => go({ text, page: 1 }));
  const ends = [
    subscribe("overview", (overview) => {
      stale = stale || (known !== null && known !== overview.quarantined);
      known = overview.quarantined;
    }),
    subscribe("connection", ({ again }) => again && load()),
  ];
  known = live.overview?.quarantined ?? null;
  load();
  return {
    node,
    tick() {
      seconds += 1;
      for (const tick of tickers) tick();
      if (stale && seconds % RELOAD_EVERY === 0) load();
    },
    stop() {
      controller.abort();
      for (const end of ends) end();
    },
  };
}

function keyOf(/** @type {Api.QuarantineEntry} */ entry) {
  return `${entry.tenant} ${entry.member}`;
}

/**
 * What is known of a lost balance, or of both sides of a forked one.
 * @param {NonNullable<Api.QuarantineEntry["loss"]>} loss
 */
function sidesOf(loss) {
  const side = (version, available, onHold, overdraft) => {
    const amounts = [["available", available], ["on hold", onHold], ["overdraft used", overdraft]]
      .filter(([, amount]) => amount !== null)
      .map(([name, amount]) => `, ${name} ${amount}`);
    return h("span.breaks", visible(`version ${version ?? "not known"}${amounts.join("")}`));
  };
  return [
    [loss.forked ? "In Redis" : "Lost", side(loss.version, loss.available, loss.on_hold, loss.overdraft_used)],
    ["In the row", side(loss.row_version, loss.row_available, loss.row_on_hold, loss.row_overdraft_used)],
    ...(loss.later_at === null ? [] : [["Later mutation", timeOfDay(loss.later_at)]]),
  ];
}

function valueOf(/** @type {Api.QuarantineOne} */ entry) {
  if (entry.amounts_hidden) return h("span.quiet", "hidden: amounts need an operator's token");
  if (entry.value === null) return h("span.quiet", "none was kept: there was none in Redis any more");
  const more = entry.truncated ? h("p.quiet", "Cut off: the value was longer than is kept.") : null;
  return h("div", h("pre.value", { tabindex: "0", "aria-label": "Value" }, visible(entry.value)), more);
}

/** @returns {import("../parts.js").Column<Api.QuarantineEntry>[]} */
function entryColumns({ tickers, open, one, isTicked, tick }) {
  const timeColumn = (label, of) => ({
    label,
    make(cell) {
      const time = timeAgo();
      cell.append(time.node);
      tickers.add(time.tick);
      return (entry) => time.update(of(entry));
    },
  });
  return [
    {
      label: "Select",
      make(cell) {
        let entry = null;
        const box = h("input", { type: "checkbox", on: { change: () => tick(entry, box.checked) } });
        cell.append(h("label.tick", box));
        return (item) => {
          entry = item;
          box.checked = isTicked(item);
          setAttr(box, "aria-label", `Select ${visible(shortMember(item))}`);
          setShown(box, mayAct());
        };
      },
    },
    tenantColumn(),
    {
      label: "Balance",
      wide: true,
      make(cell) {
        let entry = null;
        const show = h("button.link.id.clip", { type: "button", on: { click: () => open(entry) } });
        cell.append(show);
        return (item) => {
          entry = item;
          setText(show, visible(shortMember(item)));
          setAttr(show, "title", visible(item.member));
        };
      },
    },
    {
      label: "Reason",
      wide: true,
      make(cell) {
        const reason = h("strong");
        const detail = h("span.reason");
        cell.append(reason, detail);
        return (entry) => {
          setText(reason, words(entry.reason));
          setText(detail, visible(entry.detail ?? ""));
        };
      },
    },
    numberColumn("Times", (entry) => count(entry.count)),
    timeColumn("First seen", (entry) => entry.first_at),
    timeColumn("Last", (entry) => entry.last_at),
    {
      label: "Action",
      make(cell) {
        let entry = null;
        const retry = button("Retry", "retry", () => one("retry", entry), "button.button.small");
        const drop = button("Drop", "trash", () => one("drop", entry), "button.button.small.danger");
        cell.classList.add("row-actions");
        cell.append(h("div", retry, drop));
        return (item) => {
          entry = item;
          setShown(retry, mayAct());
          setShown(drop, mayAct());
        };
      },
    },
  ];
}

/** What tells one balance from another: the part behind the ledger. The whole stands in the title and in the dialog. */
function shortMember(/** @type {Api.QuarantineEntry} */ entry) {
  const uuids = entry.member.match(/[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}:(.+)$/i);
  return uuids?.[1]?.replace(/^[0-9a-f-]{36}:/i, "") || entry.member;
}
