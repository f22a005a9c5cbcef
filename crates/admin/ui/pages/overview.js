// One look: is any tenant behind, since when, why; and beside each the one action that helps first.

import { actOnTenant, drainWorker, TENANT_ACTIONS } from "../actions.js";
import { adviceFor, assess, firstAid, isOfNote, levelOf, STATE_NAMES } from "../advice.js";
import { get } from "../api.js";
import { lineChart, sparkline } from "../chart.js";
import { fleetDay } from "../day.js";
import { heatStrip } from "../heat.js";
import { h, icon, keyed, setAttr, setIcon, setShown, setText, visible } from "../dom.js";
import { ago, bytes, clock, count, moment, plural, rate, span, words } from "../format.js";
import { live, now, objective, subscribe } from "../live.js";
import {
  button,
  dataTable,
  heading,
  link,
  loading,
  mayAct,
  nothing,
  numberColumn,
  reasonOf,
  section,
  stateBadge,
  tenantColumn,
  tenantHref,
  textColumn,
  timeAgo,
} from "../parts.js";
import { fleetQueues } from "../queues.js";
import { rolloutCard } from "../rollout.js";

/** Minutes shown in the charts, in milliseconds: as many as there are, up to an hour. */
const SPANS = [5, 15, 60].map((minutes) => minutes * 60_000);
/** Workers are asked for this often; the events don't tell of them. */
const WORKERS_EVERY = 4;
const VERDICTS = {
  healthy: { picture: "ok", text: "All tenants are on time" },
  attention: { picture: "alert", text: "All tenants are on time, something needs attention" },
  behind: { picture: "clock", text: "Some tenants are behind" },
  degraded: { picture: "alert", text: "Some tenants can't be written" },
  unknown: { picture: "question", text: "Can't tell" },
};

export function overviewPage({ navigate }) {
  const tickers = [];
  const verdict = verdictCard();
  const tiles = tileRow();
  const worst = worstTable(tickers);
  const states = stateBar(navigate);
  const workers = workerTable(tickers);
  const queues = fleetQueues();
  const rollout = rolloutCard(tickers);
  const charts = chartRow();
  const heat = heatStrip(navigate);
  const day = fleetDay();
  const facts = factList(tickers);
  const content = h(
    "div.page",
    h("h1.sr", { tabindex: "-1" }, "Overview"),
    verdict.node,
    tiles.node,
    worst.node,
    rollout.node,
    heat.node,
    charts.node,
    day.node,
    h("div.two.uneven", states.node, workers.node),
    section("The ledger's own queues", queues.node),
    facts.node,
  );
  const bones = h("div.page", heading("Overview"), loading(6));
  const node = h("div", bones, content);
  setShown(content, false);

  let seconds = 0;
  const update = () => {
    const overview = live.overview;
    if (!overview) return;
    setShown(bones, false);
    setShown(content, true);
    for (const part of [verdict, tiles, worst, rollout, heat, states, queues, charts, facts]) part.update(overview);
  };
  const askWorkers = () => get(["workers"]).then((answer) => workers.update(answer.workers, answer.shadows ?? []), () => {});
  const ends = [subscribe("overview", update), subscribe("connection", ({ again }) => again && askWorkers())];
  askWorkers();
  return {
    node,
    shown: update,
    tick() {
      seconds += 1;
      for (const tick of tickers) tick();
      day.tick();
      if (seconds % WORKERS_EVERY === 0 && live.state === "open") {
        askWorkers();
        rollout.ask();
      }
    },
    stop() {
      for (const end of ends) end();
      charts.stop();
      day.stop();
      heat.stop();
    },
  };
}

