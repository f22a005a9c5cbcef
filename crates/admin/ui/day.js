// The last 24 hours: of the fleet as a strip of verdicts, charts and a table; of a tenant as a list of what happened. Time of which
// nothing is known is shown as such, and never as a quiet one.

import { ACTION_NAMES } from "./actions.js";
import { get } from "./api.js";
import { lineChart } from "./chart.js";
import { h, s, setAttr, setText, visible } from "./dom.js";
import { clock, count, moment, plural, rate, span, words } from "./format.js";
import { now, objective, subscribe } from "./live.js";
import { dataTable, failed, nothing, numberColumn, scrollable, section, textColumn } from "./parts.js";

const MINUTE = 60_000;
const HOUR = 60 * MINUTE;
const DAY = 24 * HOUR;
/** In seconds: of the fleet's minutes only the last one changes. */
const ASK_FLEET_EVERY = 60;
const ASK_TENANT_EVERY = 20;
/** From good to bad; what another release says is taken for the worst. */
const VERDICTS = ["healthy", "attention", "behind", "unknown", "degraded"];
const NOT_RECORDED = "not recorded";

/** @param {string} verdict */
function severity(verdict) {
  const at = VERDICTS.indexOf(verdict);
  return at < 0 ? VERDICTS.length : at;
}

/** Runs of the same verdict, with gaps: `{ verdict, from, to }`. @param {Api.History} history */
function runsOf(history) {
  /** @type {{ verdict: string, from: number, to: number }[]} */
  const runs = [];
  const pieces = [
    ...history.minutes.map(({ verdict, at }) => ({ verdict, from: moment(at) ?? 0, to: (moment(at) ?? 0) + MINUTE })),
    ...history.not_recorded.map(({ from, to }) => ({ verdict: NOT_RECORDED, from: moment(from) ?? 0, to: moment(to) ?? 0 })),
  ].sort((a, b) => a.from - b.from);
  for (const piece of pieces) {
    const last = runs.at(-1);
    if (last && last.verdict === piece.verdict && last.to >= piece.from) last.to = Math.max(last.to, piece.to);
    else runs.push(piece);
  }
  return runs;
}

