// What a shadow has found of a tenant: what would be written, how late whoever writes today is, what it left behind or lost.

import { h, keyed, setShown, setText, visible } from "./dom.js";
import { bytes, count, span } from "./format.js";
import { live } from "./live.js";
import { dataTable, nothing, numberColumn, scrollable, section, textColumn, timeAgo } from "./parts.js";

/** What Redis may take away before it is written. */
function eviction() {
  // The same for all tenants.
  const memory = live.overview?.shadow?.redis_memory;
  if (!memory) return "not known";
  const used = `${bytes(memory.used_bytes)} of ${memory.max_bytes === 0 ? "no limit" : bytes(memory.max_bytes)} in use`;
  return `${memory.may_evict ? "values may vanish unwritten" : "nothing is evicted"} (${visible(memory.policy || "policy not known")}); ${used}, ${count(memory.evicted_keys)} keys evicted`;
}

/** The section of the tenant's page; hidden where no shadow looks at the tenant. */
export function shadowPart(/** @type {(() => void)[]} */ tickers) {
  const list = h("dl.pairs");
  const rows = keyed(list, (/** @type {[string, string]} */ [name]) => name, ([name]) => {
    const value = h("dd");
    return { node: h("div", h("dt", name), value), update: ([, text]) => setText(value, text) };
  });
  const compared = timeAgo("Compared with their rows ");
  tickers.push(compared.tick);
  const problem = h("p.reason", { data: { level: "warn" } });
  const table = dataTable({
    label: "Left behind or lost",
    key: (/** @type {Api.LeftBehind} */ one) => one.member,
    columns: [
      textColumn("Balance", (one) => visible(one.member), { wide: true }),
      textColumn("What", (one) => (one.lost ? "lost" : "left behind")),
      numberColumn("Version in Redis", (one) => String(one.version)),
      numberColumn("Version in Postgres", (one) => String(one.row_version)),
      {
        label: "Since",
        make(cell) {
          const time = timeAgo();
          cell.append(time.node);
          tickers.push(time.tick);
          return (one) => time.update(one.since);
        },
      },
    ],
    empty: nothing("Nothing left behind", "No balance is out of the schedule without its row having it."),
  });
  const node = section("What a shadow sees", problem, list, h("p.quiet", compared.node), scrollable(h("div.scroll", table.node)));
  node.classList.add("shadow-part");
  setShown(node, false);
  return {
    node,
    /** @param {Api.TenantDetail} tenant */
    update(tenant) {
      // A worker of a former release behind the same address has none.
      const found = tenant.shadow ?? null;
      setShown(node, found !== null);
      if (found === null) return;
      const least = found.more ? "at least " : "";
      rows([
        ["Looks at it, and changes nothing", visible(found.by.join(", "))],
        ["Would be written now", least + count(found.would_write)],
        ["Left behind by whoever writes today", least + count(found.left_behind)],
        ["Lost by whoever writes today", count(found.lost)],
        ["A mutation takes to its row, p50 · p99", `${span(found.lag_p50_seconds)} · ${span(found.lag_p99_seconds)}, at most (${count(found.lag_samples)} samples)`],
        ["Shortest life of what waits", span(tenant.shortest_life_seconds)],
        ["Eviction by Redis", eviction()],
        ["Balances compared", found.compared_at === null ? "not all of them yet" : count(found.compared)],
      ]);
      compared.update(found.compared_at);
      setShown(compared.node, found.compared_at !== null);
      setText(problem, found.error === null ? "" : `Rows can't be read: ${visible(found.error)}`);
      setShown(problem, found.error !== null);
      table.update(found.examples);
    },
  };
}