function verdictCard() {
  const picture = icon("question");
  const text = h("p.verdict-text", { id: "verdict" });
  const reasons = h("ul.reasons");
  const toDo = h("ul.reasons.to-do", { "aria-label": "What helps" });
  const foot = h("p.verdict-foot");
  const node = h("section.card.verdict", { "aria-labelledby": "verdict" }, h("span.verdict-icon", picture), h("div", text, reasons, toDo, foot));
  const sentences = (parent) => keyed(parent, ({ place }) => place, () => {
    const item = h("li");
    let shown = null;
    return {
      node: item,
      update({ reason, ids }) {
        if (shown !== reason) item.replaceChildren(...sentence(reason, ids));
        shown = reason;
      },
    };
  });
  const [list, actions] = [sentences(reasons), sentences(toDo)];
  return {
    node,
    /** @param {Api.Overview} overview */
    update(overview) {
      const known = VERDICTS[overview.verdict] ?? VERDICTS.unknown;
      setAttr(node, "data-verdict", overview.verdict);
      setIcon(picture, known.picture);
      const none = overview.tenants.total === 0 && overview.verdict === "healthy";
      setText(text, none ? "No tenants yet" : known.text);
      const ids = new Set(overview.worst.map((row) => row.id));
      list(overview.reasons.map((reason, place) => ({ reason, place, ids })));
      // A worker of an earlier release doesn't send them.
      const helps = overview.to_do ?? [];
      toDo.hidden = helps.length === 0;
      actions(helps.map((reason, place) => ({ reason, place, ids })));
      const oldest = overview.backlog.oldest_due_age_seconds;
      const unknown = overview.backlog.unknown_tenants;
      const none_due = unknown > 0 ? "No balance is known to be due" : "No balance is due";
      const waiting = (overview.backlog.due ?? 0) > 0 ? `The oldest due balance waits ${span(oldest)}` : none_due;
      setText(foot, `${waiting}; the objective is ${span(objective())}. ${plural(overview.tenants.total, "tenant")} on ${plural(overview.workers.live, "live worker")}.`);
    },
  };
}

const TIME = /^\d{4}-\d\d-\d\dT[\d:.]+Z$/;

/** A sentence of the API, with its times as the reader's clock has them, reasons as words, and tenants as links. */
function sentence(text, ids) {
  return text.split(/([A-Za-z0-9_-]+(?:[T:.]?[0-9:.]+Z)?)/).map((part) => {
    if (ids.has(part)) return link(tenantHref(part), part);
    if (TIME.test(part)) return `${clock(moment(part), now())} (${ago(moment(part), now())})`;
    return visible(/^(postgres|redis|tenant|collector)_[a-z_]+$/.test(part) ? words(part) : part);
  });
}

function tileRow() {
  const tile = (label, hint, key) => {
    const value = h("span.tile-value");
    const more = h("span.tile-more");
    const spark = key ? sparkline() : null;
    const node = h("div.tile", h("span.tile-label", { title: hint }, label), value, more, spark?.node ?? null);
    return { node, set(text, extra, level) {
      setText(value, text);
      setText(more, extra);
      setAttr(node, "data-level", level);
      spark?.update(live.history.slice(-60).map((point) => point[key] ?? null));
    } };
  };
  const rows = tile("Rows/s", "Rows written to Postgres, over the last 10 s", "rows_per_second");
  const lag = tile("Lag p99", "From the mutation in Redis to the row in Postgres, over the last 10 s", "p99_seconds");
  const due = tile("Due", "Scheduled members that are due and not claimed", "due");
  const oldest = tile("Oldest due", "How long the oldest due member has been due", "oldest_due_age_seconds");
  const exposure = tile("Exposure p99", "How long balances would have been missing from the rows had Redis lost its data: exceeded in 36 seconds of the last hour");
  const quarantined = tile("In quarantine", "Set aside with their reason; others are not blocked");
  const life = tile("Shortest life", "The least time that is left to a waiting value in Redis; protection raises it");
  return {
    node: h("div.tiles", [rows, lag, due, oldest, exposure, quarantined, life].map((each) => each.node)),
    /** @param {Api.Overview} overview */
    update(overview) {
      const { rates, lag: lags, backlog } = overview;
      const limit = objective();
      rows.set(rate(rates.rows_per_second), rates.failures_per_second > 0 ? `${rate(rates.failures_per_second)} failures/s` : "no failures", rates.failures_per_second > 0 ? "warn" : null);
      lag.set(span(lags.p99_seconds), `p50 ${span(lags.p50_seconds)}`, (lags.p99_seconds ?? 0) > limit ? "warn" : null);
      const unknown = backlog.unknown_tenants;
      const asOf = backlog.age_seconds === null ? null : `as of ${span(backlog.age_seconds)} ago`;
      const eta = (backlog.eta_seconds ?? null) === null ? "" : `, gone in about ${span(backlog.eta_seconds)}`;
      due.set(count(backlog.due), unknown > 0 ? `unknown of ${plural(unknown, "tenant")}` : asOf ?? `${count(backlog.leased)} leased of ${count(backlog.scheduled)}${eta}`, unknown > 0 || asOf ? "warn" : null);
      oldest.set(span(backlog.due === 0 ? 0 : backlog.oldest_due_age_seconds), asOf ?? `objective ${span(limit)}`, asOf || (backlog.oldest_due_age_seconds ?? 0) > limit ? "warn" : null);
      const exposed = backlog.exposure_p99_seconds;
      const bound = overview.settings.exposure_objective_seconds;
      exposure.set(span(exposed), `now ${span(backlog.exposure_age_seconds)}, objective ${span(bound)}`, exposed === null || exposed > bound ? "warn" : null);
      quarantined.set(count(overview.quarantined), `${overview.acknowledged > 0 ? `${count(overview.acknowledged)} acknowledged, ` : ""}${overview.expired_total > 0 ? `${count(overview.expired_total)} expired unread` : "none expired unread"}`, (overview.quarantined ?? 0) > overview.acknowledged ? "warn" : null);
      life.set(overview.shortest_life_seconds === null ? "–" : span(overview.shortest_life_seconds), overview.shortest_life_seconds === null ? "nothing waits" : "until expiry", overview.shortest_life_seconds !== null && overview.shortest_life_seconds < 300 ? "warn" : null);
    },
  };
}

