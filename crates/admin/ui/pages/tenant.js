// One tenant: how it is and why, what happens next, what can be done; then the evidence.

import { actOnTenant, TENANT_ACTIONS } from "../actions.js";
import { adviceFor, assess, firstAid } from "../advice.js";
import { get } from "../api.js";
import { lineChart } from "../chart.js";
import { tenantDay } from "../day.js";
import { h, icon, keyed, setAttr, setShown, setText, visible } from "../dom.js";
import { count, plural, rate, span, words } from "../format.js";
import { connect, now, objective, subscribe } from "../live.js";
import {
  button,
  dataTable,
  failed,
  heading,
  link,
  loading,
  mayAct,
  nothing,
  numberColumn,
  ownerNames,
  readerNote,
  reasonOf,
  scrollable,
  section,
  stateBadge,
  textColumn,
  timeAgo,
} from "../parts.js";
import { queueTable } from "../queues.js";
import { shadowPart } from "../shadow.js";
import { actionTable } from "./actions.js";
import { recoveryPart } from "./recovery.js";

/** Minutes shown in the charts, in milliseconds: as many as there are, up to ten. */
const SPANS = [2, 5, 10].map((minutes) => minutes * 60_000);

export function tenantPage({ argument: id }) {
  const tickers = [];
  const head = headOf(id, tickers);
  const figures = figureList();
  const charts = chartsOf();
  const flushes = flushTable(tickers);
  const errors = errorTable(tickers);
  const day = tenantDay(id);
  const queues = queueTable();
  const shadow = shadowPart(tickers);
  const settings = settingsOf();
  const outcomes = outcomesOf();
  const controller = new AbortController();
  const recovery = recoveryPart(id, tickers, controller.signal, () => askLog());
  const log = actionTable({ withTenant: false, empty: nothing("No actions on this tenant") });
  const content = h(
    "div",
    head.node,
    figures.node,
    shadow.node,
    charts.node,
    day.node,
    h("div.two", section("Last flushes", flushes.node), section("Last errors", errors.node)),
    h("div.two", section("Since its workers started", outcomes.node), section("Settings in force", settings.node)),
    recovery.node,
    section("The ledger's own queues", queues.node),
    section("Actions", log.node),
  );
  const place = h("div", loading(6));
  const node = h("div.page", h("nav.crumbs", { "aria-label": "Where you are" }, link("/tenants", "Tenants"), icon("chevron")), heading(visible(id)), place);
  node.querySelector("h1").classList.add("id");
  let shown = false;

  /** @param {Api.TenantDetail} tenant */
  function update(tenant) {
    if (!shown) place.replaceChildren(content);
    shown = true;
    for (const part of [head, figures, charts, flushes, errors, queues, settings, outcomes, shadow]) part.update(tenant);
  }
  const askLog = () => get(["actions"], { tenant: id, per_page: 20 }, controller.signal).then((answer) => log.update(answer.actions), () => {});
  function start() {
    get(["tenants", id], {}, controller.signal).then((tenant) => {
      update(tenant);
      connect(id);
    }, (problem) => {
      if (problem.name === "AbortError") return;
      const gone = problem.status === 404;
      // Events of a tenant that isn't there are refused; those of the fleet go on.
      if (gone) connect(null);
      if (shown) return;
      place.replaceChildren(
        gone
          ? nothing("No such tenant", "Neither the directory nor a worker knows this name. It may have been removed.", link("/tenants", "All tenants"))
          : failed(problem, start),
      );
    });
    askLog();
    recovery.look();
  }
  const ends = [
    subscribe("tenant", update),
    subscribe("action", askLog),
    subscribe("connection", ({ again }) => again && start()),
  ];
  start();
  return {
    node,
    tick() {
      for (const tick of tickers) tick();
      day.tick();
    },
    stop() {
      controller.abort();
      day.stop();
      charts.stop();
      for (const end of ends) end();
    },
  };
}

