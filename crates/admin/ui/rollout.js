// Which tenants this fleet serves, what each stage of the rollout has shown, and whether to take more.

import { get } from "./api.js";
import { h, setAttr, setShown, setText, visible } from "./dom.js";
import { count, plural, span } from "./format.js";
import { dataTable, nothing, numberColumn, section, textColumn, timeAgo } from "./parts.js";

/** Stages that are shown. */
const STAGES = 6;
const LEVELS = { widen: "good", complete: "good", wait: "note", stop: "warn" };

/** What isn't known is no 0. */
const known = (/** @type {number | null} */ number) => (number === null ? "?" : count(number));

/** Which tenants, in words. */
function selects(/** @type {Api.FleetRollout} */ rollout) {
  if (rollout.selected === null || rollout.share === null) return "It isn't known which tenants are in it.";
  const list = (/** @type {string} */ what, /** @type {string[]} */ ids) => (ids.length === 0 ? "" : `, ${what}: ${visible(ids.slice(0, 3).join(", "))}${ids.length > 3 ? ` and ${count(ids.length - 3)} more` : ""}`);
  return `${count(rollout.selected)} of ${plural(rollout.total, "tenant")}: ${rollout.share} of those on no list${list("included", rollout.include)}${list("excluded", rollout.exclude)}.`;
}

/** The panel on the overview; hidden where all tenants are served, as configured. */
export function rolloutCard(/** @type {(() => void)[]} */ tickers) {
  const sentence = h("p.rollout-sentence");
  const what = h("p");
  const who = h("span");
  const since = timeAgo();
  const problem = h("p.reason", { data: { level: "warn" } });
  tickers.push(since.tick);
  const by = h("p.quiet", who, since.node);
  const table = dataTable({
    label: "Stages of the rollout",
    key: (/** @type {Api.RolloutStage} */ stage) => String(stage.revision),
    columns: /** @type {import("./parts.js").Column<Api.RolloutStage>[]} */ ([
      textColumn("Change", (stage) => visible(stage.change ?? "configured"), { wide: true }),
      numberColumn("Tenants", (stage) => known(stage.tenants)),
      numberColumn("Watched", (stage) => span(stage.observed_seconds)),
      numberColumn("Written", (stage) => known(stage.written)),
      numberColumn("Lag p99", (stage) => span(stage.lag_p99_seconds)),
      numberColumn("Lost", (stage) => known(stage.losses)),
      numberColumn("Forks", (stage) => known(stage.forks)),
      numberColumn("Quarantined", (stage) => known(stage.quarantined)),
      textColumn("By", (stage) => visible([stage.by, stage.note].filter(Boolean).join(": "))),
    ]),
    empty: nothing("No stage yet", "Nothing was recorded of the rollout."),
  });
  const node = section("Rollout", sentence, what, problem, by, table.node);
  setShown(node, false);
  let shown = false;
  return {
    node,
    /** What every overview tells. */
    update(/** @type {Api.Overview} */ overview) {
      // A worker of a former release behind the same address has none.
      const rollout = overview.rollout;
      const before = shown;
      shown = Boolean(rollout) && (!rollout.is_configured || rollout.problem !== null || overview.tenants.not_in_rollout > 0);
      setShown(node, shown);
      if (!shown) return;
      setText(what, selects(rollout));
      setText(problem, rollout.problem === null ? "" : `What is stored can't be followed: ${visible(rollout.problem)}`);
      setShown(problem, rollout.problem !== null);
      setShown(by, rollout.by !== null);
      setText(who, rollout.by === null ? "" : `Set by ${visible(rollout.by)}${rollout.note ? ` (${visible(rollout.note)})` : ""} `);
      since.update(rollout.at);
      if (!before) this.ask();
    },
    /** Advice and stages are asked for: the events don't tell of them. */
    ask() {
      if (!shown) return;
      get(["rollout"]).then((/** @type {Api.Rollout} */ report) => {
        setText(sentence, visible(report.sentence));
        setAttr(sentence, "data-level", LEVELS[report.advice] ?? null);
        table.update(report.stages.slice(0, STAGES));
      }, () => {});
    },
  };
}