/** Since when a tenant needs attention: of a late one its state says nothing, but its oldest balance does. */
function sinceOf(/** @type {Api.TenantRow} */ row) {
  if (assess(row).word !== "behind") return row.paused?.at ?? row.since;
  const age = Math.max(row.oldest_due_age_seconds, row.exposure_age_seconds);
  return new Date(now() - age * 1000).toISOString();
}

/** What is said where no tenant is listed, by the fleet's verdict: it may be about workers, Redis or the tenant service. */
const NO_TENANT = ["No tenant by itself", "What the verdict names concerns the fleet as a whole."];
/** @type {Record<string, string[]>} */
const WITHOUT_TENANTS = {
  healthy: ["Nothing needs attention", "Every tenant is written within its objective."],
  unknown: ["Not known", "While the fleet can't be queried, it isn't known which tenants need attention."],
};

function worstTable(tickers) {
  const table = dataTable({
    label: "Tenants that need attention",
    key: (/** @type {Api.TenantRow} */ row) => row.id,
    columns: /** @type {import("../parts.js").Column<Api.TenantRow>[]} */ ([
      tenantColumn(),
      {
        label: "State",
        wide: true,
        make(cell) {
          const badge = stateBadge();
          const reason = h("span.reason");
          const advice = h("span.advice");
          cell.append(badge.node, reason, advice);
          return (row) => {
            badge.update(row);
            setText(reason, visible(reasonOf(row)));
            setText(advice, row.state === "degraded" ? adviceFor(row.reason).help : "");
            setAttr(reason, "title", row.detail ? visible(row.detail) : null);
          };
        },
      },
      {
        label: "Since",
        make(cell) {
          const since = timeAgo();
          cell.append(since.node);
          tickers.push(since.tick);
          return (row) => since.update(sinceOf(row));
        },
      },
      numberColumn("Due", (row) => (row.sampled || row.numbers_age_seconds !== null ? count(row.due) : "?")),
      numberColumn("Oldest", (row) => (row.due > 0 ? span(row.oldest_due_age_seconds) : "–")),
      numberColumn("Lag p99", (row) => span(row.lag_p99_seconds)),
      {
        label: "What helps",
        make(cell) {
          let id = null;
          let what = null;
          const act = button("", "bolt", () => actOnTenant(id, what), "button.button.small");
          const open = link("#", "Open");
          open.className = "button small ghost";
          cell.classList.add("row-actions");
          cell.append(h("div", act, open));
          return (row) => {
            id = row.id;
            what = firstAid(row);
            setShown(act, what !== null && mayAct());
            setAttr(open, "href", `/tenants/${encodeURIComponent(id)}`);
            setAttr(open, "aria-label", `Open ${visible(id)}`);
            if (what === null) return;
            setText(act.lastChild, TENANT_ACTIONS[what].label);
            setIcon(act.firstChild, TENANT_ACTIONS[what].picture);
          };
        },
      },
    ]),
    empty: nothing("Nothing needs attention", "Every tenant is written within its objective."),
  });
  const [none, why] = table.node.querySelectorAll(".nothing > *");
  const node = section("Needs attention", table.node);
  const more = link("/tenants?sort=state&order=desc", "All tenants", icon("chevron"));
  more.className = "card-link";
  node.querySelector(".card-head").append(more);
  const heading = node.querySelector("h2");
  return {
    node,
    /** @param {Api.Overview} overview */
    update(overview) {
      const rows = overview.worst.filter(isOfNote);
      setText(heading, rows.length ? `Needs attention (${rows.length}${rows.length === overview.worst.length ? ", the worst first" : ""})` : "Needs attention");
      const [title, text] = WITHOUT_TENANTS[overview.verdict] ?? NO_TENANT;
      setText(none, title);
      setText(why, text);
      table.update(rows);
    },
  };
}