/** How the fleet was. */
export function fleetDay() {
  const width = 1440;
  const height = 24;
  const strip = s("svg.day", { role: "img", viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none" });
  const ends = h("p.day-ends", h("span"), h("span"));
  const legend = h("ul.heat-legend");
  const numbers = [...VERDICTS, NOT_RECORDED].map((verdict) => {
    const number = h("span.num");
    const item = h("li", h("span.day-key", { data: { verdict } }), verdict, " ", number);
    legend.append(item);
    return { verdict, number, item };
  });
  const spans = [DAY];
  const gap = 2 * MINUTE;
  const charts = [
    lineChart({ title: "Rows per second, 24 h", spans, gap, format: rate, series: [{ key: "rows_per_second", name: "rows/s", area: true }] }),
    lineChart({ title: "Lag p99, 24 h", spans, gap, format: span, seconds: true, limit: objective, limitName: "objective", series: [{ key: "lag_p99_seconds", name: "p99", area: true }] }),
    lineChart({ title: "Due, 24 h", spans, gap, format: count, series: [{ key: "due", name: "members", area: true }] }),
  ];
  const table = hourTable();
  const problems = h("div");
  const node = section(
    "The last 24 hours",
    strip,
    ends,
    legend,
    problems,
    h("div.day-charts", charts.map((chart) => chart.node)),
    h("details.day-table", h("summary", "By the hour, as a table"), table.node),
  );
  const controller = new AbortController();

  async function load() {
    try {
      update(await get(["history"], {}, controller.signal));
      problems.replaceChildren();
    } catch (problem) {
      if (problem.name !== "AbortError") problems.replaceChildren(failed(problem, load));
    }
  }

  /** @param {Api.History} history */
  function update(history) {
    const from = moment(history.since) ?? 0;
    const until = moment(history.until) ?? 0;
    const runs = runsOf(history);
    const x = (/** @type {number} */ at) => ((Math.min(Math.max(at, from), until) - from) / (until - from)) * width;
    strip.replaceChildren(
      ...runs.map((run) =>
        s(
          "rect.day-run",
          { x: x(run.from), y: 0, width: Math.max(x(run.to) - x(run.from), 2), height, data: { verdict: severity(run.verdict) > 4 && run.verdict !== NOT_RECORDED ? "unknown" : run.verdict } },
          s("title", {}, `${visible(run.verdict)} from ${clock(run.from, until)} to ${clock(run.to, until)}`),
        ),
      ),
    );
    /** @type {Record<string, number>} */
    const lasted = {};
    for (const run of runs) lasted[run.verdict] = (lasted[run.verdict] ?? 0) + (run.to - run.from) / 1000;
    for (const { verdict, number, item } of numbers) {
      setText(number, lasted[verdict] ? span(lasted[verdict]) : "");
      setAttr(item, "class", lasted[verdict] ? null : "none");
    }
    const summary = Object.entries(lasted).map(([verdict, seconds]) => `${visible(verdict)} for ${span(seconds)}`);
    setAttr(strip, "aria-label", `The fleet since ${clock(from, until)}, the worst of each minute: ${summary.join(", ")}`);
    setText(ends.firstChild, clock(from, until));
    setText(ends.lastChild, "now");
    for (const chart of charts) chart.update(history.minutes, until);
    table.update(history);
  }

  let seconds = 0;
  const end = subscribe("connection", ({ again }) => again && load());
  load();
  return {
    node,
    tick() {
      seconds += 1;
      if (seconds % ASK_FLEET_EVERY === 0) load();
    },
    stop() {
      controller.abort();
      end();
      for (const chart of charts) chart.stop();
    },
  };
}

/**
 * @typedef {{ from: number, minutes: Api.HistoryMinute[], missing: number }} Hour
 */

function hourTable() {
  /** @param {Hour} hour @param {(minute: Api.HistoryMinute) => number | null} of */
  const most = (hour, of) => {
    const known = hour.minutes.map(of).filter((value) => value !== null);
    return known.length ? Math.max(...known) : null;
  };
  /** @param {Hour} hour */
  const worst = (hour) => hour.minutes.reduce((/** @type {Api.HistoryMinute | null} */ worst, one) => (worst && severity(worst.verdict) >= severity(one.verdict) ? worst : one), null);
  const table = dataTable({
    label: "The fleet by the hour",
    key: (/** @type {Hour} */ hour) => String(hour.from),
    columns: /** @type {import("./parts.js").Column<Hour>[]} */ ([
      textColumn("From", (hour) => clock(hour.from, now())),
      textColumn("Worst", (hour) => visible(worst(hour)?.verdict ?? NOT_RECORDED)),
      textColumn("Why", (hour) => visible(worst(hour)?.why ?? ""), { wide: true }),
      numberColumn("Rows/s", (hour) => rate(hour.minutes.length ? hour.minutes.reduce((sum, one) => sum + one.rows_per_second, 0) / hour.minutes.length : null)),
      numberColumn("Lag p99", (hour) => span(most(hour, (one) => one.lag_p99_seconds))),
      numberColumn("Due", (hour) => count(most(hour, (one) => one.due))),
      numberColumn("Workers", (hour) => count(hour.minutes.length ? Math.min(...hour.minutes.map((one) => one.workers)) : null)),
      numberColumn("Not recorded", (hour) => (hour.missing ? span(hour.missing * 60) : "–")),
    ]),
    empty: nothing("Nothing is recorded", "No worker has recorded how the fleet was."),
  });
  return {
    node: table.node,
    /** @param {Api.History} history */
    update(history) {
      /** @type {Map<number, Hour>} */
      const hours = new Map();
      const hourOf = (/** @type {number} */ at) => {
        const from = Math.floor(at / HOUR) * HOUR;
        const hour = hours.get(from) ?? { from, minutes: [], missing: 0 };
        hours.set(from, hour);
        return hour;
      };
      for (const one of history.minutes) hourOf(moment(one.at) ?? 0).minutes.push(one);
      for (const gap of history.not_recorded) {
        for (let at = moment(gap.from) ?? 0; at < (moment(gap.to) ?? 0); at += MINUTE) hourOf(at).missing += 1;
      }
      table.update([...hours.values()].sort((a, b) => b.from - a.from));
    },
  };
}

/** What happened to a tenant, in words. @param {Api.TimelineEntry} entry */
function whatHappened(entry) {
  const worker = visible(entry.worker ?? "a worker");
  const until = entry.until ? clock(moment(entry.until), now()) : "";
  const state = visible(entry.state ?? "") + (entry.partial ? ", some balances only" : "");
  switch (entry.kind) {
    case "state":
      return entry.changes > 1 ? `${plural(entry.changes, "change")} until ${until}, then ${state}` : state;
    case "took_over":
      return `${worker} took over: ${state}`;
    case "restarted":
      return `Collector ended by itself and was started again${entry.changes > 1 ? ` ${count(entry.changes)} times` : ""}`;
    case "left":
      return `${worker} doesn't serve it any more`;
    case "action":
      return `${ACTION_NAMES[entry.action ?? ""] ?? words(entry.action)} by ${visible(entry.by)}`;
    case "worker_started":
      return `Worker started, version ${visible(entry.version ?? "unknown")}`;
    case "worker_ended":
      return "Worker ended in an orderly way";
    case "worker_lost":
      return "Worker was heard of last";
    case "not_recorded":
      return `Not recorded until ${until}`;
    case "omitted":
      return `Left out until ${until}`;
    default:
      // Of another release.
      return `${visible(words(entry.kind))} ${state}`;
  }
}

/** Why, and what became of it. @param {Api.TimelineEntry} entry */
function why(entry) {
  const reasons = entry.reasons.length ? [entry.reasons.map(words).join(", ")] : entry.reason ? [words(entry.reason)] : [];
  const outcomes = entry.outcomes.map(({ worker, outcome }) => `${outcome} by ${worker}`).join(", ");
  const parts = [...reasons, entry.detail ?? "", entry.note ?? "", entry.kind === "action" ? outcomes || "no worker has answered" : ""];
  return visible(parts.filter((part) => part !== "").join(": "));
}

/** @param {Api.TimelineEntry} entry */
function levelOf(entry) {
  if (entry.kind === "not_recorded" || entry.kind === "omitted" || entry.state === "paused") return "warn";
  if (entry.kind === "worker_lost" || entry.kind === "restarted" || entry.state === "degraded") return "bad";
  return null;
}

/** What happened to a tenant. */
export function tenantDay(/** @type {string} */ id) {
  const table = dataTable({
    label: "What happened",
    key: (/** @type {Api.TimelineEntry} */ entry) => `${entry.at} ${entry.kind} ${entry.worker} ${entry.action}`,
    columns: /** @type {import("./parts.js").Column<Api.TimelineEntry>[]} */ ([
      {
        label: "When",
        make(cell) {
          const time = h("time");
          cell.append(time);
          return (entry) => {
            setAttr(time, "datetime", entry.at);
            setAttr(time, "title", entry.at);
            setText(time, clock(moment(entry.at), now()));
          };
        },
      },
      {
        label: "What",
        make(cell) {
          const text = h("strong.day-what");
          cell.append(text);
          return (entry) => {
            setText(text, whatHappened(entry));
            setAttr(text, "data-level", levelOf(entry));
          };
        },
      },
      textColumn("Why", why, { wide: true }),
      textColumn("Worker", (entry) => visible(entry.worker ?? "")),
    ]),
    empty: nothing("Nothing has happened", "It was recorded without a gap."),
  });
  const problems = h("div");
  const node = section("The last 24 hours", problems, scrollable(h("div.scroll", table.node)));
  const controller = new AbortController();
  async function load() {
    try {
      /** @type {Api.Timeline} */
      const timeline = await get(["tenants", id, "timeline"], {}, controller.signal);
      problems.replaceChildren();
      table.update(timeline.entries.toReversed());
    } catch (problem) {
      if (problem.name !== "AbortError" && problem.status !== 404) problems.replaceChildren(failed(problem, load));
    }
  }
  let seconds = 0;
  const ends = [subscribe("action", load), subscribe("connection", ({ again }) => again && load())];
  load();
  return {
    node,
    tick() {
      seconds += 1;
      if (seconds % ASK_TENANT_EVERY === 0) load();
    },
    stop() {
      controller.abort();
      for (const end of ends) end();
    },
  };
}