function headOf(id, tickers) {
  const badge = stateBadge();
  const since = timeAgo("since ");
  tickers.push(since.tick);
  const sentence = h("strong.reason-sentence");
  const detail = h("p.detail");
  const next = h("p.next-text");
  const todo = h("p.todo", icon("bolt"), h("span"));
  const owners = h("p.quiet");
  const acknowledged = h("p.quiet.acknowledged");
  const buttons = Object.entries(TENANT_ACTIONS).map(([what, action]) => ({
    what,
    node: button(action.label, action.picture, () => actOnTenant(id, what)),
  }));
  const bar = h("div.actions", { role: "group", "aria-label": "Actions" }, buttons.map((each) => each.node));
  const note = readerNote();
  const card = h(
    "section.card.tenant-head",
    { "aria-label": "How it is" },
    h("div.tenant-state", badge.node, sentence, since.node),
    detail,
    h("div.next", h("span.next-label", "Next"), next),
    todo,
    bar,
    note,
    acknowledged,
    owners,
  );
  return {
    node: card,
    /** @param {Api.TenantDetail} tenant */
    update(tenant) {
      const { level, word } = assess(tenant);
      badge.update(tenant);
      setAttr(card, "data-level", level);
      const { means, help } = adviceFor(tenant.reason);
      setText(sentence, tenant.reason && means ? means : visible(reasonOf(tenant)));
      since.update(tenant.paused?.at && word === "paused" ? tenant.paused.at : tenant.since);
      setText(detail, tenant.detail ? `${words(tenant.reason ?? "")}${tenant.reason ? ": " : ""}${visible(tenant.detail)}` : "");
      setShown(detail, Boolean(tenant.detail));
      setText(next, visible(tenant.next));
      setText(todo.lastChild, help);
      setShown(todo, tenant.state === "degraded" && help);
      const paused = word === "paused";
      const first = firstAid(tenant);
      for (const { what, node } of buttons) {
        setShown(node, mayAct() && (what === "pause" ? !paused : what === "resume" ? paused : true));
        node.classList.toggle("primary", what === first);
        // A paused tenant doesn't carry out a flush.
        node.disabled = what === "flush" && paused;
      }
      setShown(note, !mayAct());
      setText(acknowledged, acknowledgement(tenant));
      setShown(acknowledged, Boolean(tenant.acknowledged));
      const names = ownerNames(tenant).join(" and ");
      setText(owners, names ? `Looked after by ${names}` : "No live worker looks after it");
    },
  };
}

/** Who acknowledged its entries, and whether that still holds. */
function acknowledgement(/** @type {Api.TenantDetail} */ { acknowledged }) {
  if (!acknowledged) return "";
  const { by, at, age_seconds: age, entries, note, holds } = acknowledged;
  const why = note ? `: ${visible(note)}` : "";
  return `${plural(entries, "entry", "entries")} acknowledged by ${visible(by)} ${span(age)} ago, at ${at}${why}${holds ? "" : ". More came since, which is not acknowledged."}`;
}

function figureList() {
  const list = h("dl.figures");
  /** @type {Record<string, HTMLElement>} */
  const cells = {};
  const figure = (key, label, href) => {
    const value = h("dd");
    cells[key] = value;
    list.append(h("div.figure", h("dt", href ? h("a", { href }, label) : label), value));
  };
  figure("backlog", "Backlog");
  figure("due", "Due");
  figure("leased", "Leased");
  figure("oldest", "Oldest due");
  figure("p50", "Lag p50");
  figure("p99", "Lag p99");
  figure("rows", "Rows/s");
  figure("life", "Shortest life");
  figure("pool", "Connections");
  figure("quarantined", "In quarantine", "/quarantine");
  const dated = h("p.quiet.dated");
  return {
    node: h("section.card", { "aria-label": "Figures" }, list, dated),
    /** @param {Api.TenantDetail} tenant */
    update(tenant) {
      const age = tenant.numbers_age_seconds;
      setText(dated, tenant.sampled ? "" : age === null ? "The schedules have not been read yet, or can't be: what waits is not known." : `As of ${span(age)} ago: the schedules can't be read now.`);
      setShown(dated, !tenant.sampled);
      setText(cells.backlog, count(tenant.scheduled));
      setText(cells.due, count(tenant.due));
      setText(cells.leased, count(tenant.leased));
      setText(cells.oldest, tenant.due > 0 ? span(tenant.oldest_due_age_seconds) : "–");
      setText(cells.p50, span(tenant.lag_p50_seconds));
      setText(cells.p99, span(tenant.lag_p99_seconds));
      setText(cells.rows, rate(tenant.rows_per_second));
      setText(cells.life, span(tenant.shortest_life_seconds));
      setText(cells.pool, tenant.pool ? `${tenant.pool.in_use} of ${tenant.pool.open} in use` : "none open");
      setText(cells.quarantined, count(tenant.quarantined));
      setAttr(cells.oldest, "data-level", tenant.due > 0 && tenant.oldest_due_age_seconds > objective() ? "warn" : null);
      setAttr(cells.quarantined, "data-level", tenant.quarantined > 0 && !tenant.acknowledged?.holds ? "warn" : null);
      setAttr(list.querySelector("a"), "href", `/quarantine?tenant=${encodeURIComponent(tenant.id)}`);
    },
  };
}

function chartsOf() {
  const charts = [
    lineChart({ title: "Rows per second", spans: SPANS, format: rate, series: [{ key: "rows_per_second", name: "rows/s", area: true }] }),
    lineChart({ title: "Lag", spans: SPANS, format: span, seconds: true, limit: objective, limitName: "objective", series: [{ key: "p99_seconds", name: "p99", area: true }] }),
    lineChart({ title: "Due", spans: SPANS, format: count, series: [{ key: "due", name: "members", area: true }] }),
  ];
  return {
    node: h("section.card.charts", { "aria-label": "What went before" }, charts.map((chart) => chart.node)),
    /** @param {Api.TenantDetail} tenant */
    update(tenant) {
      for (const chart of charts) chart.update(tenant.history, now());
    },
    stop() {
      for (const chart of charts) chart.stop();
    },
  };
}