function stateBar(navigate) {
  const bar = h("div.state-bar", { role: "img" });
  const legend = h("ul.legend");
  const node = section("Tenants by state", bar, legend);
  const add = (/** @type {string} */ name) => {
    const piece = h("span.state-piece", { data: { state: name } });
    const badge = stateBadge();
    badge.show(name, levelOf(name));
    const number = h("span.num");
    const item = h("li", h("a", { href: `/tenants?state=${encodeURIComponent(name)}` }, badge.node, number));
    bar.append(piece);
    legend.append(item);
    return { name, piece, number, item };
  };
  const parts = STATE_NAMES.map(add);
  return {
    node,
    /** @param {Api.Overview} overview */
    update(overview) {
      /** @type {Record<string, number>} */
      const counts = { ...overview.tenants.by_state, unserved: overview.tenants.unserved, not_in_rollout: overview.tenants.not_in_rollout };
      // Those of another release follow.
      for (const name of Object.keys(counts)) if (!parts.some((part) => part.name === name)) parts.push(add(name));
      for (const part of parts) {
        const amount = counts[part.name] ?? 0;
        part.piece.style.flexGrow = amount;
        setShown(part.piece, amount > 0);
        setText(part.number, count(amount));
        setAttr(part.item, "class", amount === 0 ? "none" : null);
      }
      setAttr(bar, "aria-label", parts.map((part) => `${part.name} ${counts[part.name] ?? 0}`).join(", "));
    },
  };
}

/** What the fleet is made of, each with when it last changed. */
function factList(tickers) {
  const list = h("dl.facts-list");
  const node = section("Fleet", list);
  const update = keyed(list, (/** @type {Api.Overview["facts"][number]} */ fact) => fact.name, (fact) => {
    const value = h("strong");
    const since = timeAgo("since ");
    tickers.push(since.tick);
    const item = h("div", h("dt", words(fact.name)), h("dd", value, since.node));
    return {
      node: item,
      update(/** @type {Api.Overview["facts"][number]} */ fact) {
        setText(value, visible(fact.value));
        setAttr(item, "data-level", fact.well ? null : "warn");
        setShown(since.node, fact.since !== null);
        since.update(fact.since);
      },
    };
  });
  return {
    node,
    /** @param {Api.Overview} overview */
    update(overview) {
      // A worker of a former release behind the same address has none.
      const facts = overview.facts ?? [];
      setShown(node, facts.length > 0);
      update(facts);
    },
  };
}