/**
 * A column of moments that stay true.
 * @template T
 * @param {string} label
 * @param {(item: T) => string | null} of
 * @param {(() => void)[]} tickers
 * @returns {import("../parts.js").Column<T>}
 */
function timeColumn(label, of, tickers) {
  return {
    label,
    make(cell) {
      const time = timeAgo();
      cell.append(time.node);
      tickers.push(time.tick);
      return (item) => time.update(of(item));
    },
  };
}

function flushTable(tickers) {
  const table = dataTable({
    label: "Last flushes",
    key: (/** @type {Api.Flush} */ flush) => `${flush.at} ${flush.worker} ${flush.claimed} ${flush.took_ms}`,
    columns: [
      timeColumn("When", (flush) => flush.at, tickers),
      textColumn("Trigger", (flush) => words(flush.trigger)),
      numberColumn("Claimed", (flush) => count(flush.claimed)),
      numberColumn("Updated", (flush) => count(flush.updated)),
      numberColumn("Stale", (flush) => count(flush.stale)),
      numberColumn("Deleted", (flush) => count(flush.deleted)),
      numberColumn("Set aside", (flush) => count(flush.quarantined)),
      numberColumn("Given back", (flush) => count(flush.released)),
      numberColumn("Took", (flush) => span(flush.took_ms / 1000)),
    ],
    empty: nothing("No flush yet", "None since its workers started."),
  });
  return { node: scrollable(h("div.scroll", table.node)), update: (/** @type {Api.TenantDetail} */ tenant) => table.update(tenant.flushes.slice(0, 50)) };
}

function errorTable(tickers) {
  const table = dataTable({
    label: "Last errors",
    key: (/** @type {Api.Failure} */ error) => `${error.at} ${error.worker} ${error.reason}`,
    columns: [
      timeColumn("When", (error) => error.at, tickers),
      {
        label: "What",
        wide: true,
        make(cell) {
          const reason = h("strong");
          const detail = h("span.reason");
          cell.append(reason, detail);
          return (error) => {
            setText(reason, words(error.reason));
            setText(detail, visible(error.detail));
          };
        },
      },
      textColumn("Worker", (error) => visible(error.worker)),
    ],
    empty: nothing("No errors", "None since its workers started."),
  });
  return { node: scrollable(h("div.scroll", table.node)), update: (/** @type {Api.TenantDetail} */ tenant) => table.update(tenant.errors.slice(0, 50)) };
}

function outcomesOf() {
  const list = h("dl.pairs");
  const rows = keyed(list, ([name]) => name, ([name]) => {
    const value = h("dd.num");
    return { node: h("div", h("dt", name), value), update: ([, text]) => setText(value, text) };
  });
  return {
    node: list,
    /** @param {Api.TenantDetail} tenant */
    update(tenant) {
      const { outcomes, batches } = tenant;
      rows([
        ["Rows updated", count(outcomes.updated)],
        ["Already as new or newer", count(outcomes.stale)],
        ["Forked: row contradicts Redis", count(outcomes.forked)],
        ["Closed: row deleted", count(outcomes.deleted)],
        ["Set aside", count(outcomes.quarantined)],
        ["Expired before a worker looked", count(outcomes.expired)],
        ["Given back unwritten", count(outcomes.released)],
        ["Kept: a newer mutation came", count(outcomes.kept)],
        ["Batches by size · timeout · drain", `${count(batches.size)} · ${count(batches.timeout)} · ${count(batches.drain)}`],
        ["Failed batches", count(tenant.batch_failures_total)],
        ["Restarts of its collector", count(tenant.restarts_total)],
      ]);
    },
  };
}

function settingsOf() {
  const list = h("dl.pairs");
  const rows = keyed(list, ([name]) => name, ([name]) => {
    const value = h("dd");
    return { node: h("div", h("dt", name), value), update: ([, text]) => setText(value, text) };
  });
  return {
    node: list,
    /** @param {Api.TenantDetail} tenant */
    update(tenant) {
      const { database, ...collector } = tenant.settings;
      const pairs = database
        ? Object.entries(database).filter(([, value]) => value !== null && value !== "").map(([name, value]) => [words(name), visible(value)])
        : [["database", "not known: the tenant service has not returned it yet"]];
      const times = Object.entries(collector).map(([name, value]) =>
        name.endsWith("_ms") && typeof value === "number" ? [words(name.slice(0, -3)), span(value / 1000)] : [words(name), visible(value)],
      );
      rows([...pairs, ...times]);
    },
  };
}