function chartRow() {
  const charts = [
    lineChart({ title: "Rows per second", spans: SPANS, format: rate, series: [{ key: "rows_per_second", name: "rows/s", area: true }] }),
    lineChart({
      title: "Lag, Redis to Postgres",
      spans: SPANS,
      format: span,
      seconds: true,
      limit: objective,
      limitName: "objective",
      series: [{ key: "p99_seconds", name: "p99", area: true }, { key: "p50_seconds", name: "p50" }],
    }),
    lineChart({
      title: "Oldest due balance",
      spans: SPANS,
      format: span,
      seconds: true,
      limit: objective,
      limitName: "objective",
      series: [{ key: "oldest_due_age_seconds", name: "age", area: true }],
    }),
  ];
  return {
    node: h("section.card.charts", { "aria-label": "What went before" }, charts.map((chart) => chart.node)),
    update() {
      for (const chart of charts) chart.update(live.history, now());
    },
    stop() {
      for (const chart of charts) chart.stop();
    },
  };
}

/** By how much a clock is ahead of Redis's, without the sign of what is rounded to nothing. */
function signed(/** @type {number} */ seconds) {
  const rounded = (Math.round(seconds * 100) / 100 + 0).toFixed(2);
  return rounded.startsWith("-") ? rounded : `+${rounded}`;
}

function workerTable(tickers) {
  /** @type {Api.Worker[]} */
  let all = [];
  const health = (/** @type {Api.Worker} */ worker) => {
    const service = worker.tenant_service?.state ?? "ok";
    const ills = [];
    if (worker.draining) ills.push("draining");
    if (worker.configured_name) ills.push(`configured as ${visible(worker.configured_name)}, which is taken`);
    if (worker.redis && worker.redis !== "ok") ills.push(`Redis ${words(worker.redis)}`);
    if (!["ok", "static"].includes(service)) ills.push(`tenant service: ${words(service)}`);
    for (const task of worker.background_tasks ?? []) {
      if (task.state === "stalled") ills.push(`task ${words(task.name)} makes no progress`);
    }
    return ills;
  };
  const table = dataTable({
    label: "Workers",
    key: (/** @type {Api.Worker} */ worker) => worker.name,
    columns: /** @type {import("../parts.js").Column<Api.Worker>[]} */ ([
      {
        label: "Worker",
        wide: true,
        make(cell) {
          const name = h("strong.id");
          const more = h("span.reason");
          cell.append(name, more);
          return (worker) => {
            setText(name, visible(worker.name) + (worker.self ? " (this one)" : ""));
            const role = worker.mode === "shadow" ? ["shadow: it only looks"] : [];
            const offset = worker.clock_offset_seconds;
            const clock = typeof offset === "number" ? [`clock ${signed(offset)} s`] : [];
            setText(more, [...role, `v${worker.version}`, `up ${span(worker.uptime_seconds)}`, ...clock, ...health(worker)].join(" · "));
            setAttr(more, "data-level", health(worker).length ? "warn" : null);
          };
        },
      },
      numberColumn("Tenants", (worker) => count(worker.tenants_owned)),
      numberColumn("Rows/s", (worker) => rate(worker.rows_per_second)),
      numberColumn("Postgres", (worker) => `${count(worker.postgres.reduce((sum, server) => sum + server.in_use, 0))} / ${count(worker.postgres.reduce((sum, server) => sum + server.open, 0))}`),
      numberColumn("Memory", (worker) => bytes(worker.rss_bytes)),
      {
        label: "Seen",
        make(cell) {
          const seen = timeAgo();
          cell.append(seen.node);
          tickers.push(seen.tick);
          return (worker) => seen.update(worker.seen_at);
        },
      },
      {
        label: "Action",
        make(cell) {
          let worker = null;
          const drain = button("Drain", "drain", () => drainWorker(worker, all), "button.button.small");
          cell.classList.add("row-actions");
          cell.append(h("div", drain));
          return (item) => {
            worker = item;
            setShown(drain, mayAct() && !item.draining && item.mode !== "shadow");
            setAttr(drain, "aria-label", `Drain ${visible(item.name)}`);
          };
        },
      },
    ]),
    empty: nothing("No live worker", "Nothing is being synced. Start one: balance-sync run"),
  });
  return {
    node: section("Workers", table.node),
    /** Those that only look come last, and are nobody's replacement. */
    update(workers, shadows) {
      all = workers;
      table.update([...workers, ...shadows]);
    },
  };
}
